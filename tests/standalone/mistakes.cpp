// Makes the mistakes of ../errors/mistakes.cpp that a program without LibTorch can make, under the same titles;
// test_standalone.py compares the messages with those of LibTorch's runtime. Then what only these tensors refuse.
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

#include <torchcc/torchcc.h>

#include "regions.h"

namespace {

using Arguments = std::vector<torchcc::Argument>;
using torchcc::Tensor;

void mistake(const char* title, const std::function<void()>& make) {
  std::printf("## %s\n", title);
  try {
    make();
    std::printf("no error\n\n");
  } catch (const torchcc::ArgumentError& error) {
    std::printf("ArgumentError: %s\n\n", error.what());
  } catch (const torchcc::PackageError& error) {
    std::printf("PackageError: %s\n\n", error.what());
  } catch (const torchcc::Error& error) {
    std::printf("Error: %s\n\n", error.what());
  } catch (const std::exception& error) {
    std::printf("not an error of torchcc: %s\n\n", error.what());
  }
}

template <class T>
Tensor full(torchcc::IntArrayRef sizes, T value) {
  const Tensor tensor = torchcc::empty(sizes, torchcc::detail::scalar_type<T>());
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data_ptr<T>()[i] = value;
  return tensor;
}

struct Tensors {
  torchcc::Function add_relu = regions::regions_package()["add_relu"];
  torchcc::Function blend = regions::regions_package()["blend"];
  torchcc::Function interleave = regions::regions_package()["interleave"];
  torchcc::Function accumulate = regions::regions_package()["accumulate"];
  Tensor x = full({16}, 1.0f);
  Tensor a = full({4, 3}, 1.0);
  Tensor seven = full<int64_t>({3}, 7);
};

void arguments(const Tensors& t) {
  mistake("no package", [] { torchcc::Package()["add_relu"]; });
  mistake("no function", [&] { torchcc::Function()(t.x); });
  mistake("the signature of no function", [] { torchcc::Function().signature(); });
  mistake("too few arguments", [&] { t.add_relu(t.x); });
  mistake("too many arguments", [&] { t.add_relu(t.x, t.x, t.x); });
  mistake("two outputs, called as if there was one", [&] { t.blend(t.a, t.a, 1.0, 1, true); });
  mistake("undefined tensor", [&] { t.add_relu(t.x, Tensor()); });
  mistake("wrong dtype", [&] { t.add_relu(t.x, t.x.to(torchcc::kDouble)); });
  mistake("wrong dtype in the first of several",
          [&] { t.blend.call({torchcc::empty({4, 3}, torchcc::kHalf), t.a, 1.0, 1, true}); });
  mistake("wrong rank", [&] { t.add_relu(t.x, t.x.as_strided({1, 16}, {16, 1})); });
  const Tensor large = full({4097, 3}, 1.0);
  mistake("wrong fixed size", [&] { t.add_relu(t.x, full({15}, 1.0f)); });
  mistake("batch 4 against batch 3", [&] { t.blend.call({t.a, t.a.as_strided({3, 3}, {3, 1}), 1.0, 1, true}); });
  mistake("size out of range", [&] { t.blend.call({large, large, 1.0, 1, true}); });
  mistake("size that is an expression", [&] { t.interleave(t.a.as_strided({4}, {3}), full({7}, 1.0)); });
  mistake("number where a tensor belongs", [&] { t.blend.call({t.a, 1.0, 1.0, 1, true}); });
  mistake("tensor where a number belongs", [&] { t.blend.call({t.a, t.a, t.a, 1, true}); });
  mistake("double for an integer", [&] { t.blend.call({t.a, t.a, 1.0, 1.0, true}); });
  mistake("bool for a double", [&] { t.blend.call({t.a, t.a, true, 1, true}); });
  mistake("integer for a bool", [&] { t.blend.call({t.a, t.a, 1.0, 1, 1}); });
  mistake("number out of range", [&] { t.blend.call({t.a, t.a, 1.0, 6, true}); });
}

void outputs(const Tensors& t) {
  const auto out_into = [&](Tensor out) { t.add_relu.call_out({&out, 1}, Arguments{t.x, t.x}); };
  mistake("wrong number of outputs", [&] {
    Tensor out = torchcc::empty({4, 3}, torchcc::kDouble);
    t.blend.call_out({&out, 1}, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("undefined output", [&] { out_into(Tensor()); });
  mistake("output of the wrong dtype", [&] { out_into(torchcc::empty({16}, torchcc::kDouble)); });
  mistake("output of the wrong size", [&] { out_into(torchcc::empty({17})); });
  mistake("output of the wrong size, by symbol", [&] {
    Tensor outs[]{torchcc::empty({4, 3}, torchcc::kDouble), torchcc::empty({5}, torchcc::kDouble)};
    t.blend.call_out(outs, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("output that is not contiguous", [&] { out_into(torchcc::empty({32}).as_strided({16}, {2})); });
  mistake("output that is an input", [&] { out_into(t.x); });
  mistake("written to, and expanded", [&] { t.accumulate(t.a.as_strided({4, 3}, {0, 1}), t.a); });
  mistake("written to, and the other argument too", [&] { t.accumulate(t.a, t.a); });
}

void running(const Tensors& t) {
  mistake("division by zero", [&] { regions::divide(t.seven, full<int64_t>({3}, 0)); });
  mistake("index out of range", [&] { regions::lookup(full({100, 8}, 1.0f), full<int64_t>({3}, 100)); });
}

void tensors(const Tensors& t) {
  mistake("elements of another type", [&] { t.x.data_ptr<double>(); });
  mistake("no single value", [&] { t.x.item<float>(); });
  mistake("no such dimension", [&] { t.x.size(1); });
  mistake("copy of other sizes", [&] { t.x.copy_(t.a); });
  mistake("conversion that C++ does not have", [&] { t.x.to(torchcc::kHalf); });
  mistake("nine dimensions", [] { torchcc::empty({1, 1, 1, 1, 1, 1, 1, 1, 1}); });
  mistake("weight of a function without any", [&] { t.add_relu.set_weight("last.bias", t.x); });
  mistake("sizes that are none", [] { torchcc::empty({-1}); });
}

void results(const Tensors& t) {
  // Not mistakes: layouts that the code does not read as they are.
  const Tensor turned = t.a.as_strided({3, 4}, {1, 3});
  std::vector<Tensor> both = t.blend.call({turned, turned, 2.0, 1, true});
  const Tensor total = full({4, 6}, 0.0);
  const Tensor every_second = total.as_strided({4, 3}, {6, 2});
  const Tensor sums = t.accumulate(every_second, t.a);
  std::printf("blend %g %g accumulate %g %g %g\n", both[0].data_ptr<double>()[0], both[1].data_ptr<double>()[0],
              sums.data_ptr<double>()[0], total.data_ptr<double>()[2], total.data_ptr<double>()[3]);
}

}  // namespace

int main() {
  const Tensors t;
  arguments(t);
  outputs(t);
  running(t);
  std::printf("# of these tensors\n\n");
  tensors(t);
  results(t);
}
