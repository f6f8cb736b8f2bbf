#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torchcc/compile_options.h>
#include <torchcc/detail/core.h>

#include "compilation.h"
#include "family.h"
#include "guards.h"
#include "plan.h"
#include "promise.h"
#include "recording.h"
#include "segment.h"

namespace torchcc::detail {

/// One set of guards of a function, with its recordings and compiled code. The atomics are free for all; everything
/// else belongs to CoreState::mutex.
struct Variant {
  using State = CodeState;

  explicit Variant(Guards guards) : guards(std::move(guards)) {}

  const Guards guards;
  std::atomic<Plan*> plan{nullptr};     ///< what calls run; null while there is nothing
  std::atomic<Variant*> next{nullptr};  ///< in the chain of CoreState::Table
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
  std::shared_ptr<Family> family;  ///< of calls that differ in sizes; null where there was no such call
  bool is_sized = false;           ///< it has the family's code, which serves other sizes too
  // Other threads may still run these; they stay as long as the function.
  std::vector<std::unique_ptr<Plan>> plans;
  std::vector<std::unique_ptr<Frozen>> packed;
};

/// What a Core holds.
struct CoreState : std::enable_shared_from_this<CoreState> {
  /// The variants, for calls to find theirs without a lock: chains of those with the same Guards::hash().
  struct Table {
    static constexpr size_t kChains = 256;
    std::array<std::atomic<Variant*>, kChains> first{};

    /// The first of those that a call may fit, or null; Variant::next leads to the others.
    Variant* candidates(const Leaves& arguments) const {
      return first[Guards::hash_of(arguments) % kChains].load(std::memory_order_acquire);
    }
    /// Adds one at the end of its chain. To be called with the mutex.
    void add(Variant& variant);
  };

  CompileOptions options;
  Segments segments{*this};  ///< of lazy execution
  ClosureWatch watch;
  std::unique_ptr<ModuleView> module;
  Table table;
  Promises promises;
  std::atomic<int64_t> guard_misses{0};
  std::atomic<int64_t> lazy{0};     ///< calls in lazy mode
  std::atomic<int64_t> surplus{0};  ///< eager calls that fitted no variant when there were as many as allowed

  mutable std::mutex mutex;
  mutable std::condition_variable idle;
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

  /// Whether no further variant may have code of its own.
  bool is_full() const;
  /// A variant whose calls differ from one in sizes alone; null when there is none. To be called with the mutex.
  Variant* find_sibling(const Leaves& arguments) const;
  /// Whether a call fits no variant only because of words beside captured variables, which a recording may show to be
  /// none.
  bool may_be_dropped(const Leaves& arguments) const;
  /// Counts a call that stays eager because there are as many variants as allowed.
  void note_surplus(const Leaves& arguments);
  /// Warns of what note_surplus() and commit() have noted, once. To be called without the mutex.
  void warn();
  /// Throws CaptureError where a call has shown that a promise about sizes is wrong. Likewise.
  void refuse_broken_promise();
  /// What is to be done with a recorded call.
  struct Work {
    enum class Kind : uint8_t {
      none,
      compile,     ///< it gets code of its own
      generalize,  ///< it gets code that serves other sizes too
      join,        ///< it gets its family's code, if that gives the same results
    };
    Kind kind = Kind::none;
    Variant* variant = nullptr;
    std::shared_ptr<Recording> recording{};
    Family::Code code{};  ///< to join
  };
  /// Takes in a recorded call.
  Work commit(Guards guards, std::unique_ptr<Recording> recording);
  /// Does it. Does not throw.
  void carry_out(const Work& work);
  /// Runs it eagerly from now on, or lazily.
  void stay_eager(Variant& variant, std::string reason, bool is_lazy = false);
  /// Notes that the function uses memory of tensors without operators, so that no further calls run lazily unasked.
  void note_memory(const std::string& reason);
  /// Whether a call that fits a variant, or none, is to run lazily. Notes why. To be called with the mutex.
  bool runs_lazily(const Variant* variant, const Leaves& arguments);
  /// Looks whether changed weights hold still, and if so has them packed again. Now and then.
  void note_stale(Variant& variant, const Leaves& arguments);

 private:
  Variant* find_recorded(const Guards& guards, const Recording& made);
  Variant& add_variant(Guards guards);
  void refuse_surplus(const std::string& changed);
  void note(Variant& variant, const Compilation& code);
  void compile(Variant& variant, const std::shared_ptr<Recording>& recording);
  // variant_sizes.cpp: code that several variants share
  std::shared_ptr<Family> family_of(const Guards& guards, const Recording& made) const;
  Work::Kind place(Family& family, Recording& recording, Family::Code& found);
  void generalize(Variant& variant, const std::shared_ptr<Recording>& recording);
  void join(Variant& variant, const std::shared_ptr<Recording>& recording, const Family::Code& code);
  void serve(Variant& variant, std::unique_ptr<Plan> plan);
  void leave_family(Variant& variant, const std::shared_ptr<Recording>& recording);
  // variant_freezing.cpp: code with packed weights
  void freeze(Variant& variant, Plan& plan, const Recording& recording);
};

}  // namespace torchcc::detail
