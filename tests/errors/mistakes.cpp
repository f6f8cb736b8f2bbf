// Makes every mistake that a C++ caller can make, once, and prints the messages; test_cpp_mistakes.py compares them
// with cpp_messages.txt. Each message should name the thing, what was expected, what came, and what to do. Here are
// those that only a program with LibTorch can make; the others are in mistakes.h.
#include <fstream>

#include <torchcc/compile.h>

#include "../cpp/support.h"
#include "mistakes.h"

namespace {

using mistakes::Arguments;
using mistakes::mistake;
using mistakes::Tensors;

void other_arguments(const Tensors& t) {
  mistake("a function that is not there", [] { test::regions()["add_gelu"]; });
  mistake("wrong device", [&] { t.add_relu(t.x.to(at::kMeta), t.x); });
  mistake("sparse tensor", [&] { t.add_relu(t.x.to_sparse(), t.x); });
  mistake("nested tensor", [&] {
    const at::Tensor mask = at::ones({2, 3}, at::kBool);
    t.blend.call({at::_nested_tensor_from_mask(at::ones({2, 3, 4}, at::kDouble), mask), t.a, 1.0, 1, true});
  });
  mistake("requires grad", [&] {
    at::Tensor out = at::empty({16});
    const at::Tensor y = t.x.clone().requires_grad_(true);
    t.add_relu.call_out({&out, 1}, Arguments{t.x, y});
  });
}

void other_outputs(const Tensors& t) {
  const auto out_into = [&](at::Tensor out) { t.add_relu.call_out({&out, 1}, Arguments{t.x, t.x}); };
  mistake("output that is negated", [&] { out_into(at::_neg_view(at::empty({16}))); });
  mistake("output that requires grad", [&] { out_into(at::empty({16}).requires_grad_(true)); });
  mistake("no variant with outputs", [&] {
    at::Tensor out = at::empty({9}, at::kDouble);
    t.interleave.call_out({&out, 1}, Arguments{t.a.select(1, 0), at::ones({8}, at::kDouble)});
  });
}

void weights() {
  const torchcc::Function network = torchcc::load(test::file("network-portable.pt2"))["forward"];
  const at::Tensor x = at::ones({2, 8});
  mistake("weight that is not there", [&] { network.set_weight("middle.bias", x); });
  mistake("weight of another size", [&] { network.set_weight("last.bias", x); });
  mistake("weight that is undefined", [&] { network.set_weight("last.bias", at::Tensor()); });
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
  const Tensors tensors(test::regions());
  mistakes::make(tensors);
  other_arguments(tensors);
  other_outputs(tensors);
  weights();
  compiling();
  files();
}
