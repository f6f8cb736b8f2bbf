#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torchcc/compile_options.h>

#include "artifact.h"
#include "recording.h"

namespace torchcc::detail {

using InductorOptions = decltype(CompileOptions::options);

/// What compiling a recording came to: its code, or why there is none.
struct Compilation {
  std::shared_ptr<const Artifact> artifact{};
  std::string reason{};  ///< why there is none; empty when it was measured before, and lost
  std::string slower{};  ///< why the function itself should run in its place; empty when it is faster
  double seconds = 0;    ///< spent in the compiler
  bool from_cache = false;

  /// Lets go of code that is slower than the function, unless that is allowed.
  void drop_slower(const CompileOptions& options);
};

/// The code of a recording, from the cache or the compiler. Does not throw: what went wrong is the reason.
Compilation find_or_compile(const Recording& recording, const CompileOptions& options);

/// The same with all inputs as constants but arguments and those that are written. Throws what the cache does.
Compilation find_or_compile_frozen(const Recording& recording, const CompileOptions& options);

/// Options of Inductor as the compiler reads them.
std::string options_json(const InductorOptions& options);

/// The recorded tensors, for the compiler to check its code with.
std::vector<char> pickle(const Recording& recording);

}  // namespace torchcc::detail
