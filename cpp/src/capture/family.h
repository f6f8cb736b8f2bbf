#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <torchcc/compile_options.h>

#include "artifact.h"
#include "plan.h"
#include "recording.h"
#include "sizes.h"

namespace torchcc::detail {

/// Times that code for many sizes is made, anew if other numbers turn out to differ.
inline constexpr int64_t kGeneralizations = 3;

/// Calls of a function that differ in sizes alone, and code for all of them. Belongs to CoreState::mutex; that of
/// segments to Segments::mutex_.
///
/// Compiled code for many sizes is right where the function calls the same operators with numbers that follow from the
/// sizes. Only running it shows that, so the first call of each size runs the function and is recorded; it then gets
/// the family's code, if its recording is what the sizes explain, and if the code gives the same results.
struct Family {
  /// Code for many sizes: not all, where the compiler has other kernels for some.
  struct Code {
    std::shared_ptr<const Artifact> artifact;
    std::shared_ptr<const Recording> sample{};  ///< that it was made of
    std::shared_ptr<Packed> packed{};
  };
  std::vector<Code> codes;
  std::vector<std::shared_ptr<const Recording>> samples;  ///< of different sizes, the latest last; without tensors
  std::string reason;                                     ///< why sizes have code of their own; else empty
  int64_t compilations = 0;
  int64_t failures = 0;  ///< recordings that the family could not serve
  bool is_compiling = false;

  /// Keeps a recording to explain others by.
  void add(std::shared_ptr<const Recording> recording);
  /// The code for a recording, which gets the explanation of its numbers. Null, with the reason, when there is none.
  const Code* code_for(Recording& now);
  /// Whether it is worth while to try further sizes.
  bool may_serve() const { return failures < 4; }
};

/// Explains a recording by a family's samples: by all of them, else by one. Null, with the family's reason, when that
/// cannot be done. `promises` name symbols.
std::shared_ptr<const Sizes> explain(Family& family, const Recording& now, const std::vector<DynamicSize>& promises);

/// Whether a recording may get code that serves other sizes.
bool may_be_sized(const Recording& recording);

/// Runs code on what a call got, backward too where it has one, and compares with what the call gave. Returns what
/// differs; empty when nothing does. Arguments that the call wrote into get changed in the recording.
std::string compare(const std::shared_ptr<const Recording>& recording, const Artifact& code);

}  // namespace torchcc::detail
