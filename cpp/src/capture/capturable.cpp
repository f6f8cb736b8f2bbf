#include "capturable.h"

#include "graphs.h"

namespace torchcc::detail {
namespace {

/// The first operator that takes a value, and how.
struct Use {
  std::string op;
  bool is_number = false;  ///< as a number, not as a tensor
};

Use first_use(const Trace& trace, ValueId id) {
  for (size_t step = 0; step < trace.steps.size(); ++step) {
    const int64_t* const end = trace.code.data() + trace.end_of(step);
    for (const int64_t* word = trace.code.data() + trace.steps[step].begin; word < end; word += length(word)) {
      const bool is_number = static_cast<Tag>(*word) == Tag::number;
      if ((is_number || static_cast<Tag>(*word) == Tag::tensor) && word[1] == id) {
        return {trace.steps[step].op->name, is_number};
      }
    }
  }
  return {"an operator", false};
}

}  // namespace

std::string why_no_graph(const Recording& recording, const Artifact* code) {
  if (!recording.device.is_cuda() || code == nullptr) return "the function computes nothing on a GPU";
  for (const Input& input : recording.inputs) {
    if (recording.trace.value(input.value)[kDevice] != 0) continue;
    const Use use = first_use(recording.trace, input.value);
    if (use.is_number) return use.op + " takes a number that changes from call to call, which the host reads";
    return use.op + " takes '" + input.name + "', which is on the CPU, where the host reads it in each call";
  }
  return code->uncapturable.empty() ? why_no_graphs() : code->uncapturable;
}

}  // namespace torchcc::detail
