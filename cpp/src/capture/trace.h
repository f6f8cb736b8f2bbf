#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/ScalarType.h>
#include <c10/util/SmallVector.h>

namespace torchcc::detail {

/// A sequence that grows by a word at a time, which this does with less than std::vector.
using Words = c10::SmallVector<int64_t, 0>;

/// A tensor of a trace: one (storage, offset, sizes, strides, dtype). The position in Trace::value_begin.
using ValueId = int64_t;

/// How a word of Trace::code is to be read; each is followed by what it says.
enum class Tag : int64_t {
  none,           // None, or an undefined tensor
  tensor,         // value id
  list,           // length; the elements follow, each with a tag
  integer,        // the number
  floating,       // the bits of a double
  boolean,        // 0 or 1
  complex,        // the bits of two doubles
  text,           // length in bytes, then the bytes, eight to a word
  dtype,          // c10::ScalarType
  layout,         // c10::Layout
  memory_format,  // c10::MemoryFormat
  device,         // type, index
  number,         // value id of an input of rank 0, which holds the float
};

/// What torchcc needs to know of an operator; read from its schema once.
struct Operator {
  struct Argument {
    Tag number = Tag::integer;     ///< what an integer of this argument means: integer, dtype, layout or memory_format
    bool is_written = false;       ///< by the schema
    bool is_hidden_state = false;  ///< running statistics, which training writes although the schema does not say so
  };
  std::string name{};            ///< "aten::add.Tensor"
  const void* schema = nullptr;  ///< where the dispatcher has it
  std::vector<Argument> arguments{};
  size_t returns = 0;
  bool is_view = false;      ///< gives other views of its inputs and reads no data
  bool is_metadata = false;  ///< gives numbers that follow from dtypes and sizes
  bool is_detach = false;    ///< aten::detach: a view that autograd does not know as one
  bool reads_host = false;   ///< gives numbers that follow from data
  bool has_dynamic_shape = false;
  bool may_depend = false;    ///< dependence() may find something
  bool is_index = false;      ///< aten::index: dynamic only with masks
  bool is_equal = false;      ///< aten::equal: no host read for a tensor and itself
  bool gives_sizes = false;   ///< gives numbers beside tensors, which follow from sizes (attention on GPUs)
  bool may_move = false;      ///< may copy from one device to another: to(), copy_()
  bool is_to_device = false;  ///< aten::to.device: what printing calls
  bool is_random = false;
  bool is_uninitialized = false;  ///< gives memory that nobody has written (empty)
  bool ignores_data = false;      ///< needs only the metadata of its inputs (zeros_like)
  bool changes_storage = false;   ///< resize_, set_
  bool changes_tensors = false;   ///< the tensors that it is given, beside their data: unsqueeze_, requires_grad_, out=
  bool is_conversion = false;     ///< to(): what printing does first
  int training = -1;              ///< position of the argument that switches to training; -1 without one
  int given_size =
      -1;  ///< position of an argument that, where it is given, states the size that else follows from data
  int probability = -1;  ///< position of the probability of dropout; -1 without one
};

/// Whether printing converts to a dtype.
inline bool is_printed(int64_t dtype) {
  return dtype == static_cast<int64_t>(at::kDouble) || dtype == static_cast<int64_t>(at::kComplexDouble);
}

/// The operator behind a dispatcher handle; looked up in a table of this thread.
const Operator& operator_of(const c10::OperatorHandle& handle);
/// The operator of a full name, without overload: "aten::clone".
const Operator& operator_named(const char* name);

/// The dtypes of autocast while an operator ran; -1 where it was off.
struct Autocast {
  int8_t cpu = -1;
  int8_t cuda = -1;
  bool operator==(const Autocast&) const = default;
};

/// The operator calls of one run of a function, in order.
struct Trace {
  struct Step {
    const Operator* op = nullptr;
    uint32_t begin = 0;  ///< of its arguments, then its outputs, in `code`
    Autocast autocast{};
    bool grad = true;  ///< grad mode while it ran, where Trace::requires_grad says something
  };
  std::vector<Step> steps;
  Words code;
  Words values;                       ///< the words of ValueWord, sizes, strides, and so on for the next
  std::vector<uint32_t> value_begin;  ///< of each value, in `values`; the same for neighbours that are alike
  std::vector<bool> requires_grad;    ///< of each value, as it was made; empty where no result requires grad

  /// Empties it; the memory stays.
  void clear() {
    steps.clear();
    code.clear();
    values.clear();
    value_begin.clear();
    requires_grad.clear();
  }
  size_t end_of(size_t step) const { return step + 1 < steps.size() ? steps[step + 1].begin : code.size(); }
  const int64_t* value(ValueId id) const { return values.data() + value_begin[static_cast<size_t>(id)]; }
};

/// Positions in a value's words. The device is 0 for the CPU, else 1 more than the number of the GPU.
enum ValueWord : uint8_t { kDtype, kFlags, kDevice, kOffset, kRank, kSizes };
inline constexpr int64_t kConjugate = 1;
inline constexpr int64_t kNegative = 2;

/// Writes the arguments and the output of aten::as_strided: `view`, a value of the trace, out of `root`.
void append_as_strided(Trace& trace, ValueId root, ValueId view);

/// How many words an item takes, without those of its elements.
size_t length(const int64_t* word);

/// Positions in `code` of numbers that one trace has where the other has another float or a Tag::number, if the traces
/// are the same but for that.
std::optional<std::vector<uint32_t>> differing_numbers(const Trace& before, const Trace& after);

/// What two recordings differ in, for people; empty when they are the same.
std::string difference(const Trace& before, const Trace& after);

/// "float32[8, 784]".
std::string value_type(const Trace& trace, ValueId id);

}  // namespace torchcc::detail
