#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>

#include "segment.h"

namespace torchcc::detail {

/// One run of a known segment: compares operators with those recorded, gives placeholders for their results, and
/// computes these in the end.
///
/// Placeholders and their memory are held weakly, as by a recorder: who else holds a tensor decides what PyTorch does
/// with it (autograd takes a gradient that nobody else has), and what is needed in the end.
class Follow {
 public:
  Follow(Segments::Known known, std::shared_ptr<Segment> segment);

  /// The operator that comes next; null at the end.
  const Operator* next() const { return is_whole() ? nullptr : trace_.steps[position_].op; }
  /// Whether a call is the next one. If so, give() is to be called before anything else.
  bool matches(const Operator& op, const c10::IValue* arguments, Autocast autocast);
  /// Whether the call that did not match differs from the recorded one in a number that all recordings have alike.
  bool differs_in_number() const { return differs_in_number_; }
  /// The next operator, for people.
  std::string expected() const;
  /// The arguments on the stack become placeholders. `counts`: the call does not come out of autograd, which counts
  /// versions of what is written to itself, and lets views share them.
  void give(const Operator& op, torch::jit::Stack* stack, bool counts);
  /// Whether something is to be computed, and not only views of memory from outside were given.
  bool has_work() const { return has_work_; }
  /// Whether a call cannot run before what is pending: it uses a tensor of it, or memory that it uses.
  bool involves(const at::Tensor& tensor) const;

  /// Computes the operators so far: compiled if these are all of the segment, else one by one; what ran then is the
  /// segment that later runs follow. `end`: what ended it; empty when that says nothing about later runs. Throws what
  /// the operators throw.
  void finish(Segments& segments, const std::string& end);
  /// Operators that finish() ran compiled, and one by one.
  int64_t compiled() const { return compiled_; }
  int64_t eager() const { return eager_; }

 private:
  struct Memory {
    c10::StorageImpl* storage = nullptr;
    c10::weak_intrusive_ptr<c10::StorageImpl> made{c10::intrusive_ptr<c10::StorageImpl>()};  ///< or null
    c10::intrusive_ptr<c10::StorageImpl> held;                                               ///< from outside
    bool is_written = false;
  };
  struct Used {
    ValueId id = 0;
    const at::Tensor* tensor = nullptr;
    bool is_written = false;
  };
  /// Memory from outside that is to be written into: until that is done, nobody can read it.
  struct Parked {
    c10::StorageImpl* storage;
    at::DataPtr data;
  };

  const Recording& recording() const { return *known_.recording; }
  size_t memory_of(ValueId id) const { return layout_.memories[static_cast<size_t>(id)]; }
  bool matches_argument(const c10::IValue& value, Tag number, bool written);
  bool matches_tensor(const at::Tensor& tensor, bool written);
  bool matches_external(const at::Tensor& tensor, ValueId id);
  bool matches_number(double number);
  bool matches_constant();
  c10::IValue given(bool is_view);
  at::Tensor make(ValueId id, bool is_view);
  void park(ValueId id);
  void sweep();

  std::vector<bool> needed() const;
  at::Tensor tensor_of(const Input& input) const;
  void compute(Segments& segments, const std::vector<bool>& needed);
  bool compute_by_graph(std::vector<at::Tensor>& made) const;
  std::vector<at::Tensor> compute_code() const;
  void compute_one_by_one(Segments& segments, const std::vector<bool>& needed, const std::string& end);
  void bind(size_t memory, const at::Tensor& tensor);
  bool is_whole() const { return position_ == trace_.steps.size(); }

  Segments::Known known_;
  std::shared_ptr<Segment> segment_;
  const Trace& trace_;  // of known_
  const Recording::Layout& layout_;
  size_t position_;                // of the next operator
  const int64_t* word_ = nullptr;  // in the trace's code
  const Operator* op_ = nullptr;   // whose results are given
  bool differs_in_number_ = false;
  bool has_work_ = false;
  bool has_written_ = false;
  std::vector<char> is_known_;    // per value: given to the program, or seen
  std::vector<at::Tensor> held_;  // per value: what came from outside, and numbers
  std::vector<Memory> memories_;
  std::vector<size_t> living_;  // memories made, but for those that sweep() found gone
  size_t sweep_ = 0;            // where it goes on
  ska::flat_hash_map<const c10::StorageImpl*, size_t> memory_of_outside_;
  std::vector<Parked> parked_;
  c10::SmallVector<Used, 8> used_;
  Words constant_;  // kept for its memory
  int64_t compiled_ = 0;
  int64_t eager_ = 0;
};

}  // namespace torchcc::detail
