// Variants that differ in sizes alone share code: see family.h.

#include <string>
#include <utility>

#include <torchcc/error.h>

#include "log.h"
#include "message.h"
#include "variant.h"

namespace torchcc::detail {

void CoreState::refuse_broken_promise() {
  std::string why;
  {
    const std::lock_guard lock(mutex);
    why = promises.take_broken();
  }
  if (why.empty()) return;
  throw CaptureError(message("compile '" + options.name + "': it does not do the same for all sizes",
                             {{"expected", "operators that follow from the sizes that CompileOptions::dynamic names"},
                              {"got", why},
                              {"fix", "change the code there, or leave the size out of CompileOptions::dynamic"}}));
}

/// The family of calls that differ in sizes alone from one with the given guards; null when there are none.
std::shared_ptr<Family> CoreState::family_of(const Guards& guards, const Recording& made) const {
  std::shared_ptr<Family> family;
  for (const auto& variant : variants) {
    if (variant->last == nullptr || !may_be_sized(*variant->last) || !same_conditions(*variant->last, made)) continue;
    if (!variant->guards.same_but_for_sizes(guards) || !watch.same(variant->guards.closure(), guards.closure())) {
      continue;
    }
    if (variant->family != nullptr) return variant->family;
    if (family == nullptr) family = std::make_shared<Family>();
    variant->family = family;
    family->add(variant->last);
  }
  return family;
}

/// Whether a recording can have code that serves other sizes too: some that was found, or new one.
CoreState::Work::Kind CoreState::place(Family& family, Recording& recording, Family::Code& found) {
  if (!may_be_sized(recording) || family.is_compiling() || !family.may_serve()) return Work::Kind::none;
  if (const Family::Code* code = family.code_for(recording)) {
    found = *code;
    return Work::Kind::join;
  }
  recording.sizes = family.explain(recording, promises.sizes());
  if (recording.sizes != nullptr) return Work::Kind::generalize;
  family.note_failure(family.reason());
  promises.note_broken(*family.latest(), recording, family.reason());
  log(Topic::capture, options.name, "one code cannot serve these sizes: " + family.reason());
  return Work::Kind::none;
}

/// From now on, calls run the plan. To be called with the mutex.
void CoreState::serve(Variant& variant, std::unique_ptr<Plan> plan) {
  variant.state = Variant::State::compiled;
  variant.is_sized = true;
  variant.reason.clear();
  reason.clear();
  variant.plan.store(plan.get(), std::memory_order_release);
  variant.plans.push_back(std::move(plan));
  promises.serve(variant, *variant.plans.back());
}

/// The variant goes on as if there were no calls of other sizes. To be called with the mutex.
void CoreState::leave_family(Variant& variant, const std::shared_ptr<Recording>& recording) {
  const Family& family = *variant.family;
  recording->sizes = nullptr;
  variant.state = Variant::State::recorded;
  if (family.latest() != nullptr) promises.note_broken(*family.latest(), *recording, family.reason());
  reason = variant.reason = "it was recorded once, and a second call has to agree";
  log(Topic::compile, options.name, "(" + variant.guards.text() + ") gets code of its own: " + family.reason());
}

void CoreState::generalize(Variant& variant, const std::shared_ptr<Recording>& recording) {
  Compilation code = find_or_compile(*recording, options);
  note(variant, code);
  code.drop_slower(options);
  Plan* plan = nullptr;
  {
    const std::lock_guard lock(mutex);
    Family& family = *variant.family;
    if (!family.end_compilation({code.artifact, recording}, code.reason)) {
      leave_family(variant, recording);
      return;
    }
    auto made = std::make_unique<Plan>(recording, code.artifact, options);
    plan = made.get();
    family.share(plan->packed());
    family.add(recording);
    serve(variant, std::move(made));
    log(Topic::compile, options.name, "(" + variant.guards.text() + ") is compiled for other sizes too");
  }
  freeze(variant, *plan, *recording);
}

void CoreState::join(Variant& variant, const std::shared_ptr<Recording>& recording, const Family::Code& code) {
  std::string differs = compare(recording, *code.artifact);
  const std::lock_guard lock(mutex);
  if (!differs.empty()) {
    variant.family->note_failure(std::move(differs));
    leave_family(variant, recording);
    return;
  }
  variant.family->note_served();
  serve(variant, std::make_unique<Plan>(recording, code.artifact, options, code.packed));
}

}  // namespace torchcc::detail
