#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <c10/core/Stream.h>
#include <c10/util/SmallVector.h>
#include <c10/util/flat_hash_map.h>

#include "generator.h"
#include "mode.h"
#include "recording.h"
#include "symbolic_sizes.h"

namespace torchcc::detail {

/// One storage, for as long as a recording lasts. Weakly held: its memory may go, but its address does not come again.
struct Memory {
  static constexpr size_t kNone = SIZE_MAX;

  explicit Memory(c10::weak_intrusive_ptr<c10::StorageImpl> of) : storage(std::move(of)) {}

  c10::weak_intrusive_ptr<c10::StorageImpl> storage;
  c10::SmallVector<ValueId, 2> values{};  ///< in the order of their appearance
  bool is_external = false;
  bool is_unwritten = false;  ///< memory of empty(), and no operator has written to it
  bool is_written = false;    ///< an operator wrote to it
  bool is_read = false;       ///< an operator that is no view, or the result, used its content
  bool is_result = false;     ///< some of its values are in the result
  bool is_copied = false;     ///< its content came from outside the operators; the values are copies of a constant
  size_t source = kNone;      ///< the memory of which a view operator made this as a copy (contiguous, to, reshape)
  at::Tensor original{};      ///< of external memory that is written to: a storage of the same bytes as before
  size_t hash = 0;
  int checks = 0;           ///< how many more reads compare the content with the hash; at the end all are compared
  bool is_watched = false;  ///< of a segment: access by pointer shows, see watch_touched()

  /// From now on it has that content, until an operator writes to it.
  void expect(size_t now) {
    hash = now;
    checks = 3;
  }
};

/// A value that came from outside: an argument, a captured tensor, or a constant.
struct External {
  at::Tensor tensor;
  ValueId value = 0;
  size_t memory = 0;
  int64_t argument = -1;  ///< the first argument that is this value; else -1
  bool is_constant = false;
};

/// Writes down operator calls while they run as they would without it: every one of this thread, as long as it lives;
/// or, of a segment, those that it is given.
///
/// A value is known by its storage, offset, sizes, strides and dtype, not by its TensorImpl: the same value may come
/// back in another one.
class Recorder final : public Mode {
 public:
  /// `previous`: an earlier recording of the same function. With one, contents are checked: memory that changes without
  /// an operator, from the beginning of this call on in what the earlier call captured, refuses the recording.
  Recorder(c10::ArrayRef<const at::Tensor*> arguments, const Recording* previous);
  /// Of a segment, a part of a function that is seen again only if the same operators come again: every tensor from
  /// outside is an input, and every tensor that lives on is an output. Autograd has had its say before.
  Recorder();
  ~Recorder() override;

  /// Stops recording. To be called once, at the end of the function, with the tensors of its result.
  std::unique_ptr<Recording> finish(c10::ArrayRef<const at::Tensor*> results);

  /// The same at the end of a segment.
  std::unique_ptr<Recording> finish_segment();

  /// Declares that this run cannot be replayed; the first reason that is not empty counts. `touches_memory`: because of
  /// memory that the program uses without operators, which does not go with operators that wait either.
  void refuse(std::string reason, bool touches_memory = false);

  /// Runs one operator and writes it down, unless the recording is refused already.
  void step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) override;
  /// The same for an operator that is known to depend on nothing but its arguments. `grad` and `autocast`: see
  /// Trace::Step.
  void record(const Operator& op, const c10::OperatorHandle& handle, torch::jit::Stack* stack, bool grad,
              Autocast autocast);

  /// The size of a dimension, which knows where it comes from where the recording knows the tensor.
  c10::SymInt size(const at::Tensor& tensor, int64_t dim);

  size_t steps() const { return trace_.steps.size(); }
  /// Whether operators so far have used or made the memory of a tensor, which has one.
  bool knows(const at::Tensor& tensor) const;

 private:
  // recorder.cpp: while the function runs
  void reserve(size_t steps);
  void swap_buffers();
  void use_all(const Operator& op, const c10::IValue* arguments);
  void use(const at::Tensor& tensor, const Operator& op, bool written);
  void encode(const c10::IValue& value, const Operator& op, const Operator::Argument& argument, size_t& position);
  void give(const c10::IValue& value, const Operator& op);
  ValueId give_tensor(const at::Tensor& tensor, const Operator& op);
  void note_random(const Operator& op, const c10::IValue* arguments);
  void check_seed();
  bool require_ordinary(const at::Tensor& tensor, const Operator& op);
  void note_gpu(c10::Device device);
  void check_stream();
  // recorder_values.cpp: which value a tensor is
  ValueId find(const at::Tensor& tensor, const Memory& memory);
  ValueId add_value(const at::Tensor& tensor);
  ValueId add_external(const at::Tensor& tensor);
  ValueId add_alias(const at::Tensor& tensor, Memory& memory);
  ValueId add_copy(const at::Tensor& tensor, ValueId old, size_t memory);
  // recorder_content.cpp: memory that is written or read without an operator
  size_t hash(const c10::StorageImpl& storage);
  void check(Memory& memory, const c10::StorageImpl& storage);
  void rehash_written();
  void watch_touched();
  void check_access(Memory& memory, const c10::StorageImpl& storage);
  void end_watch();
  void check_source(Memory& copy, const Operator& op);
  void check_origin(const Operator& op);
  void copy_original(Memory& memory, const c10::StorageImpl& storage);

  // assemble.cpp: the recording, afterwards
  void check_all();
  void check_arguments();
  void refuse_printing();
  void sort_captured();
  void refuse_kept(c10::ArrayRef<const at::Tensor*> results);
  void refuse_changed_gradients();
  void fill(Recording& recording);
  std::vector<std::pair<ValueId, at::Tensor>> live();
  // gradients.cpp: what autograd made of it
  void refuse_graph(Recording& recording, c10::ArrayRef<const at::Tensor*> results);
  void refuse_kept_beside_graph(const Recording& recording, c10::ArrayRef<const at::Tensor*> results);
  void differentiate(Recording& recording, c10::ArrayRef<const at::Tensor*> results);
  const at::Tensor& tensor_of(const Input& input) const;
  // assemble.cpp
  void count_owners(Recording& recording, c10::ArrayRef<const at::Tensor*> results) const;
  void make_inputs(Recording& recording);
  bool make_base(Recording& recording, const std::vector<const External*>& views, size_t memory);
  void add_input(Recording& recording, const External& external);
  void make_results(Recording& recording, c10::ArrayRef<const at::Tensor*> results);
  void make_view_of_outside(Recording& recording, Result& result, const at::Tensor& tensor, size_t memory);
  void add_output(Recording& recording, Result& result, ValueId value, const at::Tensor& tensor, bool is_held);

  Trace trace_;
  std::vector<Memory> memories_;
  ska::flat_hash_map<const c10::StorageImpl*, size_t> memory_of_;
  ska::flat_hash_map<const c10::StorageImpl*, size_t> watched_;  ///< hashes of what the earlier recording captured
  ska::flat_hash_map<const Captured*, std::pair<int64_t, int64_t>> owners_;  ///< of the same, before the call
  std::vector<External> externals_;
  std::vector<at::Tensor> arguments_;
  std::vector<std::pair<int64_t, int64_t>> argument_owners_;  ///< of each, and of its storage, before the call
  std::vector<ValueId> argument_values_;                      ///< -1 for an undefined tensor
  std::vector<int32_t> uses_;                                 ///< per value: by operators
  std::vector<bool> requires_grad_;                           ///< per value, as it is now; where tracks_
  c10::SmallVector<ValueId, 8> used_;    ///< tensors of the current operator's arguments, in order; -1: a number
  c10::SmallVector<size_t, 4> written_;  ///< memories that the current operator writes to
  c10::SmallVector<size_t, 8> touched_;  ///< memories that the current operator takes and gives
  size_t first_used_ = Memory::kNone;    ///< memory of the current operator's first tensor
  SymbolicSizes symbols_;
  bool moves_ = false;                           ///< the current operator copies to another device
  c10::Device device_ = c10::Device(c10::kCPU);  ///< see Recording
  std::optional<c10::Stream> stream_;            ///< the current one of the GPU, when the recording began
  std::optional<SeedWatch> seed_watch_;          ///< of a function
  at::Tensor random_state_;
  at::Tensor gpu_random_state_;
  size_t argument_hash_ = 0;  ///< made with the first copy
  bool has_copies_ = false;
  std::string refusal_;
  bool touches_memory_ = false;
  bool checks_content_;
  bool tracks_;          ///< grad mode is on
  bool trains_ = false;  ///< some result requires grad
  bool is_segment_ = false;
};

}  // namespace torchcc::detail
