#include "variant.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include <c10/util/Exception.h>

#include "log.h"

namespace torchcc::detail {
namespace {

// Recordings in a row that may differ before the function counts as one that always does.
constexpr int64_t kDisagreements = 6;
// Variants, those that share code among them, each with a recording of its own; calls of further sizes run eagerly.
constexpr size_t kMostVariants = 1024;

}  // namespace

const std::vector<int64_t>& CoreState::modes() const {
  thread_local std::vector<int64_t> words;
  words.clear();
  if (module != nullptr) module->append_modes(words);
  watch.append_modes(words);
  return words;
}

Variant* CoreState::find(const Leaves& arguments) const {
  Variant* variant = table.candidates(arguments);
  while (variant != nullptr && !variant->guards.fit(arguments, modes(), environment(), watch)) {
    variant = variant->next.load(std::memory_order_acquire);
  }
  return variant;
}

void CoreState::Table::add(Variant& variant) {
  std::atomic<Variant*>* end = &first[variant.guards.hash() % kChains];
  while (Variant* one = end->load(std::memory_order_relaxed)) end = &one->next;
  end->store(&variant, std::memory_order_release);
}

bool CoreState::is_full() const {
  const auto own = std::count_if(variants.begin(), variants.end(), [](const auto& one) { return !one->is_sized; });
  return own >= options.max_variants || variants.size() >= kMostVariants;
}

Variant* CoreState::find_sibling(const Leaves& arguments) const {
  for (const auto& variant : variants) {
    if (variant->last != nullptr && variant->guards.fit_but_for_sizes(arguments, modes(), environment(), watch)) {
      return variant.get();
    }
  }
  return nullptr;
}

Variant& CoreState::add_variant(Guards guards) {
  variants.push_back(std::make_unique<Variant>(std::move(guards)));
  table.add(*variants.back());
  return *variants.back();
}

void CoreState::refuse_surplus(const std::string& changed) {
  ++surplus;
  reason = "there are " + std::to_string(variants.size()) +
           " variants already (CompileOptions::max_variants); what keeps changing: " + changed;
  for (const auto& variant : variants) {
    if (variant->family == nullptr || variant->family->reason().empty()) continue;
    reason += "; one code cannot serve its sizes: " + variant->family->reason();
    break;
  }
  if (!std::exchange(has_warned, true)) warning = "torchcc: " + options.name + ": " + reason;
}

void CoreState::warn() {
  std::string text;
  {
    const std::lock_guard lock(mutex);
    text.swap(warning);
  }
  if (!text.empty()) TORCH_WARN(text);
}

bool CoreState::may_be_dropped(const Leaves& arguments) const {
  constexpr int64_t kFutile = 16;
  return futile < kFutile && std::any_of(
                                 variants.begin(), variants.end(),
                                 [&](const auto& variant) {
                                   return variant->guards.fit_but_for_closure(arguments, modes(), environment());
                                 });
}

void CoreState::note_surplus(const Leaves& arguments) {
  ++guard_misses;
  refuse_surplus(variants.empty() ? "" : variants.back()->guards.misfit(arguments, modes(), environment(), watch));
}

bool CoreState::runs_lazily(const Variant* variant, const Leaves& arguments) {
  if (options.mode != CompileMode::automatic || !never_lazy.empty()) return false;
  if (variant == nullptr) {
    // Another one would be found to be the same.
    for (const auto& one : variants) {
      if (one->is_lazy && one->guards.fit_but_for_closure(arguments, modes(), environment())) variant = one.get();
    }
  }
  if (variant == nullptr || !variant->is_lazy) return false;
  reason = variant->reason;
  return true;
}

void CoreState::note_memory(const std::string& why) {
  const std::lock_guard lock(mutex);
  never_lazy = why;
}

void CoreState::stay_eager(Variant& variant, std::string text, bool is_lazy) {
  variant.state = Variant::State::eager;
  variant.is_lazy = is_lazy;
  variant.plan.store(nullptr, std::memory_order_release);
  variant.last.reset();
  variant.reason = reason = std::move(text);
  log(Topic::capture, options.name, "(" + variant.guards.text() + ") stays eager: " + variant.reason);
}

/// The variant of a call that was recorded. Words beside the captured variables, which may not be the function's, count
/// as such only if the function did something else after they had changed.
Variant* CoreState::find_recorded(const Guards& guards, const Recording& made) {
  for (const auto& variant : variants) {
    if (variant->guards.same_call(guards) && watch.same(variant->guards.closure(), guards.closure())) {
      return variant.get();
    }
  }
  for (const auto& variant : variants) {
    if (!variant->guards.same_call(guards)) continue;
    const bool does_the_same = made.refusal.empty()
                                   ? variant->last != nullptr && disagreement(*variant->last, made).empty()
                                   : variant->reason == made.refusal;
    if (does_the_same && watch.drop_differences(variant->guards.closure(), guards.closure())) return variant.get();
  }
  return nullptr;
}

CoreState::Work CoreState::commit(Guards guards, std::unique_ptr<Recording> made) {
  name_captured(*made, module.get());
  const std::lock_guard lock(mutex);
  Variant* variant = find_recorded(guards, *made);
  const std::shared_ptr<Recording> now = std::move(made);
  const auto begin = [&](Work::Kind kind) -> Work {
    variant->state = Variant::State::compiling;
    variant->last = now;
    reason = variant->reason = "it is being compiled";
    ++pending;
    if (options.background && kind != Work::Kind::join) detach_from_program(*now);
    return {kind, variant, now, {}};
  };
  Work::Kind kind = Work::Kind::none;
  Family::Code found;
  if (variant == nullptr) {
    const bool may_share = options.automatic_dynamic_shapes || !promises.sizes().empty();
    const std::shared_ptr<Family> family = may_share ? family_of(guards, *now) : nullptr;
    if (family != nullptr) {
      kind = place(*family, *now, found);
      if (kind == Work::Kind::none && may_be_sized(*now)) family->add(now);
    }
    if (kind == Work::Kind::none && is_full()) {
      ++futile;
      refuse_surplus(family != nullptr ? "sizes (now " + guards.text() + ")"
                                       : "a C++ variable that the function captures");
      return {};
    }
    if (!variants.empty()) log(Topic::guards, options.name, "new variant: (" + guards.text() + ")");
    ++guard_misses;
    variant = &add_variant(std::move(guards));
    variant->family = family;
    if (kind == Work::Kind::generalize) family->begin_compilation();
  }
  ++variant->recorded;
  if (variant->state == Variant::State::compiling || variant->state == Variant::State::eager) return {};
  latest = now;
  log(Topic::capture, options.name,
      "(" + variant->guards.text() + ") recorded " + std::to_string(now->trace.steps.size()) + " operators");
  if (!now->refusal.empty()) {
    stay_eager(*variant, now->refusal, !now->touches_memory);
    return {};
  }
  if (kind != Work::Kind::none) {
    Work work = begin(kind);
    work.code = std::move(found);
    return work;
  }
  const std::shared_ptr<const Recording> before = std::exchange(variant->last, now);
  if (before == nullptr) {
    now->drop_samples();  // the compiler gets the second recording
    reason = variant->reason = "it was recorded once, and a second call has to agree";
    return {};
  }
  std::string differs = disagreement(*before, *now);
  if (differs.empty() && variant->state == Variant::State::compiled) {
    // Only the number of owners of some captured tensor had changed.
    now->sizes = variant->plans.back()->recording().sizes;
    variant->plans.back()->lower_owners(*now);
    variant->plans.push_back(
        std::make_unique<Plan>(now, variant->plans.back()->code(), options, variant->plans.back()->packed()));
    variant->plan.store(variant->plans.back().get(), std::memory_order_release);
    now->drop_samples();
    if (variant->is_sized) promises.serve(*variant, *variant->plans.back());
    return {};
  }
  if (differs.empty() && now->has_copies && before->argument_hash == now->argument_hash && !now->same_as.empty()) {
    now->drop_samples();
    reason = variant->reason =
        "C++ code writes data for the operators (torch::tensor of an array, data_ptr); a call with other values in the "
        "arguments has to show that it does not depend on them";
    return {};
  }
  if (!differs.empty()) {
    now->drop_samples();
    variant->plan.store(nullptr, std::memory_order_release);
    variant->state = Variant::State::recorded;
    variant->is_sized = false;
    reason = variant->reason = differs;
    if (++variant->disagreements >= kDisagreements) stay_eager(*variant, "it differs from call to call: " + differs);
    return {};
  }
  return begin(Work::Kind::compile);
}

void CoreState::carry_out(const Work& work) {
  switch (work.kind) {
    case Work::Kind::none: return;
    case Work::Kind::compile: compile(*work.variant, work.recording); break;
    case Work::Kind::generalize: generalize(*work.variant, work.recording); break;
    case Work::Kind::join: join(*work.variant, work.recording, work.code); break;
  }
  const std::lock_guard lock(mutex);
  work.recording->drop_samples();
  --pending;
  idle.notify_all();
}

void CoreState::note(Variant& variant, const Compilation& code) {
  const std::lock_guard lock(mutex);
  variant.compile_seconds += code.seconds;
  variant.from_cache = variant.from_cache || code.from_cache;
}

void CoreState::compile(Variant& variant, const std::shared_ptr<Recording>& recording) {
  Compilation code;
  Plan* plan = nullptr;
  if (recording->has_work()) code = find_or_compile(*recording, options);
  note(variant, code);
  if (code.artifact != nullptr || !recording->has_work()) {
    auto made = std::make_unique<Plan>(recording, code.artifact, options);
    plan = made.get();
    const std::lock_guard lock(mutex);
    variant.plans.push_back(std::move(made));
  }
  // Code that is slower than the function may run with packed weights only.
  const bool packs_first = plan != nullptr && !code.slower.empty() && !options.allow_slower;
  if (packs_first) {
    freeze(variant, *plan, *recording);
    if (plan->frozen() == nullptr) {
      plan = nullptr;
      code.reason = code.slower;
    }
  }
  {
    const std::lock_guard lock(mutex);
    if (plan == nullptr) {
      stay_eager(variant, code.reason);
    } else {
      variant.state = Variant::State::compiled;
      variant.reason.clear();
      reason.clear();
      variant.plan.store(plan, std::memory_order_release);
      log(Topic::compile, options.name, "(" + variant.guards.text() + ") is compiled");
    }
  }
  if (plan != nullptr && plan->code() != nullptr && !packs_first) freeze(variant, *plan, *recording);
}

}  // namespace torchcc::detail
