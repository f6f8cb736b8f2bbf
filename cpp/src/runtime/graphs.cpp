#include "graphs.h"

#include <algorithm>
#include <utility>

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torchcc/error.h>

#include "device.h"
#include "graph_capture.h"
#include "handles.h"
#include "message.h"

namespace torchcc::detail {
namespace {

// Calls that run as they are: the first loads kernels, and makes what libraries of CUDA keep; the second shows which
// inputs stay where they are.
constexpr int kWarmUp = 2;
// Graphs of one function: for so many combinations of thread, stream and sizes.
constexpr size_t kMost = 16;

// What is in a graph has no gradients and no casts of its own.
constexpr c10::DispatchKeySet kAbove = c10::autograd_dispatch_keyset_with_ADInplaceOrView;

bool shares_memory(const at::Tensor& a, const at::Tensor& b) { return a.storage().is_alias_of(b.storage()); }

}  // namespace

struct Graphs::Slot {
  const void* address = nullptr;  ///< of the latest call
  bool is_in_place = true;        ///< the graph reads the caller's memory
  at::Tensor buffer;              ///< else this
};

struct Graphs::Entry {
  const Library* library = nullptr;
  std::thread::id thread;
  int64_t stream = 0;
  c10::SmallVector<int64_t, 16> sizes;  ///< of all inputs but weights, one after the other
  std::vector<Slot> slots;
  int calls = 0;  ///< that ran as they are
  bool is_refused = false;
  std::unique_ptr<Recorded> graph;
  std::vector<at::Tensor> outputs;

  bool is_for(const Library& code, std::span<const Input> inputs, int64_t on) const {
    if (library != &code || stream != on || thread != std::this_thread::get_id()) return false;
    const int64_t* next = sizes.begin();
    for (const Input& input : inputs) {
      if (input.is_weight) continue;
      for (const int64_t size : input.tensor->sizes()) {
        if (*next++ != size) return false;  // the rank is the signature's
      }
    }
    return true;
  }

  /// Notes where the inputs of a call are.
  void note(std::span<const Input> inputs) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const void* address = inputs[i].tensor->const_data_ptr();
      const bool has_moved = calls > 0 && address != slots[i].address && !inputs[i].is_weight;
      if (has_moved || !inputs[i].is_ready) slots[i].is_in_place = false;
      slots[i].address = address;
    }
  }

  void forget() {
    graph.reset();
    outputs.clear();
  }
};

Graphs::Graphs(std::string refusal, bool is_random)
    : is_random_(is_random), is_refused_(!refusal.empty()), reason_(std::move(refusal)) {}
Graphs::~Graphs() = default;

std::string Graphs::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

std::shared_ptr<Graphs::Entry> Graphs::find(const Library& library, std::span<const Input> inputs, int64_t stream) {
  std::shared_ptr<Entry> evicted;  // ends outside of the lock
  const std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (!(*entry)->is_for(library, inputs, stream)) continue;
    if (entry != entries_.begin()) entries_.splice(entries_.begin(), entries_, entry);
    return entries_.front();
  }
  auto entry = std::make_shared<Entry>();
  entry->library = &library;
  entry->thread = std::this_thread::get_id();
  entry->stream = stream;
  for (const Input& input : inputs) {
    if (!input.is_weight) entry->sizes.append(input.tensor->sizes().begin(), input.tensor->sizes().end());
  }
  entry->slots.resize(inputs.size());
  entries_.push_front(entry);
  if (entries_.size() > kMost) {
    evicted = std::move(entries_.back());
    entries_.pop_back();
  }
  return entry;
}

/// Whether the graph reads where the inputs are. If not, the graph goes.
bool Graphs::fits(Entry& entry, std::span<const Input> inputs) const {
  bool same = true;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Slot& slot = entry.slots[i];
    if (!slot.is_in_place) continue;
    if (inputs[i].tensor->const_data_ptr() == slot.address && inputs[i].is_ready) [[likely]]
      continue;
    same = false;
    if (inputs[i].is_weight) {
      entry.calls = kWarmUp - 1;  // weights may be replaced often: only those that stay for a call are worth a graph
    } else {
      slot.is_in_place = false;
    }
  }
  if (!same) entry.forget();
  return same;
}

void Graphs::refuse(Entry& entry, const std::string& reason) {
  entry.forget();
  entry.is_refused = true;
  const std::lock_guard lock(mutex_);
  reason_ = reason;
}

void Graphs::capture(Entry& entry, const Library& library, std::span<const Input> inputs) {
  const c10::InferenceMode off(false);  // a graph serves calls inside of inference mode and outside
  const c10::impl::ExcludeDispatchKeyGuard below(kAbove);
  entry.note(inputs);
  try {
    for (size_t i = 0; i < inputs.size(); ++i) {
      Slot& slot = entry.slots[i];
      if (!slot.is_in_place && !slot.buffer.defined()) {
        const at::Tensor& given = *inputs[i].tensor;
        const at::TensorOptions options = given.options().requires_grad(false);
        slot.buffer = inputs[i].has_own_strides ? at::empty_strided(given.sizes(), given.strides(), options)
                                                : at::empty(given.sizes(), options);
      }
    }
    std::vector<at::Tensor> outputs;
    entry.graph = Recorded::record(current_lane(library.device()), is_random_, [&] {
      Handles handles;
      for (size_t i = 0; i < inputs.size(); ++i) {
        handles.push_back(entry.slots[i].is_in_place ? *inputs[i].tensor : entry.slots[i].buffer);
      }
      std::vector<AtenTensorHandle> results(library.outputs());
      handles.run(library, results.data());
      for (size_t i = 0; i < results.size(); ++i) {
        // Code that gives one tensor twice gives one handle twice.
        const auto same = std::find(results.begin(), results.begin() + static_cast<std::ptrdiff_t>(i), results[i]);
        const auto first = static_cast<size_t>(same - results.begin());
        outputs.push_back(first == i ? take(results[i]) : outputs[first]);
      }
    });
    entry.outputs = std::move(outputs);
  } catch (const c10::Error& error) {
    return refuse(entry, "CUDA could not record it: " + first_line(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return refuse(entry, "CUDA could not record it: " + one_line(error.what()));
  }
  for (const at::Tensor& output : entry.outputs) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const at::Tensor& read = entry.slots[i].is_in_place ? *inputs[i].tensor : entry.slots[i].buffer;
      if (shares_memory(output, read)) return refuse(entry, "a result is a view of an argument");
    }
  }
  captures_.fetch_add(1, std::memory_order_relaxed);
}

bool Graphs::run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs) {
  if (is_refused()) return false;
  const c10::Device device = library.device();
  const c10::DeviceGuard guard(device);
  // Where the program makes a graph of its own, the call becomes a part of that.
  if (is_capturing(device)) return false;
  const std::shared_ptr<Entry> found = find(library, inputs, current_stream_id(device));
  Entry& entry = *found;  // which no other thread uses
  if (entry.is_refused) return false;
  if (entry.graph == nullptr || !fits(entry, inputs)) {
    if (entry.calls < kWarmUp) {
      entry.note(inputs);
      ++entry.calls;
      return false;
    }
    capture(entry, library, inputs);
    if (entry.graph == nullptr) return false;
  }
  const c10::impl::ExcludeDispatchKeyGuard below(kAbove);
  c10::SmallVector<at::Tensor, 8> to;
  c10::SmallVector<at::Tensor, 8> from;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (entry.slots[i].is_in_place) continue;
    to.push_back(entry.slots[i].buffer);
    from.push_back(*inputs[i].tensor);
  }
  if (to.size() == 1) {
    to.front().copy_(from.front());
  } else if (!to.empty()) {
    at::_foreach_copy_(to, from);
  }
  entry.graph->replay();
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].is_mutated && !entry.slots[i].is_in_place) inputs[i].tensor->copy_(entry.slots[i].buffer);
  }
  // Tensors of their own, so that what the program does to them (requires_grad_, resize_) stays with it.
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i] = at::Tensor(entry.outputs[i].unsafeGetTensorImpl()->shallow_copy_and_detach(
        c10::VariableVersion(0), /*allow_tensor_metadata_change=*/true));
  }
  replays_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

}  // namespace torchcc::detail
