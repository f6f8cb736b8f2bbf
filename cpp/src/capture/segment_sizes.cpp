// Segments that differ in sizes alone share code, as calls do: see family.h.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "log.h"
#include "mode.h"
#include "segment.h"
#include "variant.h"

namespace torchcc::detail {
namespace {

/// Makes inputs of the numbers that are inputs of another recording. False where one of its inputs would stand for two
/// numbers, or the operators differ.
bool adopt_numbers(Recording& recording, const Recording& other) {
  Trace& trace = recording.trace;
  const Words& code = other.trace.code;
  if (trace.steps.size() != other.trace.steps.size() || trace.code.size() != code.size()) return false;
  std::map<ValueId, int64_t> known;
  for (size_t i = 0; i < code.size(); i += length(code.data() + i)) {
    if (static_cast<Tag>(code[i]) != Tag::number) continue;
    if (static_cast<Tag>(trace.code[i]) != Tag::floating) return false;
    const ValueId id = code[i + 1];
    const int64_t bits = trace.code[i + 1];
    const auto [entry, is_new] = known.emplace(id, bits);
    if (is_new ? add_number(recording, bits, other.trace.value(id)[kDevice]) != id : entry->second != bits)
      return false;
    trace.code[i] = static_cast<int64_t>(Tag::number);
    trace.code[i + 1] = id;
  }
  return true;
}

}  // namespace

/// Looks for segments that differ from a recording in sizes alone. `same`: the one that differs in nothing, or null. To
/// be called with the mutex.
Segments::Sized Segments::place(const Recording& now, const Segment* same) {
  if (!core_.options.automatic_dynamic_shapes || !may_be_sized(now)) return {};
  const auto& alike = by_first_[now.trace.steps[now.layout.prologue].op];
  std::set<const Family*> seen;
  for (const auto& one : alike) {
    if (one.get() == same || !one->recording->refusal.empty() || !same_places(*one->recording, now)) continue;
    auto made = std::make_shared<Recording>(now);
    if (!adopt_numbers(*made, *one->recording)) continue;
    if (one->family == nullptr) one->family = std::make_shared<Family>();
    const std::shared_ptr<Family> family = one->family;
    if (!seen.insert(family.get()).second || family->is_compiling() || !family->may_serve()) continue;
    if (const Family::Code* code = family->code_for(*made)) return {std::move(made), family, code->artifact};
    family->forget_samples();
    for (const auto& other : alike) {
      const bool is_relative = other->family == family && other.get() != same;
      if (is_relative && other->recording->trace.value_begin.size() == made->trace.value_begin.size()) {
        family->add(other->recording);
      }
    }
    made->sizes = family->explain(*made, {});
    if (made->sizes != nullptr) return {std::move(made), family};
    log(Topic::capture, core_.options.name, "one code cannot serve these sizes of a segment: " + family->reason());
  }
  return {};
}

/// The segment gets its family's code, if that gives what was recorded.
void Segments::join(Segment& segment, const Sized& sized) {
  std::string differs;
  {
    const Unrecorded unrecorded;
    differs = compare(sized.recording, *sized.code);
  }
  const std::lock_guard lock(mutex_);
  if (!differs.empty()) {
    sized.family->note_failure(std::move(differs));
    leave_family(segment);
    return;
  }
  sized.family->note_served();
  set_code(segment, sized.code);
  segment.state = Segment::State::compiled;
}

/// The segment was to get code that serves other sizes too. To be called with the mutex.
void Segments::take_in(Segment& segment, const std::shared_ptr<const Artifact>& code, std::string reason) {
  if (!segment.family->end_compilation({code, segment.recording}, std::move(reason))) {
    leave_family(segment);
    return;
  }
  set_code(segment, code);
  segment.state = Segment::State::compiled;
  log(Topic::compile, core_.options.name, "a segment is compiled for other sizes too");
}

/// The segment goes on as if there were none of other sizes. Likewise.
void Segments::leave_family(Segment& segment) {
  segment.state = Segment::State::recorded;
  segment.is_sized = false;
  log(Topic::compile, core_.options.name, "a segment gets code of its own: " + segment.family->reason());
}

}  // namespace torchcc::detail
