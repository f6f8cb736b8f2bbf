#include "variant.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>

#include <c10/util/Exception.h>
#include <torchcc/error.h>

#include "background.h"
#include "log.h"
#include "message.h"

namespace torchcc::detail {
namespace {

// Recordings in a row that may differ before the function counts as one that always does.
constexpr int64_t kDisagreements = 6;
// Replays without packed weights between two looks at these.
constexpr int64_t kStaleCalls = 16;
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
    if (variant->family == nullptr || variant->family->reason.empty()) continue;
    reason += "; one code cannot serve its sizes: " + variant->family->reason;
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

void CoreState::refuse_broken_promise() {
  std::string why;
  {
    const std::lock_guard lock(mutex);
    why.swap(broken);
  }
  if (why.empty()) return;
  throw CaptureError(message("compile '" + options.name + "': it does not do the same for all sizes",
                             {{"expected", "operators that follow from the sizes that CompileOptions::dynamic names"},
                              {"got", why},
                              {"fix", "change the code there, or leave the size out of CompileOptions::dynamic"}}));
}

void CoreState::note_broken_promise(const Recording& sample, const Recording& now, const std::string& why) {
  if (are_promised(dynamic, sample, now)) broken = why;
}

/// Makes the variant's code serve calls of promised sizes at once. To be called with the mutex.
void CoreState::keep_promises(Variant& variant) {
  const Plan& plan = *variant.plans.back();
  auto sizes = PromisedSizes::of(dynamic, plan);
  if (sizes == nullptr) return;
  promises.push_back(std::make_unique<const Promised>(Promised{&variant, &plan, std::move(sizes)}));
  auto all = std::make_unique<AllPromised>(1, promises.back().get());
  if (const AllPromised* before = promised.load(std::memory_order_relaxed)) {
    std::copy_if(before->begin(), before->end(), std::back_inserter(*all),
                 [&](const Promised* other) { return other->plan->code() != plan.code(); });
  }
  promised.store(all.get(), std::memory_order_release);
  promise_lists.push_back(std::move(all));
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
    family->samples.push_back(variant->last);
  }
  return family;
}

/// Whether a recording can have code that serves other sizes too: some that was found, or new one.
CoreState::Work::Kind CoreState::place(Family& family, Recording& recording, Family::Code& found) {
  if (!may_be_sized(recording) || family.is_compiling || !family.may_serve()) return Work::Kind::none;
  if (const Family::Code* code = family.code_for(recording)) {
    found = *code;
    return Work::Kind::join;
  }
  if (family.compilations < kGeneralizations) recording.sizes = explain(family, recording, dynamic);
  if (recording.sizes != nullptr) return Work::Kind::generalize;
  ++family.failures;
  note_broken_promise(*family.samples.back(), recording, family.reason);
  log(Topic::capture, options.name, "one code cannot serve these sizes: " + family.reason);
  return Work::Kind::none;
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
    const bool may_share = options.automatic_dynamic_shapes || !dynamic.empty();
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
    if (kind == Work::Kind::generalize) family->is_compiling = true;
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
    if (variant->is_sized) keep_promises(*variant);
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

/// From now on, calls run the plan. To be called with the mutex.
void CoreState::serve(Variant& variant, std::unique_ptr<Plan> plan) {
  variant.state = Variant::State::compiled;
  variant.is_sized = true;
  variant.reason.clear();
  reason.clear();
  variant.plan.store(plan.get(), std::memory_order_release);
  variant.plans.push_back(std::move(plan));
  keep_promises(variant);
}

/// The variant goes on as if there were no calls of other sizes. To be called with the mutex.
void CoreState::leave_family(Variant& variant, const std::shared_ptr<Recording>& recording, std::string why) {
  recording->sizes = nullptr;
  variant.state = Variant::State::recorded;
  variant.family->reason = std::move(why);
  ++variant.family->failures;
  if (!variant.family->samples.empty())
    note_broken_promise(*variant.family->samples.back(), *recording, variant.family->reason);
  reason = variant.reason = "it was recorded once, and a second call has to agree";
  log(Topic::compile, options.name, "(" + variant.guards.text() + ") gets code of its own: " + variant.family->reason);
}

void CoreState::generalize(Variant& variant, const std::shared_ptr<Recording>& recording) {
  const std::shared_ptr<Family> family = variant.family;
  Compilation code = find_or_compile(*recording, options);
  note(variant, code);
  code.drop_slower(options);
  if (code.artifact != nullptr) {
    code.reason = misfit(code.artifact->signature, *recording);
    if (!code.reason.empty()) code.artifact = nullptr;
  }
  Plan* plan = nullptr;
  {
    const std::lock_guard lock(mutex);
    family->is_compiling = false;
    ++family->compilations;
    if (code.artifact == nullptr) {
      leave_family(variant, recording, code.reason);
      return;
    }
    auto made = std::make_unique<Plan>(recording, code.artifact, options);
    plan = made.get();
    family->codes.push_back({code.artifact, recording, plan->packed()});
    family->failures = 0;
    family->add(recording);
    serve(variant, std::move(made));
    log(Topic::compile, options.name, "(" + variant.guards.text() + ") is compiled for other sizes too");
  }
  freeze(variant, *plan, *recording);
}

void CoreState::join(Variant& variant, const std::shared_ptr<Recording>& recording, const Family::Code& code) {
  std::string differs;
  try {
    differs = compare(recording, *code.artifact);
  } catch (const std::exception& failure) {
    differs = first_line(failure.what());
  }
  const std::lock_guard lock(mutex);
  if (!differs.empty()) {
    leave_family(variant, recording, differs);
  } else {
    variant.family->failures = 0;
    serve(variant, std::make_unique<Plan>(recording, code.artifact, options, code.packed));
  }
}

void CoreState::freeze(Variant& variant, Plan& plan, const Recording& recording) {
  // Inductor folds weights for GPUs too, but keeps 16-bit ones as float32 where its kernels compute with that.
  if (!options.freeze || recording.trains || recording.device.is_cuda()) return;
  try {
    auto made = std::make_unique<Frozen>();
    made->weights = freezable(recording, options.freeze_inference_tensors);
    if (made->weights.empty()) return;
    for (size_t i = 0; i < recording.inputs.size(); ++i) {
      const Input& input = recording.inputs[i];
      if (input.kind == Input::Kind::argument || input.written) made->inputs.push_back(i);
    }
    Compilation code = find_or_compile_frozen(recording, options);
    note(variant, code);
    if (code.artifact != nullptr && code.artifact->library->inputs() != made->inputs.size()) {
      code.reason = "the compiled code takes " + std::to_string(code.artifact->library->inputs()) +
                    " inputs in place of " + std::to_string(made->inputs.size());
      code.artifact = nullptr;
    }
    if (code.artifact == nullptr) {
      if (!code.reason.empty()) log(Topic::compile, options.name, "weights are not packed: " + code.reason);
      return;
    }
    made->code = std::move(code.artifact);
    // The weights may have changed while the compiler read them.
    if (!made->is_current()) return;
    const std::lock_guard lock(mutex);
    variant.packed.push_back(std::move(made));
    plan.packed()->form.store(variant.packed.back().get(), std::memory_order_release);
    log(Topic::compile, options.name, "(" + variant.guards.text() + ") has packed weights");
  } catch (const std::exception& failure) {
    log(Topic::compile, options.name, std::string("weights are not packed: ") + failure.what());
  }
}

void CoreState::note_stale(Variant& variant, const Leaves& arguments) {
  if (variant.stale.fetch_add(1, std::memory_order_relaxed) % kStaleCalls != 0) return;
  const std::unique_lock lock(mutex, std::try_to_lock);
  Plan* plan = variant.plan.load(std::memory_order_acquire);
  if (!lock.owns_lock() || variant.is_packing || plan == nullptr || plan->recording().random_state.defined()) return;
  std::vector<Frozen::Weight> now = freezable(plan->recording(), options.freeze_inference_tensors);
  if (now != variant.seen) {
    variant.seen = std::move(now);
    variant.quiet = 0;
    return;
  }
  if (++variant.quiet < variant.quiet_needed) return;
  variant.quiet = 0;
  variant.quiet_needed *= 2;
  variant.is_packing = true;
  ++pending;
  run_in_background([weak = weak_from_this(), target = &variant, plan, sample = plan->sample(arguments)] {
    const auto state = weak.lock();
    if (state == nullptr) return;
    state->freeze(*target, *plan, *sample);
    const std::lock_guard inner(state->mutex);
    target->is_packing = false;
    --state->pending;
    state->idle.notify_all();
  });
}

}  // namespace torchcc::detail
