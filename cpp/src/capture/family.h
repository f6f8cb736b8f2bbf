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

/// Calls of a function that differ in sizes alone, and code for all of them. Belongs to CoreState::mutex; that of
/// segments to Segments::mutex_.
///
/// Compiled code for many sizes is right where the function calls the same operators with numbers that follow from the
/// sizes. Only running it shows that, so the first call of each size runs the function and is recorded; it then gets
/// the family's code, if its recording is what the sizes explain, and if the code gives the same results.
class Family {
 public:
  /// Code for many sizes: not all, where the compiler has other kernels for some.
  struct Code {
    std::shared_ptr<const Artifact> artifact;
    std::shared_ptr<const Recording> sample{};  ///< that it was made of
    std::shared_ptr<Packed> packed{};
  };

  /// Keeps a recording to explain others by.
  void add(std::shared_ptr<const Recording> recording);
  /// Forgets these.
  void forget_samples() { samples_.clear(); }
  /// The latest of these; null when there is none.
  const Recording* latest() const { return samples_.empty() ? nullptr : samples_.back().get(); }

  /// The code for a recording, which gets the explanation of its numbers. Null, with the reason, when there is none.
  const Code* code_for(Recording& now);
  /// Explains a recording by the samples: by all of them, else by one. Null, with the reason, when that cannot be done;
  /// null, too, after as many compilations as are worth while. `promises` name symbols.
  std::shared_ptr<const Sizes> explain(const Recording& now, const std::vector<DynamicSize>& promises);

  /// Between these, the compiler makes code for many sizes. end_compilation() takes it in, unless it is null or not for
  /// the sizes of its own sample: then it gives false, and the reason (else `why`) is kept.
  void begin_compilation() { is_compiling_ = true; }
  bool end_compilation(Code made, std::string why);
  bool is_compiling() const { return is_compiling_; }
  /// Lets calls share packed weights of the code that was taken in last.
  void share(std::shared_ptr<Packed> packed) { codes_.back().packed = std::move(packed); }

  /// Notes that the code serves a recording, and that it cannot, or that there can be none for it.
  void note_served() { failures_ = 0; }
  void note_failure(std::string why);
  /// Whether it is worth while to try further sizes.
  bool may_serve() const { return failures_ < 4; }
  /// Why sizes have code of their own; else empty.
  const std::string& reason() const { return reason_; }

 private:
  std::vector<Code> codes_;
  std::vector<std::shared_ptr<const Recording>> samples_;  ///< of different sizes, the latest last; without tensors
  std::string reason_;
  int64_t compilations_ = 0;
  int64_t failures_ = 0;  ///< recordings in a row that the family could not serve
  bool is_compiling_ = false;
};

/// Whether a recording may get code that serves other sizes.
bool may_be_sized(const Recording& recording);

/// Runs code on what a call got, backward too where it has one, and compares with what the call gave. Returns what
/// differs, an exception too; empty when nothing does. Arguments that the call wrote into get changed in the recording.
std::string compare(const std::shared_ptr<const Recording>& recording, const Artifact& code);

}  // namespace torchcc::detail
