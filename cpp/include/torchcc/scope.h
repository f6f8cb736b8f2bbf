#pragma once

#include <memory>
#include <source_location>

#include <torchcc/compile_options.h>

namespace torchcc {

/// Makes the rest of a block lazy (CompileMode::lazy), as if it were a compiled function: its operators wait until a
/// value is needed, and stretches of operators that came before run as compiled code.
///
///     for (auto& batch : *loader) {
///       torchcc::Scope lazy;
///       optimizer.zero_grad();
///       auto loss = torch::cross_entropy_loss(net->forward(batch.data), batch.target);
///       loss.backward();
///       optimizer.step();
///     }
///
/// All executions of one such line share what they have seen, in all threads. A scope inside of another, or inside of a
/// compiled function, is a part of that. The memory of tensors that wait is not there: data_ptr() and accessor() throw
/// PyTorch's c10::Error, which says what to do (torchcc::materialize). To be destroyed in the thread that made it, and
/// in the opposite order.
class Scope {
 public:
  /// `options`: those of the first execution count; their mode does not. Throws ArgumentError when they make no sense.
  explicit Scope(CompileOptions options = {}, std::source_location where = std::source_location::current());
  /// Computes what waits. An operator that fails now is written to the log (TORCHCC_LOG), and the tensors that needed
  /// it stay without memory, so that their use is an error; finish() throws instead.
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  /// Computes what waits, and ends the scope. Throws what the operators throw. Does nothing the second time.
  void finish();

  /// Of all executions of this line. Safe from any thread.
  CompileStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Makes the calling thread lazy from here on, or ends that: an existing main() needs this one line. Ending it computes
/// what waits, and throws what the operators throw. Stretches without a host read are cut where they get long. Gives
/// whether the thread was lazy before.
bool set_lazy(bool lazy);

/// What set_lazy(true) has done so far, in all threads. Safe from any thread.
CompileStats lazy_stats();

}  // namespace torchcc
