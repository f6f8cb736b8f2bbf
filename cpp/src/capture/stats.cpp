#include <cstdio>

#include <torchcc/compile_options.h>
#include <torchcc/detail/core.h>

#include "variant.h"

namespace torchcc {
namespace detail {
CompileStats Core::stats() const {
  const CoreState& state = *state_;
  const std::lock_guard lock(state.mutex);
  CompileStats stats;
  stats.guard_misses = state.guard_misses;
  stats.eager = state.surplus;
  stats.reason = state.reason;
  for (const auto& variant : state.variants) {
    VariantStats one;
    one.inputs = variant->guards.text();
    one.state = variant->is_lazy && state.never_lazy.empty() ? "lazy" : name_of(variant->state);
    one.reason = variant->reason;
    one.recorded = variant->recorded;
    one.replayed = variant->replayed;
    one.eager = variant->eager;
    one.compile_seconds = variant->compile_seconds;
    one.from_cache = variant->from_cache;
    const Plan* plan = variant->plan.load(std::memory_order_acquire);
    const Frozen* packed = plan != nullptr ? plan->frozen.load(std::memory_order_acquire) : nullptr;
    one.frozen = packed != nullptr && packed->is_current();
    const Recording* recording = plan != nullptr ? &plan->recording() : variant->last.get();
    if (recording != nullptr) one.ops = static_cast<int64_t>(recording->trace.steps.size());
    stats.recorded += one.recorded;
    stats.replayed += one.replayed;
    stats.eager += one.eager;
    stats.compile_seconds += one.compile_seconds;
    stats.variants.push_back(std::move(one));
  }
  stats.lazy = state.lazy;
  state.segments.describe(stats);
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
            std::to_string(variant.eager) + " eager" + (variant.from_cache ? ", from the cache" : "") +
            (variant.frozen ? ", weights packed" : "") + "\n";
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
            (segment.from_cache ? ", from the cache" : "") + "\n";
    if (!segment.reason.empty()) text += "    " + segment.reason + "\n";
  }
  return text;
}

}  // namespace torchcc
