// Makes every mistake that a C++ caller can make, once, and prints the messages; test_cpp_mistakes.py compares them
// with cpp_messages.txt. Each message should name the thing, what was expected, what came, and what to do.
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <typeinfo>

#include <torchcc/compile.h>

#include "../cpp/support.h"

namespace {

using Arguments = std::vector<torchcc::Argument>;

const char* kind(const torchcc::Error& error) {
  if (dynamic_cast<const torchcc::ArgumentError*>(&error) != nullptr) return "ArgumentError";
  if (dynamic_cast<const torchcc::CaptureError*>(&error) != nullptr) return "CaptureError";
  if (dynamic_cast<const torchcc::PackageError*>(&error) != nullptr) return "PackageError";
  return typeid(error) == typeid(torchcc::Error) ? "Error" : "another class";
}

void mistake(const char* title, const std::function<void()>& make) {
  std::printf("## %s\n", title);
  try {
    make();
    std::printf("no error\n\n");
  } catch (const torchcc::Error& error) {
    std::printf("%s: %s\n\n", kind(error), error.what());
  } catch (const std::exception& error) {
    std::printf("not an error of torchcc: %s\n\n", error.what());
  }
}

struct Tensors {
  torchcc::Function add_relu = test::regions()["add_relu"];
  torchcc::Function blend = test::regions()["blend"];
  torchcc::Function interleave = test::regions()["interleave"];
  torchcc::Function accumulate = test::regions()["accumulate"];
  at::Tensor x = at::ones({16});
  at::Tensor a = at::ones({4, 3}, at::kDouble);
  at::Tensor seven = at::full({3}, 7, at::kLong);
};

void handles(const Tensors& t) {
  mistake("a function that is not there", [] { test::regions()["add_gelu"]; });
  mistake("no package", [] { torchcc::Package()["add_relu"]; });
  mistake("no function", [&] { torchcc::Function()(t.x); });
  mistake("the signature of no function", [] { torchcc::Function().signature(); });
}

void arguments(const Tensors& t) {
  mistake("too few arguments", [&] { t.add_relu(t.x); });
  mistake("too many arguments", [&] { t.add_relu(t.x, t.x, t.x); });
  mistake("two outputs, called as if there was one", [&] { t.blend(t.a, t.a, 1.0, 1, true); });
  mistake("undefined tensor", [&] { t.add_relu(t.x, at::Tensor()); });
  mistake("wrong dtype", [&] { t.add_relu(t.x, t.x.to(at::kDouble)); });
  mistake("wrong dtype in the first of several", [&] { t.blend.call({t.a.to(at::kHalf), t.a, 1.0, 1, true}); });
  mistake("wrong rank", [&] { t.add_relu(t.x, t.x.unsqueeze(0)); });
  mistake("wrong device", [&] { t.add_relu(t.x.to(at::kMeta), t.x); });
  mistake("sparse tensor", [&] { t.add_relu(t.x.to_sparse(), t.x); });
  mistake("nested tensor", [&] {
    const at::Tensor mask = at::ones({2, 3}, at::kBool);
    t.blend.call({at::_nested_tensor_from_mask(at::ones({2, 3, 4}, at::kDouble), mask), t.a, 1.0, 1, true});
  });
  mistake("requires grad", [&] {
    at::Tensor out = at::empty({16});
    const at::Tensor y = t.x.clone().requires_grad_(true);
    t.add_relu.call_out({&out, 1}, std::vector<torchcc::Argument>{t.x, y});
  });
}

void sizes(const Tensors& t) {
  const at::Tensor large = at::ones({4097, 3}, at::kDouble);
  mistake("wrong fixed size", [&] { t.add_relu(t.x, at::ones({15})); });
  mistake("batch 4 against batch 3", [&] { t.blend.call({t.a, t.a.narrow(0, 0, 3), 1.0, 1, true}); });
  mistake("size out of range", [&] { t.blend.call({large, large, 1.0, 1, true}); });
  mistake("size that is an expression", [&] { t.interleave(t.a.select(1, 0), at::ones({7}, at::kDouble)); });
}

void numbers(const Tensors& t) {
  mistake("number where a tensor belongs", [&] { t.blend.call({t.a, 1.0, 1.0, 1, true}); });
  mistake("tensor where a number belongs", [&] { t.blend.call({t.a, t.a, t.a, 1, true}); });
  mistake("double for an integer", [&] { t.blend.call({t.a, t.a, 1.0, 1.0, true}); });
  mistake("bool for a double", [&] { t.blend.call({t.a, t.a, true, 1, true}); });
  mistake("integer for a bool", [&] { t.blend.call({t.a, t.a, 1.0, 1, 1}); });
  mistake("number out of range", [&] { t.blend.call({t.a, t.a, 1.0, 6, true}); });
}

void outputs(const Tensors& t) {
  const auto out_into = [&](at::Tensor out) { t.add_relu.call_out({&out, 1}, Arguments{t.x, t.x}); };
  mistake("wrong number of outputs", [&] {
    at::Tensor out = at::empty({4, 3}, at::kDouble);
    t.blend.call_out({&out, 1}, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("undefined output", [&] { out_into(at::Tensor()); });
  mistake("output of the wrong dtype", [&] { out_into(at::empty({16}, at::kDouble)); });
  mistake("output of the wrong size", [&] { out_into(at::empty({17})); });
  mistake("output of the wrong size, by symbol", [&] {
    at::Tensor outs[]{at::empty({4, 3}, at::kDouble), at::empty({5}, at::kDouble)};
    t.blend.call_out(outs, Arguments{t.a, t.a, 1.0, 1, true});
  });
  mistake("output that is not contiguous", [&] { out_into(at::empty({32}).slice(0, 0, 32, 2)); });
  mistake("output that is negated", [&] { out_into(at::_neg_view(at::empty({16}))); });
  mistake("output that is an input", [&] { out_into(t.x); });
  mistake("output that requires grad", [&] { out_into(at::empty({16}).requires_grad_(true)); });
  mistake("no variant with outputs", [&] {
    at::Tensor out = at::empty({9}, at::kDouble);
    t.interleave.call_out({&out, 1}, Arguments{t.a.select(1, 0), at::ones({8}, at::kDouble)});
  });
}

void mutation(const Tensors& t) {
  mistake("written to, and expanded", [&] { t.accumulate(t.a.narrow(0, 0, 1).expand({4, 3}), t.a); });
  mistake("written to, and the other argument too", [&] { t.accumulate(t.a, t.a); });
}

void models(const Tensors& t) {
  const torchcc::Function network = torchcc::load(test::file("network-portable.pt2"))["forward"];
  const at::Tensor x = at::ones({2, 8});
  mistake("name that no argument has", [&] { network({{"y", x}}); });
  mistake("argument twice", [&] { network({{"x", x}, {"x", x}}); });
  mistake("argument left out", [&] { network(std::initializer_list<torchcc::NamedArgument>{}); });
  mistake("output that is not there", [&] { network({{"x", x}})["y"]; });
  mistake("position of no output", [&] { network({{"x", x}})[1]; });
  mistake("weight that is not there", [&] { network.set_weight("middle.bias", x); });
  mistake("weight of another size", [&] { network.set_weight("last.bias", x); });
  mistake("weight that is undefined", [&] { network.set_weight("last.bias", at::Tensor()); });
  mistake("weight of a function without any", [&] { t.add_relu.set_weight("last.bias", x); });
}

void running(const Tensors& t) {
  mistake("division by zero", [&] { test::regions()["divide"](t.seven, t.seven - 7); });
  mistake("index out of range", [&] { test::regions()["lookup"](at::ones({100, 8}), t.seven + 93); });
}

void files() {
  const test::Folder folder;
  const std::filesystem::path file = folder.path() / "package.pt2";
  const auto rewritten = [](const char* name) { torchcc::load(test::file("rewritten") / name); };
  mistake("missing file", [] { torchcc::load(test::file("absent.pt2")); });
  mistake("a folder", [] { torchcc::load(test::file("rewritten")); });
  mistake("empty file", [&] {
    std::ofstream(file).flush();
    torchcc::load(file);
  });
  mistake("text file", [&] {
    std::ofstream(file) << "import torch\n";
    torchcc::load(file);
  });
  mistake("half a file", [&] {
    std::filesystem::copy_file(test::file("twin.pt2"), file, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(file, 300'000);
    torchcc::load(file);
  });
  mistake("no bytes", [] { torchcc::load(std::span<const std::byte>()); });
  mistake("zip file of something else", [&] { rewritten("bad-only-text.pt2"); });
  mistake("package that torchcc did not make", [&] { rewritten("bad-no-manifest.pt2"); });
  mistake("package of a later torchcc", [&] { rewritten("bad-version-3.pt2"); });
  mistake("damaged manifest", [&] { rewritten("bad-manifest-byte.pt2"); });
  mistake("manifest with a hole", [&] { rewritten("bad-missing-functions-0-signature-inputs-0-dtype.pt2"); });
  mistake("manifest with an unknown dtype", [&] { rewritten("bad-dtype.pt2"); });
  mistake("damaged code", [&] { rewritten("bad-other-byte.pt2"); });
  mistake("code that is missing", [&] { rewritten("bad-library-absent.pt2"); });
  mistake("code that is no code", [&] { rewritten("bad-library-is-json.pt2"); });
  mistake("code of another function", [&] { rewritten("bad-library-of-outputs.pt2"); });
  mistake("made for another torch", [&] { rewritten("bad-torch.pt2"); });
  mistake("made for another CPU", [&] { rewritten("bad-cpu.pt2"); });
  mistake("no code at all", [&] { rewritten("bad-variants-none.pt2"); });
  mistake("temporary folder that is missing", [] {
    setenv("TMPDIR", "/nonexistent", 1);
    torchcc::load(test::file("regions.pt2"));
  });
}

at::Tensor doubled(const at::Tensor& x) { return x * 2; }

void compiling() {
  mistake("no time to compile in", [] { torchcc::compile(doubled, {.name = "doubled", .timeout = 0}); });
  mistake("no variants", [] { torchcc::compile(doubled, {.name = "doubled", .max_variants = 0}); });
  mistake("trace before a call", [] { torchcc::compile(doubled, {.name = "doubled"}).trace(); });
}

}  // namespace

int main() {
  const Tensors tensors;
  handles(tensors);
  arguments(tensors);
  sizes(tensors);
  numbers(tensors);
  outputs(tensors);
  mutation(tensors);
  models(tensors);
  running(tensors);
  compiling();
  files();
}
