#include <cstdio>
#include <map>

#include <torchcc/compile_options.h>
#include <torchcc/detail/core.h>

#include "variant.h"

namespace torchcc {
namespace detail {
namespace {

/// "float32[s0, 784] with 2 <= s0": the tensors among the arguments, for code that serves many sizes.
std::string sized_text(const Recording& recording, const Signature& signature) {
  Signature arguments;
  arguments.symbols = signature.symbols;
  arguments.guards = signature.guards;
  for (size_t i = 0; i < recording.inputs.size(); ++i) {
    if (recording.inputs[i].kind == Input::Kind::argument) arguments.inputs.push_back(signature.inputs[i]);
  }
  const std::string text = arguments.str();  // "(arg0: float32[s0, 784]) -> () with 2 <= s0"
  const size_t arrow = text.find(") -> ()");
  return text.substr(1, arrow - 1) + text.substr(arrow + 7);
}

}  // namespace

CompileStats Core::stats() const {
  const CoreState& state = *state_;
  CompileStats stats;
  state.segments.describe(stats);
  const std::lock_guard lock(state.mutex);
  stats.guard_misses = state.guard_misses;
  stats.eager = state.surplus;
  stats.reason = state.reason;
  std::map<const Artifact*, size_t> by_code;  // of code that serves many sizes
  for (const auto& variant : state.variants) {
    const Plan* plan = variant->plan.load(std::memory_order_acquire);
    const bool is_sized = variant->is_sized && plan != nullptr;
    if (is_sized) {
      const auto [known, is_new] = by_code.emplace(plan->code().get(), stats.variants.size());
      if (!is_new) {
        VariantStats& shared = stats.variants[known->second];
        ++shared.sizes;
        shared.recorded += variant->recorded;
        shared.replayed += variant->replayed;
        shared.eager += variant->eager;
        stats.recorded += variant->recorded;
        stats.replayed += variant->replayed;
        stats.eager += variant->eager;
        continue;
      }
    }
    VariantStats one;
    one.inputs = is_sized ? sized_text(plan->recording(), plan->code()->signature) : variant->guards.text();
    one.state = variant->is_lazy && state.never_lazy.empty() ? "lazy" : name_of(variant->state);
    one.reason = variant->reason;
    one.recorded = variant->recorded;
    one.replayed = variant->replayed;
    one.eager = variant->eager;
    one.compile_seconds = variant->compile_seconds;
    one.from_cache = variant->from_cache;
    const Frozen* packed = plan != nullptr ? plan->frozen() : nullptr;
    one.frozen = packed != nullptr && packed->is_current();
    if (plan != nullptr && plan->graphs() != nullptr) {
      one.graph_captures = plan->graphs()->captures();
      one.graph_calls = plan->graphs()->replays();
      one.graph_backwards = plan->graphs()->backward_replays();
      one.graph_reason = plan->graphs()->reason();
    }
    const Recording* recording = plan != nullptr ? &plan->recording() : variant->last.get();
    if (recording != nullptr) one.ops = static_cast<int64_t>(recording->trace.steps.size());
    stats.recorded += one.recorded;
    stats.replayed += one.replayed;
    stats.eager += one.eager;
    stats.compile_seconds += one.compile_seconds;
    stats.variants.push_back(std::move(one));
  }
  stats.lazy = state.lazy;
  stats.calls = stats.recorded + stats.replayed + stats.eager + stats.lazy;
  return stats;
}

}  // namespace detail

std::string CompileStats::str() const {
  const auto number = [](double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f", value);
    return std::string(text);
  };
  std::string text = std::to_string(calls) + " calls: " + std::to_string(replayed) + " compiled, " +
                     std::to_string(recorded) + " recorded, " + std::to_string(eager) + " eager, " +
                     std::to_string(lazy) + " lazy; " + std::to_string(guard_misses) + " guard misses, " +
                     number(compile_seconds) + " s of compiling\n";
  if (!reason.empty()) text += "  last call that was not replayed: " + reason + "\n";
  for (const VariantStats& variant : variants) {
    text += "  (" + variant.inputs + "): " + variant.state + ", " + std::to_string(variant.ops) + " operators, " +
            std::to_string(variant.replayed) + " compiled calls, " + std::to_string(variant.recorded) + " recorded, " +
            std::to_string(variant.eager) + " eager" +
            (variant.sizes > 1 ? ", " + std::to_string(variant.sizes) + " sets of sizes" : "") +
            (variant.from_cache ? ", from the cache" : "") + (variant.frozen ? ", weights packed" : "") +
            (variant.graph_calls > 0 ? ", " + std::to_string(variant.graph_calls) + " by a CUDA graph" : "") +
            (variant.graph_backwards > 0 ? ", " + std::to_string(variant.graph_backwards) + " backward too" : "") +
            "\n";
    if (!variant.graph_reason.empty()) text += "    no CUDA graph: " + variant.graph_reason + "\n";
    if (!variant.reason.empty()) text += "    " + variant.reason + "\n";
  }
  if (lazy > 0) {
    text += "  " + std::to_string(lazy) + " lazy calls: " + std::to_string(compiled_ops) + " operators compiled, " +
            std::to_string(eager_ops) + " eager\n";
  }
  for (const SegmentStats& segment : segments) {
    text += "  " + std::to_string(segment.ops) + " operators from " + segment.first + " to " + segment.end + ": " +
            segment.state + ", " + std::to_string(segment.replayed) + " compiled runs, " +
            std::to_string(segment.recorded) + " recorded, " + std::to_string(segment.eager) + " eager" +
            (segment.sizes > 1 ? ", " + std::to_string(segment.sizes) + " sets of sizes" : "") +
            (segment.from_cache ? ", from the cache" : "") +
            (segment.graph_calls > 0 ? ", " + std::to_string(segment.graph_calls) + " by a CUDA graph" : "") + "\n";
    if (!segment.where.empty() || segment.next_ops > 0) {
      text += "    ends" + (segment.where.empty() ? "" : " at " + segment.where);
      if (segment.next_ops > 0)
        text += ", without that " + std::to_string(segment.next_ops) + " more would be part of it";
      text += "\n";
    }
    if (!segment.graph_reason.empty()) text += "    no CUDA graph: " + segment.graph_reason + "\n";
    if (!segment.reason.empty()) text += "    " + segment.reason + "\n";
  }
  return text;
}

}  // namespace torchcc
