#include <torchcc/scope.h>

#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include <torchcc/detail/core.h>

#include "lazy.h"
#include "log.h"
#include "mode.h"
#include "placeholder.h"

namespace torchcc {
namespace detail {
namespace {

// Nobody can turn PyTorch's error into a CaptureError here, as a compiled function does.
constexpr const char* kMessage =
    "torchcc: the memory of this tensor is not there yet, since operators wait; call torchcc::materialize(x) before "
    "data_ptr(), accessor() or storage()";

}  // namespace

/// One stretch of a program in lazy mode.
class Stretch {
 public:
  explicit Stretch(Core& core) : is_inner_(Mode::current() != nullptr) {
    run_ = std::make_unique<Run>(core, Leaves());
    if (!is_inner_) set_access_message(kMessage);
  }
  ~Stretch() {
    try {
      finish();
    } catch (const std::exception& failure) {
      log(Topic::capture, "lazy", std::string("what was pending could not be computed: ") + failure.what());
    }
  }
  Stretch(const Stretch&) = delete;
  Stretch& operator=(const Stretch&) = delete;
  void finish() {
    const auto run = std::move(run_);
    if (run == nullptr) return;
    if (!is_inner_) set_access_message(nullptr);
    run->finish({}, true);
  }

 private:
  bool is_inner_;
  std::unique_ptr<Run> run_;
};

}  // namespace detail

namespace {

using detail::Core;
using detail::Stretch;

/// What all executions of one place in the program share; made at the first one, and never deleted, since threads may
/// still be in it when the program's statics go.
std::shared_ptr<Core> core_of(const std::string& place, CompileOptions options) {
  static std::mutex mutex;
  static auto& cores = *new std::map<std::string, std::shared_ptr<Core>>;
  const std::lock_guard lock(mutex);
  std::shared_ptr<Core>& core = cores[place];
  if (core == nullptr) {
    options.mode = CompileMode::lazy;
    core = std::make_shared<Core>(std::move(options), detail::ClosureBytes{}, nullptr);
  }
  return core;
}

std::shared_ptr<Core> thread_core() { return core_of("", {.name = "set_lazy"}); }

/// The name of a file without its folders.
std::string file_of(const std::source_location& where) {
  const std::string path = where.file_name();
  return path.substr(path.rfind('/') + 1);
}

thread_local std::unique_ptr<Stretch> lazy_thread;

}  // namespace

struct Scope::State {
  std::shared_ptr<Core> core;
  std::unique_ptr<Stretch> stretch;  ///< null once it has ended
};

Scope::Scope(CompileOptions options, std::source_location where) : state_(std::make_unique<State>()) {
  if (options.name == CompileOptions().name) options.name = file_of(where) + ":" + std::to_string(where.line());
  const std::string place =
      std::string(where.file_name()) + ":" + std::to_string(where.line()) + ":" + std::to_string(where.column());
  state_->core = core_of(place, std::move(options));
  state_->stretch = std::make_unique<Stretch>(*state_->core);
}

Scope::~Scope() = default;

void Scope::finish() {
  if (const auto stretch = std::move(state_->stretch)) stretch->finish();
}

CompileStats Scope::stats() const { return state_->core->stats(); }

bool set_lazy(bool lazy) {
  const bool before = lazy_thread != nullptr;
  if (lazy && !before) {
    lazy_thread = std::make_unique<Stretch>(*thread_core());
  } else if (!lazy && before) {
    const auto stretch = std::move(lazy_thread);
    stretch->finish();
  }
  return before;
}

CompileStats lazy_stats() { return thread_core()->stats(); }

}  // namespace torchcc
