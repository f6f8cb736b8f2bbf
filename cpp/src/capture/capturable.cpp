#include "capturable.h"

#include "graphs.h"

namespace torchcc::detail {
namespace {

/// The first operator that takes a tensor.
std::string first_user(const Trace& trace, ValueId id) {
  for (size_t step = 0; step < trace.steps.size(); ++step) {
    const int64_t* const end = trace.code.data() + trace.end_of(step);
    for (const int64_t* word = trace.code.data() + trace.steps[step].begin; word < end; word += length(word)) {
      if (static_cast<Tag>(*word) == Tag::tensor && word[1] == id) return trace.steps[step].op->name;
    }
  }
  return "an operator";
}

}  // namespace

std::string why_no_graph(const Recording& recording, const Artifact* code) {
  if (!recording.device.is_cuda() || code == nullptr) return "the function computes nothing on a GPU";
  for (const Input& input : recording.inputs) {
    if (recording.trace.value(input.value)[kDevice] != 0) continue;
    return first_user(recording.trace, input.value) + " takes '" + input.name +
           "', which is on the CPU, where the host reads it in each call";
  }
  return code->uncapturable.empty() ? why_no_graphs() : code->uncapturable;
}

}  // namespace torchcc::detail
