#include "family.h"

#include <algorithm>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/nan_to_num.h>
#include <torch/csrc/autograd/autograd.h>

#include "device.h"
#include "generator.h"
#include "gradients.h"
#include "handles.h"
#include "message.h"
#include "numbers.h"
#include "promise.h"

namespace torchcc::detail {
namespace {

// Times that code for many sizes is made, anew if other numbers turn out to differ.
constexpr int64_t kCompilations = 3;

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

/// The same for all values of a recording: compiled code does not round between operators to what these have.
double tolerance(const Recording& recording) {
  double largest = 0;
  for (size_t id = 0; id < recording.trace.value_begin.size(); ++id) {
    const auto dtype = static_cast<c10::ScalarType>(recording.trace.value(static_cast<ValueId>(id))[kDtype]);
    if (dtype == at::kHalf || dtype == at::kBFloat16) largest = std::max(largest, tolerance(dtype));
  }
  return largest;
}

double largest_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const at::Tensor wide = tensor.to(tensor.is_complex() ? at::kComplexDouble : at::kDouble);
  return at::nan_to_num(at::abs(wide), 0.0, 0.0, 0.0).max().item<double>();
}

/// `least`: the least tolerance; `floor`: differences that say nothing.
bool is_close(const at::Tensor& got, const at::Tensor& expected, double least, double floor = 0) {
  if (!expected.is_floating_point() && !expected.is_complex()) return at::equal(got, expected);
  if (expected.numel() == 0) return true;
  const auto wide = expected.is_complex() ? at::kComplexDouble : at::kDouble;
  const at::Tensor a = got.to(wide);
  const at::Tensor b = expected.to(wide);
  const double relative = std::max(least, tolerance(expected.scalar_type()));
  return at::allclose(a, b, relative, std::max(floor, relative * largest_of(b)), /*equal_nan=*/true);
}

/// A stride that nothing steps over does not count.
bool same_strides(const at::Tensor& tensor, const int64_t* words) {
  if (tensor.numel() == 0) return true;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != words[kSizes + words[kRank] + d]) return false;
  }
  return true;
}

std::vector<at::Tensor> run(const Artifact& code, c10::ArrayRef<at::Tensor> inputs) {
  const c10::AutoGradMode no_grad(false);
  Handles handles;
  for (const at::Tensor& input : inputs) handles.push_back(input.detach().resolve_conj().resolve_neg());
  std::vector<AtenTensorHandle> outputs(code.library->outputs());
  handles.run(*code.library, outputs.data());
  std::vector<at::Tensor> made;
  for (AtenTensorHandle output : outputs) made.push_back(take(output));
  return made;
}

/// Likewise, and with the recorded gradients of the outputs through the code for gradients.
std::vector<at::Tensor> run_with_gradients(const std::shared_ptr<const Recording>& recording, const Artifact& code,
                                           c10::ArrayRef<at::Tensor> inputs, std::vector<at::Tensor>& gradients) {
  const c10::AutoGradMode grad(true);
  const auto training = std::make_shared<const Training>(recording, code);
  std::vector<at::Tensor> outputs =
      call_with_gradients(training, inputs, training->needs, [&] { return Computed{run(code, inputs)}; });
  if (recording->tangents.empty()) return outputs;
  std::vector<at::Tensor> roots;
  std::vector<at::Tensor> leaves;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (recording->output_grads[i]) roots.push_back(outputs[i]);
  }
  for (const at::Tensor& input : inputs) {
    if (input.requires_grad()) leaves.push_back(input);
  }
  gradients = torch::autograd::grad(roots, leaves, recording->tangents, /*retain_graph=*/false, /*create_graph=*/false,
                                    /*allow_unused=*/true);
  return outputs;
}

/// What the results of code differ in from what a call gave.
std::string difference_of(const std::shared_ptr<const Recording>& recording, const Artifact& code) {
  // With other options than PyTorch's own numbers, the code draws others.
  const bool has_values = !recording->random_state.defined() && !recording->gpu_random_state.defined();
  const double least = tolerance(*recording);
  const KeptGenerator generator(at::detail::getDefaultCPUGenerator(), recording->random_state);
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> written;
  for (const Input& input : recording->inputs) {
    inputs.push_back(aligned(input.content().detach()));
    if (input.written) written.push_back(inputs.back());
    if (recording->trains && input.requires_grad) inputs.back().requires_grad_(true);
  }
  move_numbers(inputs, code.signature, code.library->device());
  std::vector<at::Tensor> gradients;
  const std::vector<at::Tensor> got =
      recording->trains ? run_with_gradients(recording, code, inputs, gradients) : run(code, inputs);
  for (size_t i = 0; i < recording->outputs.size(); ++i) {
    const at::Tensor& expected = recording->expected[i];
    const int64_t* words = recording->trace.value(recording->outputs[i]);
    const std::string title = "output " + std::to_string(i) + " of the code for many sizes ";
    if (got[i].scalar_type() != expected.scalar_type() || got[i].sizes() != expected.sizes()) {
      return title + "has another form";
    }
    if (!same_strides(got[i], words)) return title + "has other strides";
    if (has_values && !is_close(got[i].detach(), expected, least)) return title + "differs";
  }
  for (size_t i = 0; i < written.size() && has_values; ++i) {
    if (!is_close(written[i], recording->after[i], least)) return "the code for many sizes writes something else";
  }
  // What cancels out, as the gradient of a bias in front of a batch norm, is rounding errors of terms as large as
  // others.
  double largest = 0;
  for (const at::Tensor& expected : recording->gradients) {
    if (expected.defined()) largest = std::max(largest, largest_of(expected));
  }
  if (recording->trains && recording->gradients.empty()) return "there are no gradients to compare the code's with";
  for (size_t i = 0; i < recording->gradients.size(); ++i) {
    const at::Tensor& expected = recording->gradients[i];
    const std::string title = "gradient " + std::to_string(i) + " of the code for many sizes ";
    if (gradients[i].defined() != expected.defined()) return title + "is there where the function has none, or not";
    if (!expected.defined()) continue;
    if (gradients[i].sizes() != expected.sizes()) return title + "has other sizes";
    const double floor = 0.1 * std::max(least, tolerance(expected.scalar_type())) * largest;
    if (has_values && !is_close(gradients[i], expected, least, floor)) return title + "differs";
  }
  return "";
}

}  // namespace

std::shared_ptr<const Sizes> Family::explain(const Recording& now, const std::vector<DynamicSize>& promises) {
  if (compilations_ >= kCompilations) return nullptr;
  std::vector<const Recording*> samples;
  for (const auto& sample : samples_) samples.push_back(sample.get());
  samples.push_back(&now);
  std::shared_ptr<Sizes> sizes = detail::explain(samples, reason_);
  samples.pop_back();
  for (; sizes == nullptr && samples.size() > 1; samples.pop_back()) {
    sizes = detail::explain({samples.back(), &now}, reason_);
  }
  if (sizes == nullptr) return nullptr;
  reason_.clear();
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
  if (samples_.size() == kSamples) samples_.erase(samples_.begin());
  samples_.push_back(std::move(recording));
}

const Family::Code* Family::code_for(Recording& now) {
  for (const Code& code : codes_) {
    reason_ = departure(*code.sample, *code.sample->sizes, now);
    if (reason_.empty()) reason_ = misfit(code.artifact->signature, now);
    if (!reason_.empty()) continue;
    now.sizes = code.sample->sizes;
    return &code;
  }
  return nullptr;
}

bool Family::end_compilation(Code made, std::string why) {
  is_compiling_ = false;
  ++compilations_;
  if (made.artifact != nullptr) why = misfit(made.artifact->signature, *made.sample);
  if (made.artifact == nullptr || !why.empty()) {
    note_failure(std::move(why));
    return false;
  }
  codes_.push_back(std::move(made));
  note_served();
  return true;
}

void Family::note_failure(std::string why) {
  reason_ = std::move(why);
  ++failures_;
}

bool may_be_sized(const Recording& recording) {
  return recording.refusal.empty() && recording.has_work() && recording.shared.empty() &&
         std::none_of(recording.inputs.begin(), recording.inputs.end(),
                      [](const Input& input) { return input.is_base; });
}

std::string compare(const std::shared_ptr<const Recording>& recording, const Artifact& code) {
  try {
    return difference_of(recording, code);
  } catch (const std::exception& failure) {
    return first_line(failure.what());
  }
}

}  // namespace torchcc::detail
