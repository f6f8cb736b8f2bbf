#include "graphs.h"

#include <algorithm>
#include <functional>
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
#include "numbers.h"

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

/// Per tensor, the first one that has the same storage.
std::vector<size_t> first_with_memory(const std::vector<at::Tensor>& tensors) {
  std::vector<size_t> first(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    while (!shares_memory(tensors[first[i]], tensors[i])) ++first[i];
  }
  return first;
}

/// Tensors like those given, in new memory; what shares memory there does so here.
std::vector<at::Tensor> in_new_memory(const std::vector<at::Tensor>& tensors, const std::vector<size_t>& first) {
  std::vector<at::Tensor> made;
  made.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& like = tensors[i];
    const auto bytes = static_cast<int64_t>(like.storage().nbytes());
    const c10::Storage storage =
        first[i] == i ? at::empty({bytes}, like.options().dtype(at::kByte)).storage() : made[first[i]].storage();
    made.push_back(at::empty({0}, like.options()));
    made.back().set_(storage, like.storage_offset(), like.sizes(), like.strides());
  }
  return made;
}

/// Copies all memory of some tensors to where in_new_memory() has made room for it.
void copy_memory(const std::vector<at::Tensor>& to, const std::vector<at::Tensor>& from,
                 const std::vector<size_t>& first) {
  const auto all_of = [](const at::Tensor& tensor) {
    at::Tensor bytes = at::empty({0}, tensor.options().dtype(at::kByte));
    return bytes.set_(tensor.storage(), 0, {static_cast<int64_t>(tensor.storage().nbytes())}, {1});
  };
  std::vector<at::Tensor> targets;
  std::vector<at::Tensor> sources;
  for (size_t i = 0; i < to.size(); ++i) {
    if (first[i] != i) continue;
    targets.push_back(all_of(to[i]));
    sources.push_back(all_of(from[i]));
  }
  if (!targets.empty()) at::_foreach_copy_(targets, sources);
}

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
  Numbers numbers;  ///< in which the slots of numbers are
  int calls = 0;    ///< that ran as they are
  bool is_refused = false;
  std::unique_ptr<Recorded> graph;
  std::vector<at::Tensor> outputs;  ///< what the graph writes
  std::vector<size_t> first;        ///< see first_with_memory()
  std::vector<size_t> owners;       ///< per output, of its storage, where nobody else has one
  std::weak_ptr<const Lease> lease;
  std::unique_ptr<Graphs> backward;  ///< of code that reads what this graph gave

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
      const bool may_move = !inputs[i].is_weight && !inputs[i].is_kept;
      const bool has_moved = calls > 0 && address != slots[i].address && may_move;
      if (has_moved || !inputs[i].is_ready || inputs[i].is_number) slots[i].is_in_place = false;
      slots[i].address = address;
    }
  }

  void forget() {
    backward.reset();
    graph.reset();
    outputs.clear();
  }
};

Graphs::Graphs(Results results, std::string refusal, bool is_random)
    : results_(results), is_random_(is_random), is_refused_(!refusal.empty()), tally_(std::make_shared<Tally>()) {
  tally_->reason = std::move(refusal);
}
Graphs::Graphs(std::shared_ptr<Tally> tally, bool is_random)
    : results_(Results::shared), is_random_(is_random), is_backward_(true), tally_(std::move(tally)) {}
Graphs::~Graphs() = default;

std::string Graphs::reason() const {
  const std::lock_guard lock(tally_->mutex);
  return tally_->reason.empty() ? tally_->skipped.load(std::memory_order_relaxed) : tally_->reason;
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
    if (inputs[i].is_weight || inputs[i].is_kept) {
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
  const std::lock_guard lock(tally_->mutex);
  tally_->reason = (is_backward_ ? "backward: " : "") + reason;
}

/// Runs the code on the inputs where the graph is to read them.
std::vector<at::Tensor> Graphs::launch(const Entry& entry, const Library& library,
                                       std::span<const Input> inputs) const {
  Handles handles;
  for (size_t i = 0; i < inputs.size(); ++i) {
    handles.push_back(entry.slots[i].is_in_place ? *inputs[i].tensor : entry.slots[i].buffer);
  }
  std::vector<AtenTensorHandle> results(library.outputs());
  handles.run(library, results.data());
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    // Code that gives one tensor twice gives one handle twice.
    const auto same = std::find(results.begin(), results.begin() + static_cast<std::ptrdiff_t>(i), results[i]);
    const auto first = static_cast<size_t>(same - results.begin());
    if (first == i) {
      outputs.push_back(take(results[i]));
    } else {
      outputs.push_back(results_ == Results::kept ? outputs[first].clone() : outputs[first]);
    }
  }
  return outputs;
}

/// Gives the slots of numbers their place on the GPU.
void Graphs::make_room_for_numbers(Entry& entry, std::span<const Input> inputs, c10::Device device) {
  const auto is_number = [](const Input& input) { return input.is_number; };
  const auto count = static_cast<size_t>(std::count_if(inputs.begin(), inputs.end(), is_number));
  if (count == 0) return;
  entry.numbers = Numbers(count, device);
  size_t next = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].is_number) entry.slots[i].buffer = entry.numbers.at(next++);
  }
}

void Graphs::capture(Entry& entry, const Library& library, std::span<const Input> inputs) {
  const c10::InferenceMode off(false);  // a graph serves calls inside of inference mode and outside
  const c10::impl::ExcludeDispatchKeyGuard below(kAbove);
  entry.note(inputs);
  // The graphs of a lane write where others have had what they no longer need. So what has to stay beyond the next
  // launch of another one is copied out, or the graph has memory of its own, where that would be too much to copy.
  const bool is_apart = results_ == Results::kept || results_ == Results::shared;
  std::vector<at::Tensor> outputs;
  const auto record = [&](const std::function<void()>& then) {
    outputs.clear();
    entry.graph.reset();
    entry.graph = Recorded::record(current_lane(library.device()), is_random_, is_apart, [&] {
      outputs = launch(entry, library, inputs);
      then();
    });
  };
  try {
    make_room_for_numbers(entry, inputs, library.device());
    for (size_t i = 0; i < inputs.size(); ++i) {
      Slot& slot = entry.slots[i];
      if (!slot.is_in_place && !slot.buffer.defined()) {
        const at::Tensor& given = *inputs[i].tensor;
        const at::TensorOptions options = given.options().requires_grad(false);
        slot.buffer = inputs[i].has_own_strides ? at::empty_strided(given.sizes(), given.strides(), options)
                                                : at::empty(given.sizes(), options);
      }
    }
    record([] {});
    for (const at::Tensor& output : outputs) {
      for (size_t i = 0; i < inputs.size(); ++i) {
        const at::Tensor& read = entry.slots[i].is_in_place ? *inputs[i].tensor : entry.slots[i].buffer;
        if (shares_memory(output, read)) return refuse(entry, "a result is a view of an argument");
      }
    }
    entry.first = first_with_memory(outputs);
    if (results_ == Results::lent) {
      // The first recording has shown what there is to copy; memory that is to stay must not be allocated in a second.
      entry.outputs = in_new_memory(outputs, entry.first);
      record([&] { copy_memory(entry.outputs, outputs, entry.first); });
    } else {
      entry.outputs = std::move(outputs);
    }
  } catch (const c10::Error& error) {
    return refuse(entry, "CUDA could not record it: " + first_line(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return refuse(entry, "CUDA could not record it: " + one_line(error.what()));
  }
  outputs.clear();
  entry.owners.clear();
  for (const at::Tensor& output : entry.outputs) entry.owners.push_back(output.storage().use_count());
  if (results_ == Results::kept) entry.backward.reset(new Graphs(tally_, is_random_));
  tally_->captures.fetch_add(1, std::memory_order_relaxed);
}

/// Whether a launch would change no result that somebody may still read. If not, notes why.
bool Graphs::is_free(const Entry& entry) const {
  if (results_ == Results::kept && !entry.lease.expired()) {
    tally_->skipped.store("backward has not run yet for the call before, which was by the graph",
                          std::memory_order_relaxed);
    return false;
  }
  for (size_t i = 0; results_ == Results::shared && i < entry.outputs.size(); ++i) {
    if (entry.outputs[i].storage().use_count() == entry.owners[i]) continue;
    tally_->skipped.store("backward: gradients of the call before are still there, and not undefined by zero_grad()",
                          std::memory_order_relaxed);
    return false;
  }
  return true;
}

/// Hands out what a launch has written.
void Graphs::give(const Entry& entry, std::span<at::Tensor> outputs) const {
  if (results_ == Results::copied) {
    std::vector<at::Tensor> copies = in_new_memory(entry.outputs, entry.first);
    copy_memory(copies, entry.outputs, entry.first);
    std::move(copies.begin(), copies.end(), outputs.begin());
    return;
  }
  // Tensors of their own, so that what the program does to them (requires_grad_, resize_) stays with it.
  for (size_t i = 0; i < outputs.size(); ++i) {
    outputs[i] = at::Tensor(entry.outputs[i].unsafeGetTensorImpl()->shallow_copy_and_detach(
        c10::VariableVersion(0), /*allow_tensor_metadata_change=*/true));
  }
}

bool Graphs::run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs,
                 std::shared_ptr<const Lease>* lease) {
  if (is_refused()) return false;
  const c10::Device device = library.device();
  const c10::DeviceGuard guard(device);
  // Where the program makes a graph of its own, the call becomes a part of that.
  if (is_capturing(device)) return false;
  const std::shared_ptr<Entry> found = find(library, inputs, current_stream_id(device));
  Entry& entry = *found;  // which no other thread uses
  if (entry.is_refused || !is_free(entry)) return false;
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
  c10::SmallVector<const at::Tensor*, 8> numbers;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (entry.slots[i].is_in_place) continue;
    if (inputs[i].is_number) {
      numbers.push_back(inputs[i].tensor);
      continue;
    }
    to.push_back(entry.slots[i].buffer);
    from.push_back(*inputs[i].tensor);
  }
  if (!numbers.empty()) entry.numbers.copy(numbers);
  if (to.size() == 1) {
    to.front().copy_(from.front());
  } else if (!to.empty()) {
    at::_foreach_copy_(to, from);
  }
  entry.graph->replay();
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].is_mutated && !entry.slots[i].is_in_place) inputs[i].tensor->copy_(entry.slots[i].buffer);
  }
  give(entry, outputs);
  if (lease != nullptr) {
    *lease = std::make_shared<const Lease>(found);
    entry.lease = *lease;
  }
  (is_backward_ ? tally_->backward_replays : tally_->replays).fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool Graphs::Lease::run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs) const {
  return entry_->backward->run(library, inputs, outputs);
}

}  // namespace torchcc::detail
