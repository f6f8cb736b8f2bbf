#include "guards.h"

#include <algorithm>
#include <bit>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <torchcc/signature.h>

#include "device.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

constexpr int64_t kDefined = 1;
constexpr int64_t kRequiresGrad = 2;
constexpr int64_t kPending = 4;  // conjugate or negative
constexpr int64_t kInference = 8;
constexpr int64_t kDevices = 16;  // times 1 more than the number of the GPU

int64_t flags_of(const at::Tensor& tensor) {
  return kDefined | (tensor.is_cuda() ? (1 + tensor.get_device()) * kDevices : 0) |
         (tensor.requires_grad() ? kRequiresGrad : 0) | (tensor.is_conj() || tensor.is_neg() ? kPending : 0) |
         (tensor.is_inference() ? kInference : 0);
}

// Per tensor: flags, dtype, rank, sizes, strides.
void append(std::vector<int64_t>& words, const at::Tensor& tensor) {
  if (!tensor.defined()) {
    words.push_back(0);
    return;
  }
  words.push_back(flags_of(tensor));
  words.push_back(static_cast<int64_t>(tensor.scalar_type()));
  if (!is_ordinary(tensor)) {
    words.push_back(-1);
    return;
  }
  words.push_back(tensor.dim());
  words.insert(words.end(), tensor.sizes().begin(), tensor.sizes().end());
  words.insert(words.end(), tensor.strides().begin(), tensor.strides().end());
}

/// Compares one tensor; moves `words` behind what stands for it.
bool fits(const at::Tensor& tensor, const int64_t*& words) {
  if (words[0] == 0 || !tensor.defined()) {
    if (words[0] != 0 || tensor.defined()) return false;
    ++words;
    return true;
  }
  if (words[2] < 0 || !is_ordinary(tensor)) {
    if (words[2] >= 0 || is_ordinary(tensor)) return false;
    words += 3;
    return true;
  }
  const at::IntArrayRef sizes = tensor.sizes();
  if (words[1] != static_cast<int64_t>(tensor.scalar_type()) || words[2] != static_cast<int64_t>(sizes.size()) ||
      words[0] != flags_of(tensor)) {
    return false;
  }
  words += 3;
  if (!std::equal(sizes.begin(), sizes.end(), words)) return false;
  words += sizes.size();
  const at::IntArrayRef strides = tensor.strides();
  if (!std::equal(strides.begin(), strides.end(), words)) return false;
  words += strides.size();
  return true;
}

/// Words of one tensor, sizes and strides among them; 1 and 3 of them where a tensor is undefined or no ordinary one.
size_t count(const int64_t* words) {
  if (words[0] == 0) return 1;
  return words[2] < 0 ? 3 : 3 + 2 * static_cast<size_t>(words[2]);
}

/// Whether code for one size may be right for another.
bool may_share(int64_t size, int64_t other) { return size == other || (size >= 2 && other >= 2); }

std::string type_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::string text = dtype_name(tensor.scalar_type()) + "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  text += tensor.is_cuda() ? "] on cuda" : "]";
  if (is_ordinary(tensor) && !tensor.is_contiguous()) {
    text += " with strides [";
    for (int64_t d = 0; d < tensor.dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(tensor.stride(d));
    text += "]";
  }
  return text + (tensor.requires_grad() ? " that requires grad" : "") +
         (tensor.is_inference() ? " of inference mode" : "");
}

/// The arguments as people write them; the text of the leaves has "$" for tensors.
std::string text_of(const Leaves& arguments) {
  std::string text;
  size_t next = 0;
  bool quoted = false;
  for (const char letter : arguments.text == nullptr ? std::string() : *arguments.text) {
    if (letter == '"') quoted = !quoted;
    if (letter == '$' && !quoted && next < arguments.tensors.size()) {
      text += type_of(*arguments.tensors[next++]);
    } else {
      text += letter;
    }
  }
  return text;
}

}  // namespace

uint64_t environment() {
  const at::Context& context = at::globalContext();
  uint64_t word = 0;
  const auto add = [&](uint64_t value, int bits) { word = word << bits | value; };
  add(at::GradMode::is_enabled(), 1);
  add(c10::InferenceMode::is_enabled(), 1);
  const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  add(autocast, 1);
  add(autocast ? static_cast<uint64_t>(at::autocast::get_autocast_dtype(at::kCPU)) : 0, 8);
  add(static_cast<uint64_t>(c10::get_default_dtype_as_scalartype()), 8);
  add(context.deterministicAlgorithms(), 1);
  add(context.deterministicAlgorithmsWarnOnly(), 1);
  add(static_cast<uint64_t>(context.float32MatmulPrecision()), 4);
  const bool on_gpu = has_gpu();
  const bool gpu_autocast = on_gpu && at::autocast::is_autocast_enabled(at::kCUDA);
  add(gpu_autocast, 1);
  add(gpu_autocast ? static_cast<uint64_t>(at::autocast::get_autocast_dtype(at::kCUDA)) : 0, 8);
  add(on_gpu ? static_cast<uint64_t>(current_gpu().index()) : 0, 8);
  return word;
}

std::string environment_difference(uint64_t before, uint64_t after) {
  constexpr std::pair<const char*, int> kFields[] = {{"the current GPU", 8},
                                                     {"the dtype of autocast on GPUs", 8},
                                                     {"autocast on GPUs", 1},
                                                     {"the precision of matrix products", 4},
                                                     {"deterministic algorithms (warn only)", 1},
                                                     {"deterministic algorithms", 1},
                                                     {"the default dtype", 8},
                                                     {"the dtype of autocast", 8},
                                                     {"autocast", 1},
                                                     {"inference mode", 1},
                                                     {"grad mode", 1}};
  for (const auto& [name, bits] : kFields) {
    const uint64_t mask = (uint64_t{1} << bits) - 1;
    if ((before & mask) != (after & mask)) return name;
    before >>= bits;
    after >>= bits;
  }
  return "";
}

Guards::Guards(const Leaves& arguments, std::vector<int64_t> modes, uint64_t environment, std::vector<uint64_t> closure)
    : tensors_(arguments.tensors.size()),
      constants_(arguments.constants.begin(), arguments.constants.end()),
      modes_(std::move(modes)),
      environment_(environment),
      closure_(std::move(closure)),
      text_(text_of(arguments)) {
  hash_ = hash_of(arguments);
  for (const at::Tensor* tensor : arguments.tensors) append(words_, *tensor);
}

bool Guards::same_call(const Guards& other) const {
  return words_ == other.words_ && tensors_ == other.tensors_ && constants_ == other.constants_ &&
         modes_ == other.modes_ && environment_ == other.environment_;
}

bool Guards::same_but_for_sizes(const Guards& other) const {
  if (words_.size() != other.words_.size() || tensors_ != other.tensors_ || constants_ != other.constants_ ||
      modes_ != other.modes_ || environment_ != other.environment_) {
    return false;
  }
  const int64_t* other_words = other.words_.data();
  for (const int64_t* words = words_.data(); words != words_.data() + words_.size();) {
    const size_t size = count(words);
    if (count(other_words) != size || !std::equal(words, words + std::min<size_t>(size, 3), other_words)) return false;
    for (int64_t d = 0; size > 3 && d < words[2]; ++d) {
      if (!may_share(words[3 + d], other_words[3 + d])) return false;
    }
    words += size;
    other_words += size;
  }
  return true;
}

uint64_t Guards::hash_of(const Leaves& arguments) {
  uint64_t hash = 0;
  for (const at::Tensor* tensor : arguments.tensors) {
    if (!tensor->defined() || !is_ordinary(*tensor)) continue;
    for (const int64_t size : tensor->sizes()) {
      hash = (std::rotl(hash, 5) ^ static_cast<uint64_t>(size)) * 0x9e3779b97f4a7c15;  // 2^64 over the golden ratio
    }
  }
  return hash;
}

bool Guards::fit_but_for_sizes(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
                               const ClosureWatch& watch) const {
  if (!fit_settings(arguments, environment)) return false;
  const int64_t* words = words_.data();
  for (const at::Tensor* tensor : arguments.tensors) {
    const bool is_ordinary_one = words[0] != 0 && words[2] >= 0;
    if (is_ordinary_one && (!tensor->defined() || !is_ordinary(*tensor) || words[0] != flags_of(*tensor) ||
                            words[1] != static_cast<int64_t>(tensor->scalar_type()) || words[2] != tensor->dim())) {
      return false;
    }
    for (int64_t d = 0; is_ordinary_one && d < words[2]; ++d) {
      if (!may_share(words[3 + d], tensor->size(d))) return false;
    }
    const int64_t* unchanged = words;
    if (!is_ordinary_one && !fits(*tensor, unchanged)) return false;
    words += count(words);
  }
  return modes.equals(modes_) && watch.is(closure_);
}

bool Guards::fit_settings(const Leaves& arguments, uint64_t environment) const {
  return arguments.tensors.size() == tensors_ && environment == environment_ &&
         std::equal(constants_.begin(), constants_.end(), arguments.constants.begin(), arguments.constants.end());
}

bool Guards::fit_but_for_closure(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment) const {
  if (!fit_settings(arguments, environment)) return false;
  const int64_t* words = words_.data();
  for (const at::Tensor* tensor : arguments.tensors) {
    if (!fits(*tensor, words)) return false;
  }
  return modes.equals(modes_);
}

std::string Guards::misfit(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
                           const ClosureWatch& watch) const {
  if (environment != environment_) return environment_difference(environment_, environment);
  if (arguments.tensors.size() != tensors_) return "the number of tensors in the arguments";
  const int64_t* words = words_.data();
  for (size_t i = 0; i < tensors_; ++i) {
    if (!fits(*arguments.tensors[i], words)) {
      return "tensor " + std::to_string(i) + " of the arguments (now " + type_of(*arguments.tensors[i]) + ")";
    }
  }
  if (!std::equal(constants_.begin(), constants_.end(), arguments.constants.begin(), arguments.constants.end())) {
    return "a number in the arguments (now " + text_of(arguments) + ")";
  }
  if (!modes.equals(modes_)) return "the training mode of the module or of a part of it";
  if (!watch.is(closure_)) return "a C++ variable that the function captures";
  return "";
}

}  // namespace torchcc::detail
