#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torchcc/compile_options.h>
#include <torchcc/detail/core.h>

#include "guards.h"
#include "plan.h"
#include "recording.h"
#include "segment.h"

namespace torchcc::detail {

using InductorOptions = decltype(CompileOptions::options);

/// Options of Inductor as the compiler reads them.
std::string options_json(const InductorOptions& options);

/// The recorded tensors, for the compiler to check its code with.
std::vector<char> pickle(const Recording& recording);

/// Copies of everything that the program may change before the compiler has read it.
void detach_from_program(Recording& recording);

/// Names the inputs of a recording: arg0, the names of a module's weights, captured0, constant0.
void name_captured(Recording& recording, const ModuleView* module);

/// One set of guards of a function, with its recordings and compiled code. The atomics are free for all; everything
/// else belongs to CoreState::mutex.
struct Variant {
  using State = CodeState;

  explicit Variant(Guards guards) : guards(std::move(guards)) {}

  const Guards guards;
  std::atomic<Plan*> plan{nullptr};  ///< what calls run; null while there is nothing
  std::atomic<int64_t> replayed{0};
  std::atomic<int64_t> eager{0};
  std::atomic<int64_t> stale{0};  ///< calls that could not use the packed weights

  State state = State::recorded;
  std::string reason;
  bool is_lazy = false;  ///< where eager: calls may run lazily in place
  std::shared_ptr<const Recording> last;
  int64_t recorded = 0;
  int64_t disagreements = 0;
  double compile_seconds = 0;
  bool from_cache = false;
  bool is_packing = false;
  int64_t quiet = 0;         ///< looks at the weights that found no change
  int64_t quiet_needed = 4;  ///< before they are packed again; doubles each time
  std::vector<Frozen::Weight> seen;
  // Other threads may still run these; they stay as long as the function.
  std::vector<std::unique_ptr<Plan>> plans;
  std::vector<std::unique_ptr<Frozen>> packed;
};

/// What a Core holds.
struct CoreState : std::enable_shared_from_this<CoreState> {
  using Table = std::vector<Variant*>;

  CompileOptions options;
  Segments segments{*this};  ///< of lazy execution
  ClosureWatch watch;
  std::unique_ptr<ModuleView> module;
  std::atomic<const Table*> table{nullptr};
  std::atomic<int64_t> guard_misses{0};
  std::atomic<int64_t> lazy{0};     ///< calls in lazy mode
  std::atomic<int64_t> surplus{0};  ///< eager calls that fitted no variant when there were as many as allowed

  mutable std::mutex mutex;
  mutable std::condition_variable idle;
  std::vector<std::unique_ptr<const Table>> tables;  ///< the current one is the last
  std::vector<std::unique_ptr<Variant>> variants;
  std::shared_ptr<const Recording> latest;
  std::string reason;
  std::string warning;  ///< to be given by warn()
  bool has_warned = false;
  std::string never_lazy;  ///< why calls do not run lazily any more; else empty
  int64_t pending = 0;     ///< compilations
  int64_t futile = 0;      ///< recordings, when there were as many variants as allowed, that fitted none

  /// The words of the module's training flags, in memory of this thread.
  const std::vector<int64_t>& modes() const;
  Variant* find(const Leaves& arguments) const;

  /// Whether no further variant may be made.
  bool is_full() const { return static_cast<int64_t>(variants.size()) >= options.max_variants; }
  /// Whether a call fits no variant only because of words beside captured variables, which a recording may show to be
  /// none.
  bool may_be_dropped(const Leaves& arguments) const;
  /// Counts a call that stays eager because there are as many variants as allowed.
  void note_surplus(const Leaves& arguments);
  /// Warns of what note_surplus() and commit() have noted, once. To be called without the mutex.
  void warn();
  /// Takes in a recorded call. Returns the recording if it is to be compiled now.
  std::shared_ptr<Recording> commit(Guards guards, std::unique_ptr<Recording> recording, Variant*& variant);
  /// Runs it eagerly from now on, or lazily.
  void stay_eager(Variant& variant, std::string reason, bool is_lazy = false);
  /// Notes that the function uses memory of tensors without operators, so that no further calls run lazily unasked.
  void note_memory(const std::string& reason);
  /// Whether a call that fits a variant, or none, is to run lazily. Notes why. To be called with the mutex.
  bool runs_lazily(const Variant* variant, const Leaves& arguments);
  struct Code {
    std::shared_ptr<const Artifact> artifact{};
    std::string reason{};  ///< why there is none; empty when it was measured before, and lost
    std::string slower{};  ///< why the function itself should run in its place; empty when it is faster
    double seconds = 0;    ///< spent in the compiler
    bool from_cache = false;
  };
  /// Code for a recording, from the cache or the compiler. Does not throw.
  Code find_code_for(const Recording& recording);
  /// Gets code for a recording that commit() returned. Does not throw.
  void compile(Variant& variant, const std::shared_ptr<Recording>& recording);
  /// Looks whether changed weights hold still, and if so has them packed again. Now and then.
  void note_stale(Variant& variant, const Leaves& arguments);

 private:
  Variant* find_recorded(const Guards& guards, const Recording& made);
  Variant& add_variant(Guards guards);
  void refuse_surplus(const std::string& changed);
  bool fits(const Recording& recording, const Artifact& artifact) const;
  Code get_code(const Recording& recording, bool freeze);
  void note(Variant& variant, const Code& code);
  void freeze(Variant& variant, Plan& plan, const Recording& recording);
  std::string key_text(const Recording& recording, bool freeze) const;
};

}  // namespace torchcc::detail
