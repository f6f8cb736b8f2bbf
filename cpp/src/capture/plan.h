#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include <torchcc/compile_options.h>
#include <torchcc/detail/core.h>

#include "aliases.h"
#include "artifact.h"
#include "graphs.h"
#include "recording.h"

namespace torchcc::detail {

/// Code in which captured tensors are constants, and what these were when it was compiled.
struct Frozen {
  struct Weight {
    const Captured* captured = nullptr;
    Snapshot before{};
    bool operator==(const Weight&) const = default;
  };
  std::shared_ptr<const Artifact> code;
  std::vector<size_t> inputs;  ///< the inputs that the code still takes
  std::vector<Weight> weights;

  /// Whether all weights are the tensors at the versions that the code was compiled with.
  bool is_current() const;
};

/// The versions of all weights that a frozen form would make constant; empty when there is none, or one without a
/// version counter that must not be frozen.
std::vector<Frozen::Weight> freezable(const Recording& recording, bool inference_tensors);

/// What plans with the same code share: the form with packed weights, as soon as there is one; and CUDA graphs, null
/// where these are not wanted.
struct Packed {
  std::atomic<const Frozen*> form{nullptr};
  std::unique_ptr<Graphs> graphs;
};

struct Training;

/// A recording with compiled code: runs it in place of the function. Safe from many threads.
class Plan {
 public:
  /// `code` is null when there is nothing to compute; `packed` when no other plan has the same code.
  Plan(std::shared_ptr<const Recording> recording, std::shared_ptr<const Artifact> code, const CompileOptions& options,
       std::shared_ptr<Packed> packed = nullptr);

  const Recording& recording() const { return *recording_; }
  const std::shared_ptr<const Artifact>& code() const { return code_; }

  /// Whether the captured tensors and the aliasing of the arguments are as recorded. When not, the function has to be
  /// recorded again before compiled code may run.
  bool holds(const Leaves& arguments) const;

  /// Takes over the lowest counts of owners at which holds() said no, into a later recording that used the same
  /// tensors. What that recording counted may be too many: calls in other threads own the tensors for a moment.
  void lower_owners(Recording& later) const;

  /// Runs the code. Returns whether the frozen form ran.
  bool run(const Leaves& arguments, Replayed& results) const;

  /// Whether somebody called backward with create_graph, which compiled code cannot do.
  bool is_differentiated_twice() const;

  /// The recording with this call's arguments, and the results that the code computes from them; changes nothing.
  std::shared_ptr<Recording> sample(const Leaves& arguments) const;

  /// Not null.
  const std::shared_ptr<Packed>& packed() const { return packed_; }
  /// The form with packed weights; null while there is none.
  const Frozen* frozen() const { return packed_->form.load(std::memory_order_acquire); }
  /// The CUDA graphs of the code; null without CompileOptions::cuda_graphs.
  const Graphs* graphs() const { return packed_->graphs.get(); }

 private:
  const at::Tensor& tensor_of(const Input& input, const Leaves& arguments) const;
  bool shares_as_recorded(const Leaves& arguments) const;
  bool overlaps(const Leaves& arguments) const;
  Computed compute(const Leaves& arguments, const Frozen* packed) const;
  bool compute_by_graph(const Leaves& arguments, Computed& computed) const;
  std::vector<at::Tensor> compute_with_gradients(const Leaves& arguments) const;

  std::shared_ptr<const Recording> recording_;
  std::shared_ptr<const Artifact> code_;
  std::shared_ptr<Packed> packed_;
  std::shared_ptr<const Training> training_;  // null where no result requires grad
  struct Lowest {
    std::atomic<int64_t> owners{INT64_MAX};
    std::atomic<int64_t> storage_owners{INT64_MAX};
  };
  std::unique_ptr<Lowest[]> lowest_;  // per input
  bool has_same_arguments_ = false;
  bool mutates_ = false;
};

}  // namespace torchcc::detail
