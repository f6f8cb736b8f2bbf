#include "family.h"

#include <algorithm>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/nan_to_num.h>

#include "device.h"
#include "handles.h"
#include "promise.h"

namespace torchcc::detail {
namespace {

/// How far compiled code may be from PyTorch's operators, relative to the largest result.
double tolerance(c10::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
    case at::kComplexDouble: return 1e-9;
    case at::kHalf: return 1e-2;
    case at::kBFloat16: return 5e-2;
    default: return 1e-4;
  }
}

bool is_close(const at::Tensor& got, const at::Tensor& expected) {
  if (!expected.is_floating_point() && !expected.is_complex()) return at::equal(got, expected);
  if (expected.numel() == 0) return true;
  const auto wide = expected.is_complex() ? at::kComplexDouble : at::kDouble;
  const at::Tensor a = got.to(wide);
  const at::Tensor b = expected.to(wide);
  const double relative = tolerance(expected.scalar_type());
  const double largest = at::nan_to_num(at::abs(b), 0.0, 0.0, 0.0).max().item<double>();
  return at::allclose(a, b, relative, relative * largest, /*equal_nan=*/true);
}

/// A stride that nothing steps over does not count.
bool same_strides(const at::Tensor& tensor, const int64_t* words) {
  if (tensor.numel() == 0) return true;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != words[kSizes + words[kRank] + d]) return false;
  }
  return true;
}

}  // namespace

std::shared_ptr<const Sizes> explain(Family& family, const Recording& now, const std::vector<DynamicSize>& promises) {
  std::vector<const Recording*> samples;
  for (const auto& sample : family.samples) samples.push_back(sample.get());
  samples.push_back(&now);
  std::shared_ptr<Sizes> sizes = explain(samples, family.reason);
  samples.pop_back();
  for (; sizes == nullptr && samples.size() > 1; samples.pop_back()) {
    sizes = explain({samples.back(), &now}, family.reason);
  }
  if (sizes == nullptr) return nullptr;
  family.reason.clear();
  for (const Sizes::Free& free : sizes->free) {
    const DynamicSize* promise = promise_of(promises, now, now.inputs[free.input], free.dim);
    if (promise == nullptr) continue;
    const auto taken = std::find(sizes->names.begin(), sizes->names.end(), promise->name);
    if (taken == sizes->names.end()) sizes->names[free.symbol] = promise->name;
  }
  return sizes;
}

void Family::add(std::shared_ptr<const Recording> recording) {
  constexpr size_t kSamples = 4;
  if (samples.size() == kSamples) samples.erase(samples.begin());
  samples.push_back(std::move(recording));
}

bool may_be_sized(const Recording& recording) {
  return recording.refusal.empty() && !recording.trains && recording.has_work() && recording.shared.empty() &&
         std::none_of(recording.inputs.begin(), recording.inputs.end(),
                      [](const Input& input) { return input.is_base; });
}

std::string compare(const Recording& recording, const Artifact& code) {
  const c10::AutoGradMode no_grad(false);
  Handles handles;
  std::vector<at::Tensor> written;
  for (const Input& input : recording.inputs) {
    const at::Tensor tensor = aligned(input.content().detach());
    if (input.written) written.push_back(tensor);
    handles.push_back(tensor.resolve_conj().resolve_neg());
  }
  std::vector<at::Tensor> got(recording.outputs.size());
  {
    c10::SmallVector<AtenTensorHandle, 4> outputs(got.size());
    handles.run(*code.library, outputs.data());
    for (size_t i = 0; i < got.size(); ++i) got[i] = take(outputs[i]);
  }
  const bool has_values = !recording.random_state.defined();
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor& expected = recording.expected[i];
    const int64_t* words = recording.trace.value(recording.outputs[i]);
    const std::string title = "output " + std::to_string(i) + " of the code for many sizes ";
    if (got[i].scalar_type() != expected.scalar_type() || got[i].sizes() != expected.sizes()) {
      return title + "has another form";
    }
    if (!same_strides(got[i], words)) return title + "has other strides";
    if (has_values && !is_close(got[i], expected)) return title + "differs";
  }
  for (size_t i = 0; i < written.size() && has_values; ++i) {
    if (!is_close(written[i], recording.after[i])) return "the code for many sizes writes something else";
  }
  return "";
}

}  // namespace torchcc::detail
