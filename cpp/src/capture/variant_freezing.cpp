// Variants whose captured tensors hold still get code that has them as constants, in the form that its kernels want.

#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "background.h"
#include "log.h"
#include "variant.h"

namespace torchcc::detail {
namespace {

// Replays without packed weights between two looks at these.
constexpr int64_t kStaleCalls = 16;

}  // namespace

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
