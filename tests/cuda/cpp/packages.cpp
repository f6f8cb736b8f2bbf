// Packages and regions on a GPU, without CUDA graphs.
#include <functional>

#include <ATen/core/grad_mode.h>

#include "gpu.h"
#include "kernels.h"

namespace {

using test::close;
using test::expected;
using test::packaged;
using test::random;
using test::same;

const torchcc::Package& functions() {
  static const torchcc::Package package = torchcc::load(packaged("functions.pt2"));
  return package;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const torchcc::Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

BOOST_AUTO_TEST_SUITE(packages)

BOOST_AUTO_TEST_CASE(compiled_code_runs_on_the_gpu) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = functions()["forward"];
  BOOST_TEST(f.stats().backend == "compiled");
  BOOST_TEST(f.stats().target.starts_with("cuda-sm"));
  BOOST_TEST(f.signature().str() ==
             "forward(x: float32[n, 128] on cuda) -> float32[n, 64] on cuda with 2 <= n <= 16777216");
  for (const int64_t n : {2, 3, 64, 1000}) {
    const at::Tensor x = random({n, 128});
    BOOST_TEST(close(f(x), expected(f, x)));
  }
  BOOST_TEST(f.stats().portable_calls == 0);
}

BOOST_AUTO_TEST_CASE(the_graph_runs_on_the_gpu) {
  const at::NoGradGuard no_grad;
  for (const torchcc::Function& f : {torchcc::load(packaged("functions.pt2"), {.compiled = false})["forward"],
                                     torchcc::load(packaged("portable.pt2"))["forward"]}) {
    const at::Tensor x = random({5, 128});
    BOOST_TEST(close(f(x), expected(f, x)));
    BOOST_TEST(f.stats().backend == "portable");
    BOOST_TEST(f.stats().portable_calls == 1);
  }
}

BOOST_AUTO_TEST_CASE(code_for_another_gpu_gives_way_to_the_graph) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = torchcc::load(packaged("foreign.pt2"))["forward"];
  const at::Tensor x = random({5, 128});
  BOOST_TEST(close(f(x), expected(f, x)));
  BOOST_TEST(f.stats().backend == "portable");
  BOOST_REQUIRE(f.stats().reasons.size() == 1U);
  BOOST_TEST(f.stats().reasons[0].starts_with("cuda-sm35: compiled for GPUs of sm35, this one is sm"));
}

BOOST_AUTO_TEST_CASE(code_for_later_gpus_too) {
  const at::NoGradGuard no_grad;
  const torchcc::Function earlier = torchcc::load(packaged("earlier.pt2"))["forward"];
  const at::Tensor x = random({5, 128});
  BOOST_TEST(close(earlier(x), expected(earlier, x)));
  BOOST_TEST(earlier.stats().backend == "compiled");
  BOOST_TEST(earlier.stats().target == "cuda-sm70+");
  const torchcc::Function later = torchcc::load(packaged("later.pt2"))["forward"];
  BOOST_TEST(close(later(x), expected(later, x)));
  BOOST_TEST(later.stats().backend == "portable");
  BOOST_TEST(later.stats().reasons.at(0).starts_with("cuda-sm999+: compiled for GPUs of sm999+, this one is sm"));
}

BOOST_AUTO_TEST_CASE(inputs_of_other_layouts) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = functions()["forward"];
  const at::Tensor turned = random({128, 16}).t();
  BOOST_TEST(close(f(turned), expected(f, turned)));
  const at::Tensor memory = random({16 * 128 + 1});
  const at::Tensor misaligned = memory.narrow(0, 1, 16 * 128).view({16, 128});
  BOOST_TEST(close(f(misaligned), expected(f, misaligned)));
}

BOOST_AUTO_TEST_CASE(arguments_on_another_device_are_refused) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = functions()["forward"];
  const std::string text = message_of([&] { f(at::randn({4, 128})); });
  BOOST_TEST(text.find("argument 'x' (1 of 1) is on the wrong device") != std::string::npos);
  BOOST_TEST(text.find("expected:  cuda:0") != std::string::npos);
  BOOST_TEST(text.find("x.to(\"cuda:0\")") != std::string::npos);
  BOOST_CHECK_THROW(torchcc::load(packaged("functions.pt2"), {.device = 64}), torchcc::ArgumentError);
  const torchcc::Function converting = torchcc::load(packaged("functions.pt2"), {.convert = true})["forward"];
  const at::Tensor x = at::randn({4, 128}, at::kDouble);
  BOOST_TEST(close(converting(x), expected(f, x.to(at::kCUDA, at::kFloat))));
}

BOOST_AUTO_TEST_CASE(arguments_on_the_cpu_beside_others) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = functions()["mixed"];
  const at::Tensor x = random({4, 128});
  const at::Tensor shift = at::randn({128});
  BOOST_TEST(same(f(x, shift), x + shift.to(at::kCUDA)));
  BOOST_CHECK_THROW(f(x, shift.to(at::kCUDA)), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(writes_reach_arguments_and_buffers) {
  const at::NoGradGuard no_grad;
  const torchcc::Function add = functions()["add_into"];
  const at::Tensor x = random({4, 128});
  const at::Tensor y = random({4, 128});
  const at::Tensor sum = x + y;
  BOOST_TEST(same(add(x, y), sum * 2));
  BOOST_TEST(same(y, sum));
  const torchcc::Function remember = torchcc::load(packaged("functions.pt2"))["remember"];
  at::Tensor state = at::zeros({128}, at::kCUDA);
  for (int i = 0; i < 3; ++i) {
    state = state * 0.5 + x.mean(0);
    BOOST_TEST(close(remember(x), state + 1));
  }
}

BOOST_AUTO_TEST_CASE(values_that_the_host_reads) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = random({4, 128});
  BOOST_TEST(close(functions()["host"](x), x * x.sum()));
}

BOOST_AUTO_TEST_CASE(weights_can_be_replaced) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = torchcc::load(packaged("updatable.pt2"))["forward"];
  const at::Tensor x = random({4, 128});
  BOOST_TEST(close(f(x), expected(f, x)));
  f.set_weight("first.weight", random({256, 128}));
  BOOST_TEST(close(f(x), expected(f, x)));
  BOOST_TEST(f.stats().portable_calls == 0);
  BOOST_CHECK_THROW(f.set_weight("first.weight", at::randn({256, 128})), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(gradients) {
  const torchcc::Function f = torchcc::load(packaged("training.pt2"))["forward"];
  const at::Tensor x = random({4, 128}).requires_grad_();
  const at::Tensor tangent = random({4, 64});
  f(x).backward(tangent);
  const at::Tensor got = x.grad();
  x.mutable_grad() = at::Tensor();
  expected(f, x).backward(tangent);
  BOOST_TEST(close(got, x.grad()));
  BOOST_TEST(f.stats().training_calls == 1);
  BOOST_TEST(f.stats().training_target.starts_with("cuda-sm"));
}

BOOST_AUTO_TEST_CASE(half_and_bfloat16) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, dtype] : {std::pair{"float16.pt2", at::kHalf}, {"bfloat16.pt2", at::kBFloat16}}) {
    const torchcc::Function f = torchcc::load(packaged(name))["forward"];
    const at::Tensor x = random({8, 128}, dtype);
    const at::Tensor difference = (f(x) - expected(f, x)).abs().max();
    BOOST_TEST(f.stats().backend == "compiled");
    BOOST_TEST(difference.item<double>() < 0.05);
  }
}

BOOST_AUTO_TEST_CASE(numbers_of_8_bits) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = torchcc::load(packaged("eight.pt2"))["forward"];
  const at::Tensor a = random({32, 128}).to(at::kFloat8_e4m3fn);
  const at::Tensor b = random({64, 128}).to(at::kFloat8_e4m3fn);
  const at::Tensor wanted = at::matmul(a.to(at::kFloat), b.to(at::kFloat).t());
  BOOST_TEST(f.signature().inputs[0].type() == "float8_e4m3fn[32, 128] on cuda");
  BOOST_TEST(f.stats().backend == "compiled");
  BOOST_TEST((f(a, b).to(at::kFloat) - wanted).abs().max().item<double>() < 0.1);
}

BOOST_AUTO_TEST_CASE(regions) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = random({7, 96});
  const at::Tensor bias = random({96});
  const at::Tensor wanted = at::gelu((x + bias) * 0.3);
  BOOST_TEST(close(kernels::scaled_gelu(x, bias, 0.3), wanted));
  at::Tensor out = at::empty_like(x);
  kernels::scaled_gelu_out(out, x, bias, 0.3);
  BOOST_TEST(close(out, wanted));
  const at::Tensor y = random({100}, at::kDouble);
  BOOST_TEST(close(kernels::wide(y, 1.0 / 3), y * (1.0 / 3) + 1.0 / 3));
  BOOST_CHECK_THROW(kernels::plain(y, y), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_SUITE_END()
