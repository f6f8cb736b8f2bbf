// One call of a compiled function: replay, or a run of the C++ code that may be recorded.

#include <torchcc/detail/core.h>

#include <torchcc/error.h>

#include "background.h"
#include "device.h"
#include "lazy.h"
#include "log.h"
#include "message.h"
#include "recorder.h"
#include "variant.h"

namespace torchcc::detail {
namespace {

void check(const CompileOptions& options) {
  if (!(options.timeout > 0)) {
    throw ArgumentError(message("compile '" + options.name + "': CompileOptions::timeout is not a time",
                                {{"expected", "seconds, more than 0"},
                                 {"got", std::to_string(options.timeout)},
                                 {"fix", "leave it out for 600 s"}}));
  }
  if (options.max_variants < 1) {
    throw ArgumentError(message("compile '" + options.name + "': CompileOptions::max_variants leaves no variant",
                                {{"expected", "1 or more"},
                                 {"got", std::to_string(options.max_variants)},
                                 {"fix", "leave it out for 8; call the function itself to run it eagerly"}}));
  }
  for (const DynamicSize& size : options.dynamic) {
    if (size.argument >= 0 && !size.name.empty() && size.min <= size.max) continue;
    throw ArgumentError(message(
        "compile '" + options.name + "': CompileOptions::dynamic has a size that cannot be",
        {{"expected", "an argument 0 or above, a name, and min <= max"},
         {"got", "argument " + std::to_string(size.argument) + ", dimension " + std::to_string(size.dim) + ", name '" +
                     size.name + "', " + std::to_string(size.min) + " to " + std::to_string(size.max)},
         {"fix", "correct it, for instance {0, 0, \"batch\", 2, 4096}"}}));
  }
}

[[noreturn]] void refuse_eager(const std::string& name, const std::string& reason) {
  throw CaptureError(message("compile '" + name + "': compiled code cannot run in its place",
                             {{"expected", "a function that can be replayed, since CompileOptions::mode is replay"},
                              {"got", reason},
                              {"fix", "change the function, or leave out the mode: it then runs lazily or eagerly"}}));
}

}  // namespace

Core::Core(CompileOptions options, ClosureBytes closure, std::unique_ptr<ModuleView> module)
    : state_(std::make_shared<CoreState>()) {
  check(options);
  state_->options = std::move(options);
  state_->promises.set(state_->options.dynamic);
  state_->watch = ClosureWatch(closure);
  state_->module = std::move(module);
}

Core::~Core() = default;

bool Core::replay(const Leaves& arguments, Replayed& results) {
  CoreState& state = *state_;
  if (Mode::current() != nullptr) return false;  // part of a function that is being recorded
  Variant* candidate = state.table.candidates(arguments);
  if (candidate == nullptr && state.promises.plans() == nullptr) return false;
  const uint64_t settings = environment();
  const std::vector<int64_t>& modes = state.modes();
  const auto run = [&](Variant& variant, const Plan& plan) {
    if (!plan.holds(arguments)) return false;
    if (plan.is_differentiated_twice()) {
      const std::lock_guard lock(state.mutex);
      state.stay_eager(variant, "backward was called with create_graph, which compiled code cannot do");
      return false;
    }
    // The function's own exception says it better, as long as nothing has been changed yet.
    const auto leave_to_function = [&] {
      if (plan.recording().mutates()) throw;
      results.tensors.clear();
      return false;
    };
    bool packed = false;
    try {
      packed = plan.run(arguments, results);
    } catch (const Error&) {
      return leave_to_function();
    } catch (const c10::OutOfMemoryError&) {
      return leave_to_function();
    }
    variant.replayed.fetch_add(1, std::memory_order_relaxed);
    if (!packed && plan.frozen() != nullptr) state.note_stale(variant, arguments);
    return true;
  };
  for (; candidate != nullptr; candidate = candidate->next.load(std::memory_order_acquire)) {
    const Plan* plan = candidate->plan.load(std::memory_order_acquire);
    if (plan != nullptr && candidate->guards.fit(arguments, modes, settings, state.watch))
      return run(*candidate, *plan);
  }
  const Promises::Plans* all = state.promises.plans();
  if (all == nullptr) return false;
  for (const Promises::Promised* promised : *all) {
    if (promised->variant->guards.fit_but_for_sizes(arguments, modes, settings, state.watch) &&
        promised->sizes->fit(arguments)) {
      return run(*promised->variant, *promised->plan);
    }
  }
  return false;
}

struct Run::State {
  std::shared_ptr<CoreState> core;
  Guards guards;  // made before the call, which may move its arguments away
  std::vector<uint64_t> closure;
  std::unique_ptr<Recorder> recorder;
  std::unique_ptr<Lazy> lazy;
};

Run::Run(Core& core, const Leaves& arguments) {
  if (Mode::current() != nullptr) return;
  CoreState& state = *core.state_;
  if (state.options.mode == CompileMode::eager) return;
  // While the program records a CUDA graph: a recording looks at what is in memory.
  if (has_gpu() && is_capturing(current_gpu())) return;
  const auto run_lazily = [&] {
    ++state.lazy;
    state_ = std::make_unique<State>(State{core.state_, Guards({}, {}, 0, {}), {}, nullptr, nullptr});
    state_->lazy = std::make_unique<Lazy>(state.segments);
  };
  if (state.options.mode == CompileMode::lazy) {
    run_lazily();
    return;
  }
  Variant* variant = state.find(arguments);
  std::shared_ptr<const Recording> previous;
  {
    std::unique_lock lock(state.mutex);
    state.promises.add_marks(arguments);
    if (state.runs_lazily(variant, arguments)) {
      lock.unlock();
      run_lazily();
      return;
    }
    if (variant == nullptr) {
      const bool may_share = state.options.automatic_dynamic_shapes || !state.promises.sizes().empty();
      const Variant* sibling = may_share ? state.find_sibling(arguments) : nullptr;
      if (sibling != nullptr) previous = sibling->last;
      const bool may_join = sibling != nullptr && may_be_sized(*sibling->last) &&
                            (sibling->family == nullptr || sibling->family->may_serve());
      if (state.is_full() && !may_join && !state.may_be_dropped(arguments)) {
        state.note_surplus(arguments);
        lock.unlock();
        state.warn();
        return;
      }
      if (!state.variants.empty() && is_logged(Topic::guards)) {
        log(Topic::guards, state.options.name,
            "fits no variant: " +
                state.variants.back()->guards.misfit(arguments, state.modes(), environment(), state.watch));
      }
    } else if (variant->state == Variant::State::eager && state.options.mode == CompileMode::replay) {
      refuse_eager(state.options.name, variant->reason);
    } else if (variant->state == Variant::State::eager || variant->state == Variant::State::compiling) {
      ++variant->eager;
      state.reason = variant->state == Variant::State::eager ? variant->reason : "it is being compiled";
      return;
    } else {
      if (variant->state == Variant::State::compiled) {
        log(Topic::guards, state.options.name,
            "recorded again: a captured tensor, or what arguments share, has changed");
      }
      previous = variant->last;
    }
  }
  std::vector<uint64_t> closure = state.watch.read();
  state_ = std::make_unique<State>(
      State{core.state_, Guards(arguments, state.modes(), environment(), closure), closure, nullptr, nullptr});
  try {
    state_->recorder = std::make_unique<Recorder>(arguments.tensors, previous.get());
  } catch (const CaptureError& error) {
    const std::lock_guard lock(state.mutex);
    state.reason = error.what();
    state_.reset();
  }
}

Run::~Run() = default;

void Run::explain(const c10::Error& error) const {
  if (state_ == nullptr || state_->lazy == nullptr) return;
  const std::string text = error.what_without_backtrace();
  if (text.find("Cannot access data pointer of Storage that is invalid") == std::string::npos &&
      text.find("its data is not allocated yet") == std::string::npos) {
    return;
  }
  state_->core->note_memory("the function uses the memory of a tensor that waits (data_ptr, accessor, storage)");
  throw CaptureError(message("compile '" + state_->core->options.name + "': the memory of a tensor is not there yet",
                             {{"expected", "no access to data (data_ptr, accessor, storage) while operators wait"},
                              {"got", first_line(text)},
                              {"fix", "call torchcc::materialize(x) before, which computes what waits"}}));
}

void materialize() {
  if (auto* lazy = dynamic_cast<Lazy*>(Mode::current())) lazy->materialize();
}

void Run::finish(const Leaves& results, bool unchanged) {
  if (state_ == nullptr) return;
  if (state_->lazy != nullptr) {
    state_->lazy->finish();
    state_.reset();
    return;
  }
  CoreState& core = *state_->core;
  if (!unchanged) state_->recorder->refuse("the function assigns to an argument that it got by reference");
  if (!core.watch.is_certain(state_->closure)) {
    state_->recorder->refuse("the function changes a C++ variable that it captures");
  }
  std::unique_ptr<Recording> recording = state_->recorder->finish(results.tensors);
  state_->recorder.reset();
  recording->result_constants.assign(results.constants.begin(), results.constants.end());
  const CoreState::Work work = core.commit(std::move(state_->guards), std::move(recording));
  core.warn();
  if (work.kind == CoreState::Work::Kind::none) {
    core.refuse_broken_promise();
    return;
  }
  if (core.options.background && work.kind != CoreState::Work::Kind::join) {
    run_in_background([weak = std::weak_ptr(state_->core), work] {
      if (const auto state = weak.lock()) state->carry_out(work);
    });
  } else {
    core.carry_out(work);
  }
  // What changed since the call began is not what decides about the function's operators.
  core.watch.drop_differences(work.variant->guards.closure(), core.watch.read());
  core.refuse_broken_promise();
}

void Core::wait() const {
  std::unique_lock lock(state_->mutex);
  state_->idle.wait(lock, [this] { return state_->pending == 0; });
}

std::string Core::trace() const {
  if (std::string segments = state_->segments.to_json(state_->options.name); !segments.empty()) return segments;
  const std::lock_guard lock(state_->mutex);
  if (state_->latest == nullptr) {
    throw CaptureError(message("trace of '" + state_->options.name + "': there is no recording",
                               {{"expected", "a call of the function before trace()"},
                                {"got", "no call that was recorded"},
                                {"fix", "call it; stats() says why a call is not recorded"}}));
  }
  return to_json(*state_->latest, state_->options.name);
}

}  // namespace torchcc::detail
