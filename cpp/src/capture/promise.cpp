#include "promise.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>

#include <c10/core/UndefinedTensorImpl.h>
#include <c10/util/SmallVector.h>
#include <torchcc/dynamic.h>
#include <torchcc/error.h>

#include "message.h"
#include "sizes.h"

namespace torchcc::detail {
namespace {

// Sizes that may be free at once.
constexpr size_t kMostSymbols = 16;

bool is_contiguous(const int64_t* words) {
  int64_t expected = 1;
  for (int64_t d = words[kRank]; d-- > 0;) {
    const int64_t size = words[kSizes + d];
    if (size != 1 && words[kSizes + words[kRank] + d] != expected) return false;
    expected *= size;
  }
  return true;
}

/// Marks of torchcc::dynamic(), by tensor.
struct Marks {
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Marked {
    Weak tensor;  ///< so that its address does not come again
    std::vector<DynamicSize> sizes{};
  };
  std::mutex mutex;
  std::map<const c10::TensorImpl*, Marked> by_tensor;
  std::atomic<bool> is_used{false};

  static Marks& all() {
    static auto& instance = *new Marks;  // threads may still run when the program's statics go
    return instance;
  }
};

/// Whether all sizes in which two recordings differ are promised to make no difference.
bool are_promised(const std::vector<DynamicSize>& promises, const Recording& before, const Recording& now) {
  if (promises.empty() || before.inputs.size() != now.inputs.size()) return false;
  for (size_t i = 0; i < now.inputs.size(); ++i) {
    const int64_t* a = before.trace.value(before.inputs[i].value);
    const int64_t* b = now.trace.value(now.inputs[i].value);
    if (a[kRank] != b[kRank] || !same_layout(a, b)) return false;
    for (int64_t d = 0; d < a[kRank]; ++d) {
      if (a[kSizes + d] == b[kSizes + d]) continue;
      const DynamicSize* promise = promise_of(promises, now, now.inputs[i], d);
      const auto [least, most] = std::minmax(a[kSizes + d], b[kSizes + d]);
      if (promise == nullptr || least < promise->min || most > promise->max) return false;
    }
  }
  return true;
}

}  // namespace

const DynamicSize* promise_of(const std::vector<DynamicSize>& promises, const Recording& recording, const Input& input,
                              int64_t dim) {
  if (input.kind != Input::Kind::argument) return nullptr;
  const int64_t rank = recording.trace.value(input.value)[kRank];
  for (const DynamicSize& promise : promises) {
    const int64_t promised = promise.dim < 0 ? promise.dim + rank : promise.dim;
    if (promise.argument == static_cast<int64_t>(input.argument) && promised == dim) return &promise;
  }
  return nullptr;
}

std::unique_ptr<const PromisedSizes> PromisedSizes::of(const std::vector<DynamicSize>& promises, const Plan& plan) {
  const Recording& recording = plan.recording();
  if (promises.empty() || recording.sizes == nullptr || plan.code() == nullptr) return nullptr;
  if (!recording.result_constants.empty()) return nullptr;
  for (const Result& result : recording.results) {
    if (!result.view.empty()) return nullptr;
  }
  auto made = std::make_unique<PromisedSizes>();
  made->recording_ = &recording;
  if (recording.sizes->symbols > kMostSymbols) return nullptr;
  made->ranges_.resize(recording.sizes->symbols, {2, INT64_MAX});
  made->sizes_.resize(recording.same_as.size());
  for (const Input& input : recording.inputs) {
    if (input.kind != Input::Kind::argument) continue;
    const int64_t* words = recording.trace.value(input.value);
    if (!is_contiguous(words)) return nullptr;
    for (int64_t d = 0; d < words[kRank]; ++d) made->sizes_[input.argument].push_back({words[kSizes + d]});
  }
  for (size_t i = 0; i < recording.same_as.size(); ++i) {
    // Of arguments that no operator uses, nothing is known.
    if (made->sizes_[i].empty() || recording.same_as[i] != i) return nullptr;
  }
  for (const Sizes::Free& free : recording.sizes->free) {
    const DynamicSize* promise = promise_of(promises, recording, recording.inputs[free.input], free.dim);
    if (promise == nullptr) return nullptr;
    made->sizes_[recording.inputs[free.input].argument][static_cast<size_t>(free.dim)].symbol =
        static_cast<int64_t>(free.symbol);
    Range& range = made->ranges_[free.symbol];
    range.min = std::max(range.min, promise->min);
    range.max = std::min(range.max, promise->max);
  }
  made->conditions_ = &plan.code()->signature;
  const bool has_ranges_only =
      made->conditions_->guards.empty() &&
      std::all_of(made->conditions_->symbols.begin(), made->conditions_->symbols.end(),
                  [](const Symbol& symbol) { return symbol.min <= 2 && symbol.max == INT64_MAX; }) &&
      std::all_of(made->conditions_->inputs.begin(), made->conditions_->inputs.end(), [](const Value& value) {
        return std::all_of(value.sizes.begin(), value.sizes.end(),
                           [](const torchcc::Size& size) { return size.is_number() || size.is_symbol(); });
      });
  if (has_ranges_only) made->conditions_ = nullptr;
  return made;
}

bool PromisedSizes::fit(const Leaves& arguments) const {
  std::array<int64_t, kMostSymbols> symbols;
  symbols.fill(-1);
  for (size_t i = 0; i < sizes_.size(); ++i) {
    const at::Tensor& tensor = *arguments.tensors[i];
    const at::IntArrayRef sizes = tensor.sizes();
    for (size_t d = 0; d < sizes.size(); ++d) {
      const Size& size = sizes_[i][d];
      if (size.symbol < 0) {
        if (sizes[d] != size.number) return false;
        continue;
      }
      int64_t& symbol = symbols[static_cast<size_t>(size.symbol)];
      const Range& range = ranges_[static_cast<size_t>(size.symbol)];
      if (symbol < 0) symbol = sizes[d];
      if (sizes[d] != symbol || symbol < range.min || symbol > range.max) return false;
    }
    if (!tensor.is_contiguous()) return false;
  }
  if (conditions_ == nullptr) return true;
  c10::SmallVector<at::IntArrayRef, 16> given;
  for (const Input& input : recording_->inputs) {
    if (input.kind == Input::Kind::argument) {
      given.push_back(arguments.tensors[input.argument]->sizes());
    } else {
      const int64_t* words = recording_->trace.value(input.value);
      given.emplace_back(words + kSizes, static_cast<size_t>(words[kRank]));
    }
  }
  return misfit(*conditions_, given).empty();
}

void Promises::serve(Variant& variant, const Plan& plan) {
  auto sizes = PromisedSizes::of(sizes_, plan);
  if (sizes == nullptr) return;
  promised_.push_back(std::make_unique<const Promised>(Promised{&variant, &plan, std::move(sizes)}));
  auto all = std::make_unique<Plans>(1, promised_.back().get());
  if (const Plans* before = plans()) {
    std::copy_if(before->begin(), before->end(), std::back_inserter(*all),
                 [&](const Promised* other) { return other->plan->code() != plan.code(); });
  }
  plans_.store(all.get(), std::memory_order_release);
  lists_.push_back(std::move(all));
}

void Promises::add_marks(const Leaves& arguments) {
  Marks& marks = Marks::all();
  if (!marks.is_used.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(marks.mutex);
  for (size_t i = 0; i < arguments.tensors.size(); ++i) {
    const auto marked = marks.by_tensor.find(arguments.tensors[i]->unsafeGetTensorImpl());
    if (marked == marks.by_tensor.end()) continue;
    for (DynamicSize size : marked->second.sizes) {
      size.argument = static_cast<int64_t>(i);
      const bool is_known = std::any_of(sizes_.begin(), sizes_.end(), [&](const DynamicSize& known) {
        return known.argument == size.argument && known.dim == size.dim;
      });
      if (!is_known) sizes_.push_back(std::move(size));
    }
  }
}

void Promises::note_broken(const Recording& sample, const Recording& now, const std::string& why) {
  if (are_promised(sizes_, sample, now)) broken_ = why;
}

}  // namespace torchcc::detail

namespace torchcc {

const at::Tensor& dynamic(const at::Tensor& tensor, int64_t dim, const std::string& name,
                          std::pair<int64_t, int64_t> range) {
  const int64_t rank = tensor.defined() ? tensor.dim() : 0;
  const int64_t position = dim < 0 ? dim + rank : dim;
  if (position < 0 || position >= rank || name.empty() || range.first < 0 || range.first > range.second) {
    throw ArgumentError(detail::message(
        "torchcc::dynamic: there can be no such size",
        {{"expected", "a dimension of the tensor, a name, and a range from its smallest to its largest size"},
         {"got", "dimension " + std::to_string(dim) + " of a tensor of rank " + std::to_string(rank) + ", name '" +
                     name + "', " + std::to_string(range.first) + " to " + std::to_string(range.second)},
         {"fix", "correct it, for instance dynamic(x, 0, \"batch\", {2, 4096})"}}));
  }
  detail::Marks& marks = detail::Marks::all();
  const std::lock_guard lock(marks.mutex);
  std::erase_if(marks.by_tensor, [](const auto& entry) { return entry.second.tensor.expired(); });
  c10::TensorImpl* const key = tensor.unsafeGetTensorImpl();
  const auto entry =
      marks.by_tensor.try_emplace(key, detail::Marks::Marked{detail::Marks::Weak(tensor.getIntrusivePtr())}).first;
  std::erase_if(entry->second.sizes, [&](const DynamicSize& size) { return size.dim == position; });
  entry->second.sizes.push_back({0, position, name, range.first, range.second});
  marks.is_used.store(true, std::memory_order_release);
  return tensor;
}

}  // namespace torchcc
