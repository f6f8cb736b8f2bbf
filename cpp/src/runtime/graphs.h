#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
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
/// the graph's own. What a graph gives lies at the same addresses after each launch.
class Graphs {
 public:
  struct Input {
    const at::Tensor* tensor;
    bool is_ready;                 ///< the compiled code can read its memory as it is
    bool is_mutated;               ///< the code writes into it
    bool is_weight;                ///< never copied, and of the same sizes in all calls
    bool has_own_strides = false;  ///< the code reads it with its own strides; else it wants it contiguous
    bool is_kept = false;          ///< never copied either: another graph has written it
    bool is_number = false;        ///< on the CPU, and copied to the GPU for each launch; see Numbers
  };

  /// What becomes of a call's results when the graph is launched again, which writes to the same memory.
  enum class Results : uint8_t {
    lent,    ///< they are valid until then
    kept,    ///< it is not launched again before their lease ends
    shared,  ///< it is not launched again while somebody else has one of them
    copied,  ///< they are copies
  };

  /// Keeps the results of one call as they are: while it exists, their graph is not launched again. Code that reads
  /// them (of gradients) can run by a graph of its own.
  class Lease;

  /// With a reason why the code cannot be captured, run() does nothing. `is_random`: the code draws random numbers.
  Graphs(Results results, std::string refusal, bool is_random);
  ~Graphs();

  /// Runs the code by its graph. Returns false when there is none: the first calls run as they are, and so do those of
  /// code of which no graph can be made. Inputs have the sizes of the signature. `lease`: where results are kept.
  bool run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs,
           std::shared_ptr<const Lease>* lease = nullptr);

  /// Whether run() never does anything.
  bool is_refused() const { return is_refused_.load(std::memory_order_relaxed); }
  int64_t captures() const { return tally_->captures.load(std::memory_order_relaxed); }
  int64_t replays() const { return tally_->replays.load(std::memory_order_relaxed); }
  /// Launches of graphs that read results under a lease.
  int64_t backward_replays() const { return tally_->backward_replays.load(std::memory_order_relaxed); }
  /// Why calls did not run by a graph; empty when there is nothing to say.
  std::string reason() const;

 private:
  struct Slot;
  struct Entry;
  /// What happened, also in graphs behind leases, which may outlive the function.
  struct Tally {
    std::atomic<int64_t> captures{0};
    std::atomic<int64_t> replays{0};
    std::atomic<int64_t> backward_replays{0};
    std::atomic<const char*> skipped{""};  ///< why the latest call that could have run by its graph did not
    mutable std::mutex mutex;
    std::string reason;  ///< why some graph cannot be made
  };

  /// For code that reads what others gave.
  Graphs(std::shared_ptr<Tally> tally, bool is_random);

  std::shared_ptr<Entry> find(const Library& library, std::span<const Input> inputs, int64_t stream);
  static void make_room_for_numbers(Entry& entry, std::span<const Input> inputs, c10::Device device);
  void capture(Entry& entry, const Library& library, std::span<const Input> inputs);
  std::vector<at::Tensor> launch(const Entry& entry, const Library& library, std::span<const Input> inputs) const;
  bool fits(Entry& entry, std::span<const Input> inputs) const;
  bool is_free(const Entry& entry) const;
  void give(const Entry& entry, std::span<at::Tensor> outputs) const;
  void refuse(Entry& entry, const std::string& reason);

  const Results results_;
  const bool is_random_;
  const bool is_backward_ = false;
  std::atomic<bool> is_refused_{false};
  std::shared_ptr<Tally> tally_;
  std::mutex mutex_;                           ///< for what follows
  std::list<std::shared_ptr<Entry>> entries_;  ///< the latest first
};

class Graphs::Lease {
 public:
  explicit Lease(std::shared_ptr<Entry> entry) : entry_(std::move(entry)) {}

  /// Runs code that reads the results, as Graphs::run() does.
  bool run(const Library& library, std::span<const Input> inputs, std::span<at::Tensor> outputs) const;

 private:
  std::shared_ptr<Entry> entry_;
};

}  // namespace torchcc::detail
