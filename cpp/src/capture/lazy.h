#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/stack.h>
#include <c10/core/Stream.h>

#include "follow.h"
#include "mode.h"
#include "recorder.h"
#include "segment.h"

namespace torchcc::detail {

/// Runs a program so that operators wait until somebody needs what they give.
///
/// The program's own code runs on every call. While its operators are those of a known segment, each only gives
/// tensors without memory (placeholders), which have the sizes, strides and dtype of the recording. Where the segment
/// ends, or the program does something else, what is pending is computed: by the segment's compiled code if all of its
/// operators came, else by these operators one by one; and the tensors that the program still has get their memory.
/// Operators that no segment begins with run at once, and are recorded as a new one.
///
/// Operators that autograd follows go through it first: its graph is made of what the program does, whether or not
/// there is memory yet, and backward is more operators. What waits are the operators that autograd calls.
///
/// Run at once, whatever the recordings say, are operators whose numbers or sizes depend on data, random ones, copies
/// between devices, and those on memory that PyTorch did not allocate, which the program may write to at any time.
///
/// What waits for a GPU is computed on the stream that was the current one, as soon as another one is; that then waits
/// for it, since an event that the program has recorded meanwhile came too early.
class Lazy final : public Mode {
 public:
  explicit Lazy(Segments& segments);
  /// Computes what is pending. If that fails, tensors without memory stay so: their use is an error.
  ~Lazy() override;

  void step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) override;
  void step_below(const c10::OperatorHandle& handle, torch::jit::Stack* stack) override;
  bool step_quickly(const c10::OperatorHandle& handle, torch::jit::Stack* stack, bool is_below) override;
  /// At the end of the program's code: computes what is pending, and throws what that throws.
  void finish();
  /// The same at any time.
  void materialize();

 private:
  /// passing: operators run one by one up to the next flush, and are not recorded.
  enum class State : uint8_t { idle, recording, following, passing };
  /// How a call came here.
  struct Call {
    const Operator& op;
    const c10::OperatorHandle& handle;
    torch::jit::Stack* stack;
    Autocast autocast;
    bool is_below;  ///< out of autograd, which counts versions itself
    const c10::IValue* arguments() const { return stack->data() + (stack->size() - op.arguments.size()); }
  };

  /// A call that gave a view of memory from outside.
  struct View {
    const Operator& op;
    c10::OperatorHandle handle;
    std::vector<c10::IValue> arguments;
    Autocast autocast;
  };

  void run(const Call& call);
  void run_now(const Call& call);
  void advance(const Call& call);
  void follow_stream(const Call& call);
  bool is_involved(const Call& call) const;
  bool begin(const std::vector<View>& views, const Call& call);
  void flush(const std::string& end);
  void note_next(int64_t ops);

  Segments& segments_;
  std::shared_ptr<Segment> previous_;  ///< the one that ended last, until the next begins
  State state_ = State::idle;
  std::unique_ptr<Recorder> recorder_;
  std::unique_ptr<Follow> follow_;
  /// What is pending, where that is nothing but such views: another segment may begin with them too.
  std::vector<View> views_;
  std::optional<c10::Stream> stream_;  ///< the current one of the GPU that operators use; empty while they use none
  int64_t compiled_ops_ = 0;
  int64_t eager_ops_ = 0;
};

}  // namespace torchcc::detail
