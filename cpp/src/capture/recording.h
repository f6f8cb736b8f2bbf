#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

#include "aliases.h"
#include "sizes.h"
#include "trace.h"

namespace torchcc::detail {

class ModuleView;

/// A tensor that a function uses without having been given it. Recordings of the whole process share one handle for
/// each, so that the number of other owners can be told: when it falls, the program may have put another tensor in its
/// place.
class Captured {
 public:
  static std::shared_ptr<const Captured> of(const at::Tensor& tensor);

  const at::Tensor& tensor() const { return tensor_; }
  /// Owners of the tensor beside torchcc.
  int64_t owners() const { return static_cast<int64_t>(tensor_.use_count()) - 1; }
  /// Tensors that share the storage, this one included.
  int64_t storage_owners() const { return static_cast<int64_t>(tensor_.storage().use_count()); }

  explicit Captured(at::Tensor tensor)
      : tensor_(std::move(tensor)), aliases_(Aliases::of(tensor_.storage().unsafeGetStorageImpl())) {}

 private:
  at::Tensor tensor_;
  std::shared_ptr<const Aliases> aliases_;  ///< so that they are counted from now on
};

/// One input of the compiled code.
struct Input {
  enum class Kind : uint8_t { argument, captured, constant };
  Kind kind = Kind::argument;
  ValueId value = 0;
  size_t argument = 0;                       ///< position among the tensors of the arguments
  std::shared_ptr<const Captured> captured;  ///< of kind captured (for a base: one of its views)
  int64_t owners = 0;                        ///< see Captured; at the end of the recording
  int64_t storage_owners = 0;
  at::Tensor before;  ///< content before the call, or the constant; undefined for a captured tensor that is unchanged
  bool written = false;
  bool requires_grad = false;  ///< where grad mode was on
  bool is_held = false;        ///< if so: autograd's graph has it, and backward may fail when it is written into
  bool is_base = false;        ///< the whole storage as one dimension, of which several views are used
  std::string name;

  /// What it was before the call.
  const at::Tensor& content() const { return before.defined() ? before : captured->tensor(); }
};

/// How one tensor of the result is made after a replay.
struct Result {
  enum class Source : uint8_t {
    undefined,
    argument,
    captured,
    output,
    view_of_argument,
    view_of_captured,
    view_of_output
  };
  Source source = Source::undefined;
  size_t index = 0;  ///< of the argument, of the input (captured), or of the output
  Words view;        ///< of a view: words as in Trace::values; of an argument: the offset from its own
  bool requires_grad = false;
};

/// What one recorded call left behind.
struct Recording {
  Trace trace;
  std::vector<Input> inputs;
  std::vector<ValueId> outputs;    ///< what the compiled code returns
  std::vector<bool> output_grads;  ///< per output, whether it requires grad; empty unless `trains`
  std::vector<bool> held_outputs;  ///< as Input::is_held; likewise
  /// Per output, those whose part of autograd's graph is a part of its own, itself included; likewise. Backward through
  /// it frees what they have saved.
  std::vector<std::vector<size_t>> covered;
  /// Per output, the inputs that its gradient flows to; likewise. Backward through it leaves all others without one.
  std::vector<std::vector<size_t>> reached;
  std::vector<at::Tensor> expected;  ///< as recorded, per output
  std::vector<at::Tensor> after;     ///< content after the call, per written input
  std::vector<Result> results;
  std::vector<int64_t> result_constants;
  /// Values that have to share a storage, since the compiled code gets it as a whole: arguments and inputs.
  struct Shared {
    bool is_argument = false;
    size_t index = 0;  ///< of the argument or input
    int64_t offset = 0;
  };
  std::vector<std::vector<Shared>> shared;
  std::vector<size_t> same_as;                  ///< per argument: the first argument that is the same value
  c10::Device device = c10::Device(c10::kCPU);  ///< the one GPU of its tensors, if some are on one
  /// Of the generators of the CPU, and of the GPU that is used, before the first random operator.
  at::Tensor random_state;
  at::Tensor gpu_random_state;
  bool trains = false;  ///< some result requires grad
  /// If so: random gradients of the outputs that require grad, and what autograd makes of them, per input that requires
  /// grad (undefined where nothing arrives). Empty where that cannot be found out without running the program's hooks.
  std::vector<at::Tensor> tangents;
  std::vector<at::Tensor> gradients;
  bool has_copies = false;   ///< some constants are data that C++ code wrote
  size_t argument_hash = 0;  ///< of the content of the arguments, where has_copies
  int64_t default_dtype = 0;
  bool deterministic = false;
  bool inference_mode = false;
  std::vector<Sizes::Word> by_hand;       ///< numbers of which C++ code says itself how they follow from sizes
  std::vector<SizeCondition> conditions;  ///< on which it branches
  at::Float32MatmulPrecision matmul_precision = at::Float32MatmulPrecision::HIGHEST;
  std::shared_ptr<const Sizes> sizes;  ///< where the code is for other sizes too; else null
  std::string refusal;                 ///< why the call cannot be replayed; empty when it can
  bool touches_memory = false;         ///< if it cannot: see Recorder::refuse()

  /// Of segments: where values lie, so that they can be told when the same operators come again.
  struct Layout {
    std::vector<size_t> memories;  ///< per value, numbers
    std::vector<ValueId> roots;    ///< per memory, the value that is all of it; -1 where it came from outside
    std::vector<size_t> bytes;     ///< per memory that has a root
    std::vector<bool> externals;   ///< per value, whether it came from outside
    size_t prologue = 0;           ///< steps in the beginning that the program did not call: views of whole storages
  } layout;

  bool mutates() const {
    for (const Input& input : inputs) {
      if (input.written) return true;
    }
    return false;
  }
  /// Lets go of the tensors that only the compiler needs.
  void drop_samples() {
    for (Input& input : inputs) {
      if (input.kind != Input::Kind::constant) input.before.reset();
    }
    expected.clear();
    after.clear();
    tangents.clear();
    gradients.clear();
  }
  /// Whether there is something to compile.
  bool has_work() const { return !outputs.empty() || mutates(); }
};

/// Why two recordings do not prove that a third call would give the same trace; empty when they do.
std::string disagreement(const Recording& before, const Recording& after);

/// The same, but for the traces, what follows from sizes in the results, and the contents of arguments.
std::string disagreement_beside_trace(const Recording& before, const Recording& after);

/// Copies of everything that the program may change before the compiler has read it.
void detach_from_program(Recording& recording);

/// Names the inputs of a recording: arg0, the names of a module's weights, captured0, constant0.
void name_captured(Recording& recording, const ModuleView* module);

/// The trace as the compiler reads it.
std::string to_json(const Recording& recording, const std::string& name);

}  // namespace torchcc::detail
