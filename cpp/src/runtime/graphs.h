#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "library.h"

namespace torchcc::detail {

/// Why this program cannot make CUDA graphs at all; empty when it can.
std::string why_no_graphs();

/// CUDA graphs of the compiled code of one function: what a call launches is recorded once, and launched as a whole
/// from then on. There is one graph for each combination of thread, stream and sizes, up to a limit, above which the
/// one that was not used for longest goes. Safe from many threads; a call takes a lock only to find its graph.
///
/// A graph works on addresses. Inputs that came at the same address in all calls before it was recorded, and weights,
/// are read where they are; a call with another address records the graph anew, with a copy of this input in memory of
/// the graph's own. Outputs lie in memory of the graph's own, which its next launch writes anew.
class Graphs {
 public:
  struct Input {
    const at::Tensor* tensor;
    bool is_ready;    ///< the compiled code can read its memory as it is
    bool is_mutated;  ///< the code writes into it
    bool is_weight;
    bool has_own_strides = false;  ///< the code reads it with its own strides; else it wants it contiguous
  };

  /// With a reason why the code cannot be captured, run() does nothing. `is_random`: the code draws random numbers.
  Graphs(std::string refusal, bool is_random);
  ~Graphs();

  /// Runs the code by its graph. Returns false when there is none: the first calls run as they are, and so do those of
  /// code of which no graph can be made. Inputs have the sizes of the signature, and need no gradient.
  bool run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs);

  /// Whether run() never does anything.
  bool is_refused() const { return is_refused_.load(std::memory_order_relaxed); }
  int64_t captures() const { return captures_.load(std::memory_order_relaxed); }
  int64_t replays() const { return replays_.load(std::memory_order_relaxed); }
  /// Why calls did not run by a graph; empty when there is nothing to say.
  std::string reason() const;

 private:
  struct Slot;
  struct Entry;

  std::shared_ptr<Entry> find(const Library& library, std::span<const Input> inputs, int64_t stream);
  void capture(Entry& entry, const Library& library, std::span<const Input> inputs);
  bool fits(Entry& entry, std::span<const Input> inputs) const;
  void refuse(Entry& entry, const std::string& reason);

  const bool is_random_;
  std::atomic<bool> is_refused_{false};
  std::atomic<int64_t> captures_{0};
  std::atomic<int64_t> replays_{0};
  mutable std::mutex mutex_;  ///< for what follows
  std::string reason_;
  std::list<std::shared_ptr<Entry>> entries_;  ///< the latest first
};

}  // namespace torchcc::detail
