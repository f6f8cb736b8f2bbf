#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <torchcc/compile_options.h>

#include "artifact.h"
#include "family.h"
#include "graphs.h"
#include "recording.h"

namespace torchcc::detail {

struct CoreState;

/// How far the code of something recorded is.
enum class CodeState : uint8_t { recorded, compiling, compiled, eager };
/// "recorded", and so on, for stats().
const char* name_of(CodeState state);

/// Operators between two places where a program needs values. What others may change belongs to Segments::mutex.
struct Segment {
  using State = CodeState;

  State state = State::recorded;
  std::shared_ptr<const Recording> recording;
  std::shared_ptr<const Artifact> code;  ///< where compiled
  std::shared_ptr<Graphs> graphs;        ///< of the code; null without CompileOptions::cuda_graphs
  std::string reason;                    ///< why it is not compiled
  std::string end;                       ///< what ended it, for people
  std::vector<void*> stack;              ///< of the call that did
  int64_t next_ops = 0;                  ///< operators of the segment that came behind it
  int64_t recorded = 0;
  int64_t replayed = 0;    ///< runs of the compiled code
  int64_t eager = 0;       ///< runs of its operators, or of some of them, one by one
  int64_t mismatches = 0;  ///< of these, runs that went on otherwise
  double compile_seconds = 0;
  bool from_cache = false;
  std::shared_ptr<Family> family;  ///< of segments that differ in sizes alone; null while there is no other
  bool is_sized = false;           ///< it has the family's code, which serves other sizes too
  bool is_views = false;           ///< its operators give nothing but views, and need no code
};

/// Adds a number as an input, given the bits of a double. `device`: a word of ValueWord, which says where the compiled
/// code is to take it if it can; the number itself is on the CPU.
ValueId add_number(Recording& recording, int64_t bits, int64_t device);

/// What is needed to follow a segment, without the tensors that it was recorded with.
std::shared_ptr<const Recording> without_tensors(const Recording& recording);

/// Whether the values of two recordings of segments lie alike; the earlier one may have more, those of its numbers.
bool same_places(const Recording& before, const Recording& after);

/// The segments of one function; all threads share them. Safe from any thread.
class Segments {
 public:
  explicit Segments(CoreState& core) : core_(core) {}

  /// Segments that begin with an operator, those with compiled code first, the latest before others.
  std::vector<std::shared_ptr<Segment>> beginning_with(const Operator& op) const;
  /// The recording of a segment as it is to be followed, and its code; null while there is none.
  struct Known {
    std::shared_ptr<const Recording> recording;
    std::shared_ptr<const Artifact> code;
    std::shared_ptr<Graphs> graphs;
    Segment::State state = Segment::State::recorded;
    bool is_views = false;
  };
  Known know(const Segment& segment) const;

  /// Takes in what was recorded; compiles what was recorded the same way before. Returns the segment, or null. Does not
  /// throw.
  std::shared_ptr<Segment> commit(std::unique_ptr<Recording> recording, std::string end);
  /// Notes that a segment of so many operators came behind another.
  void note_next(Segment& segment, int64_t ops);
  /// Counts a run of compiled code, and a run operator by operator.
  void note_replayed(const std::shared_ptr<Segment>& segment);
  void note_eager(Segment& segment);
  /// A run of a segment ended after `steps` operators, or needs tensors that the code does not give: from now on the
  /// segment is these operators, with these outputs. `recording`: what ran, with samples.
  void replace(const std::shared_ptr<Segment>& segment, std::unique_ptr<Recording> recording, std::string end);
  /// A number differed that was the same in all recordings: it is recorded again.
  void forget_code(Segment& segment);
  /// Counts operators that ran compiled, and those that ran one by one.
  void count(int64_t compiled, int64_t eager);

  /// Adds what it knows.
  void describe(CompileStats& stats) const;
  /// All segments with their recordings, as JSON; empty when there are none.
  std::string to_json(const std::string& name) const;

 private:
  /// All segments as they are now.
  struct Snapshot {
    SegmentStats stats;
    std::shared_ptr<const Recording> recording;
    std::vector<void*> stack;
  };
  std::vector<Snapshot> snapshots() const;
  void add(std::shared_ptr<Segment> segment);
  void set_code(Segment& segment, std::shared_ptr<const Artifact> code);
  void compile(const std::shared_ptr<Segment>& segment, const std::shared_ptr<Recording>& recording);
  void stay_eager(Segment& segment, std::string reason);
  // segment_sizes.cpp
  /// A recording that can have code which serves other sizes too; without one, it needs code of its own.
  struct Sized {
    std::shared_ptr<Recording> recording{};  ///< null: none
    std::shared_ptr<Family> family{};
    std::shared_ptr<const Artifact> code{};  ///< the family's, to be used if it gives the same results; null: none
  };
  Sized place(const Recording& now, const Segment* same);
  void join(Segment& segment, const Sized& sized);
  void take_in(Segment& segment, const std::shared_ptr<const Artifact>& code, std::string reason);
  void leave_family(Segment& segment);

  CoreState& core_;
  mutable std::mutex mutex_;
  std::map<const Operator*, std::vector<std::shared_ptr<Segment>>> by_first_;
  int64_t compilations_ = 0;
  int64_t compiled_ops_ = 0;
  int64_t eager_ops_ = 0;
};

}  // namespace torchcc::detail
