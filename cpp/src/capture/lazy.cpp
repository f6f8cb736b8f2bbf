#include "lazy.h"

#include <algorithm>
#include <utility>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "arguments.h"
#include "device.h"
#include "log.h"
#include "placeholder.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

// Operators of one segment: code for more takes too long to compile.
constexpr size_t kLongest = 2048;

/// Whether a predicate holds for one of the tensors among a call's arguments.
template <class Predicate>
bool any_tensor(const Operator& op, const c10::IValue* arguments, const Predicate& predicate) {
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (value.isTensor()) {
      if (value.toTensor().defined() && predicate(value.toTensor())) return true;
    } else if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        if (element.isTensor() && element.toTensor().defined() && predicate(element.toTensor())) return true;
      }
    }
  }
  return false;
}

/// Whether autograd has to see a call: it follows what requires grad, and has to know what is a view of what, should
/// something that requires grad be written into it. Where grad mode is off, a view requires grad if what it is a view
/// of does.
bool concerns_autograd(const Operator& op, const c10::IValue* arguments) {
  const bool has_grad_mode = at::GradMode::is_enabled();
  if (c10::InferenceMode::is_enabled() || (!has_grad_mode && !op.is_view)) return false;
  if (has_grad_mode && op.is_view) return true;
  return any_tensor(op, arguments, [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

/// Whether an operator may wait.
bool waits(const Operator& op, const c10::IValue* arguments, bool is_below) {
  if (draws(op, arguments) || op.is_uninitialized || op.changes_tensors || op.is_equal ||
      (op.may_depend && !dependence(op, arguments).empty()) || (op.may_move && moves_to(op, arguments)) ||
      (!is_below && may_print(op, arguments))) {
    return false;
  }
  bool has_tensors = false;
  const bool has_other = any_tensor(op, arguments, [&](const at::Tensor& tensor) {
    if (is_number(tensor)) return false;
    has_tensors = true;
    if (!is_ordinary(tensor) || tensor.is_conj() || tensor.is_neg()) return true;
    return !is_placeholder(storage_of(tensor)) && !is_allocated(storage_of(tensor));
  });
  return has_tensors && !has_other;
}

/// Makes a stream of a GPU the current one for a scope. The one that is current again afterwards waits for it then.
class OnStream {
 public:
  explicit OnStream(const std::optional<c10::Stream>& stream) {
    if (!stream) return;
    const c10::Stream now = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(stream->device());
    if (now == *stream) return;
    after_ = now;
    guard_.emplace(*stream);
  }
  ~OnStream() {
    if (!after_) return;
    try {
      c10::Event done(c10::kCUDA);
      done.record(guard_->current_stream());
      done.block(*after_);
    } catch (const std::exception& failure) {
      log(Topic::capture, "lazy", std::string("a stream could not wait for another one: ") + failure.what());
    }
  }
  OnStream(const OnStream&) = delete;
  OnStream& operator=(const OnStream&) = delete;

 private:
  std::optional<c10::Stream> after_;
  std::optional<c10::StreamGuard> guard_;
};

}  // namespace

Lazy::Lazy(Segments& segments) : segments_(segments) { enter(); }

Lazy::~Lazy() {
  leave();
  try {
    flush("");  // after an exception, which is not how the function ends
  } catch (const std::exception& failure) {
    log(Topic::capture, "lazy", std::string("what was pending could not be computed: ") + failure.what());
  }
  segments_.count(compiled_ops_, eager_ops_);
}

void Lazy::finish() { flush("the end of the function"); }

void Lazy::materialize() { flush("materialize()"); }

void Lazy::step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const Operator& op = operator_of(handle);
  const Call call{op, handle, stack, autocast_now(), false};
  if (const auto equal = op.is_equal ? decided(call.arguments()[0], call.arguments()[1]) : std::nullopt) {
    torch::jit::drop(*stack, op.arguments.size());
    torch::jit::push(*stack, *equal);
  } else if (op.is_metadata) {
    handle.callBoxed(stack);
  } else if (concerns_autograd(op, call.arguments()) && !may_print(op, call.arguments())) {
    call_through_autograd(handle, stack);
  } else {
    run(call);
  }
}

void Lazy::step_below(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const Operator& op = operator_of(handle);
  if (op.is_metadata) {
    handle.callBoxed(stack);
  } else {
    run({op, handle, stack, {}, true});
  }
}

bool Lazy::step_quickly(const c10::OperatorHandle& handle, torch::jit::Stack* stack, bool is_below) {
  if (state_ != State::following || !follow_->has_work() || has_gpu()) return false;  // a GPU's stream may change
  const Operator* op = follow_->next();
  if (op == nullptr || op->schema != &handle.schema()) return false;
  const c10::IValue* arguments = stack->data() + (stack->size() - op->arguments.size());
  if (!is_below && concerns_autograd(*op, arguments)) return false;
  if (!follow_->matches(*op, arguments, is_below ? Autocast{} : autocast_now())) return false;
  follow_->give(*op, stack, !is_below);
  return true;
}

/// Whether an operator that does not wait touches something that is pending, or that pending operators use.
bool Lazy::is_involved(const Call& call) const {
  if (call.op.ignores_data) return false;
  return any_tensor(call.op, call.arguments(), [&](const at::Tensor& tensor) {
    if (!tensor.has_storage()) return true;
    if (state_ == State::recording) return recorder_->knows(tensor);
    return is_placeholder(storage_of(tensor)) || (follow_ != nullptr && follow_->involves(tensor));
  });
}

void Lazy::run_now(const Call& call) {
  ++eager_ops_;
  call.handle.callBoxed(call.stack);
}

/// Ends what waits for another stream than the current one.
void Lazy::follow_stream(const Call& call) {
  if (!has_gpu()) return;
  const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
  if (stream_) {
    if (cuda.getStream(stream_->device()) == *stream_) return;
    flush("a change of the GPU's current stream");
  }
  any_tensor(call.op, call.arguments(), [&](const at::Tensor& tensor) {
    if (tensor.is_cuda()) stream_ = cuda.getStream(tensor.device());
    return tensor.is_cuda();
  });
}

void Lazy::run(const Call& call) {
  follow_stream(call);
  if (state_ == State::following && follow_->matches(call.op, call.arguments(), call.autocast)) {
    advance(call);
    return;
  }
  if (!waits(call.op, call.arguments(), call.is_below)) {
    if (state_ != State::idle && (state_ == State::passing || is_involved(call))) flush(call.op.name);
    run_now(call);
    return;
  }
  std::vector<View> views;
  if (state_ == State::following) {
    const bool forgets = follow_->differs_in_number();
    views = std::exchange(views_, {});
    if (is_logged(Topic::capture)) {
      log(Topic::capture, "lazy", "a segment goes on as " + call.op.name + ", and was " + follow_->expected());
    }
    flush(forgets ? "" : call.op.name);
    if (forgets) state_ = State::passing;
    follow_stream(call);  // what begins now is for the current one, too
  }
  if (state_ == State::idle && begin(views, call)) {
    advance(call);
  } else if (state_ == State::passing) {
    run_now(call);
  } else {
    ++eager_ops_;
    recorder_->record(call.op, call.handle, call.stack, false, call.autocast);
    if (recorder_->steps() >= kLongest) flush("its length");
  }
}

/// The call that matches becomes pending.
void Lazy::advance(const Call& call) {
  if (!follow_->has_work()) {
    const c10::IValue* first = call.arguments();
    views_.push_back(
        {call.op, call.handle, std::vector<c10::IValue>(first, first + call.op.arguments.size()), call.autocast});
  }
  follow_->give(call.op, call.stack, !call.is_below);
  if (follow_->has_work()) views_.clear();
}

/// Looks for a segment that begins with some views, if any, and then this call. With the views alone the program may
/// have begun another one that it then left: the sizes of what comes next decide which one it is. Where there is none,
/// they are the beginning of a new one. False: the call has to run now.
bool Lazy::begin(const std::vector<View>& views, const Call& call) {
  bool passes = false;
  for (std::shared_ptr<Segment>& segment : segments_.beginning_with(views.empty() ? call.op : views.front().op)) {
    Segments::Known known = segments_.know(*segment);
    if (known.state == Segment::State::recorded) continue;
    const bool is_ready = known.state == Segment::State::compiled || known.is_views;
    auto follow = std::make_unique<Follow>(std::move(known), std::move(segment));
    const bool begins_so = std::all_of(views.begin(), views.end(), [&](const View& view) {
      if (!follow->matches(view.op, view.arguments.data(), view.autocast)) return false;
      torch::jit::Stack stack = view.arguments;
      follow->give(view.op, &stack, false);
      return !follow->has_work();
    });
    if (!begins_so || !follow->matches(call.op, call.arguments(), call.autocast)) continue;
    if (is_ready) {
      follow_ = std::move(follow);
      state_ = State::following;
      return true;
    }
    passes = true;
  }
  if (passes) {
    state_ = State::passing;
    return false;
  }
  recorder_ = std::make_unique<Recorder>();
  state_ = State::recording;
  const at::AutoDispatchBelowADInplaceOrView below;  // what autograd has to know of the views, it knows already
  for (const View& view : views) {
    torch::jit::Stack stack = view.arguments;
    recorder_->record(view.op, view.handle, &stack, false, view.autocast);
  }
  return false;
}

void Lazy::note_next(int64_t ops) {
  if (const auto previous = std::exchange(previous_, nullptr)) segments_.note_next(*previous, ops);
}

void Lazy::flush(const std::string& end) {
  const State state = std::exchange(state_, State::idle);
  views_.clear();
  const std::optional<c10::Stream> stream = std::exchange(stream_, std::nullopt);
  if (state == State::recording) {
    std::unique_ptr<Recording> recording = recorder_->finish_segment();
    recorder_.reset();
    const size_t steps = recording->trace.steps.size() - recording->layout.prologue;
    if (!end.empty() && steps > 0) {
      note_next(static_cast<int64_t>(steps));
      previous_ = segments_.commit(std::move(recording), end);
    }
  } else if (state == State::following) {
    const std::unique_ptr<Follow> follow = std::move(follow_);
    const OnStream on_stream(stream);
    follow->finish(segments_, end);
    compiled_ops_ += follow->compiled();
    eager_ops_ += follow->eager();
  }
}

}  // namespace torchcc::detail
