#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace torchcc {

/// What happens in a call of a compiled function.
enum class CompileMode {
  /// Compiled code runs in place of the function where recordings have shown that it may. Else the function runs
  /// lazily, or, if it uses the memory of tensors by pointer, eagerly.
  automatic,
  /// Compiled code runs in place of the function; a function that cannot be replayed is an error: CaptureError, with
  /// the reason.
  replay,
  /// The function's own code runs in every call, and its operators wait until a value is needed: stretches of operators
  /// that came before run as compiled code. For code that reads values, branches on them, counts its calls, or trains.
  lazy,
  /// The function runs, and nothing is recorded.
  eager,
};

/// A promise about the sizes of an argument: see CompileOptions::dynamic.
struct DynamicSize {
  int64_t argument = 0;     ///< position among the tensors of the arguments
  int64_t dim = 0;          ///< a dimension; negative ones count from the last
  std::string name;         ///< how signatures and messages name the size
  int64_t min = 2;          ///< the smallest size; 0 and 1 have code of their own
  int64_t max = INT64_MAX;  ///< the largest size
};

/// How a function is compiled. A plain value; compile() copies it.
struct CompileOptions {
  /// What calls do.
  CompileMode mode = CompileMode::automatic;

  /// How messages and stats() name the function.
  std::string name = "function";

  /// false: the call that has seen enough waits for the compiler. true: no call ever waits; calls run eagerly until the
  /// compiled code is there.
  bool background = false;

  /// Seconds that one compilation may take; after that the function stays eager, and says so.
  double timeout = 600;

  /// Options of Inductor by their name there, e.g. {"max_autotune", true}. An unknown name leaves the function eager,
  /// with the compiler's message as the reason.
  std::map<std::string, std::variant<bool, int64_t, double, std::string>> options = {};

  /// Also compile a form in which the captured tensors that the function does not write into (weights) are constants,
  /// packed for this CPU. It is used only where it is faster, and only as long as these tensors are the same objects at
  /// the same version; after a change the ordinary form takes over at once, and they are packed again in the background
  /// once they hold still.
  bool freeze = true;

  /// The same for captured tensors without a version counter (made in inference mode). A change of their values would
  /// not be seen, so this is a promise that there is none.
  bool freeze_inference_tensors = false;

  /// Launch compiled code on a GPU as one CUDA graph: two calls for each combination of thread, stream and sizes run as
  /// without, the third records a graph, and all others are one launch. Results of such a call lie in memory of the
  /// graph: they are valid until the same thread calls the function for the same sizes on the same stream again, so
  /// clone() what has to stay. Backward of calls with gradients is a graph of its own; what it reads stays until it has
  /// run. In lazy mode, segments are launched so, and results are the program's own. Where no graph can be made, or
  /// used, calls run as without, and stats() says why. See docs/cuda.md.
  bool cuda_graphs = false;

  /// Use compiled code even where the compiler has measured that PyTorch's own operators are faster. Calls shorter than
  /// 200 us are not measured.
  bool allow_slower = false;

  /// Calls that differ from others in sizes alone share code, as far as the function allows: after calls of two sizes,
  /// code is compiled for all that do the same, and the first call of each further size shows that it does. Sizes 0 and
  /// 1 have code of their own. false: each size has.
  bool automatic_dynamic_shapes = true;

  /// Sizes for which the function does the same whatever they are: as soon as calls of two sizes have led to code,
  /// calls of all others within the ranges run it at once. Where the two calls show that the function does not do the
  /// same, the second one throws CaptureError, which says where. Sizes outside the ranges are as without a promise.
  std::vector<DynamicSize> dynamic = {};

  /// Variants with code of their own that one function may have (one per set of dtypes, values of numbers, sizes that
  /// cannot share code ...). Calls that fit none of them, when there are this many, run eagerly.
  int64_t max_variants = 8;

  /// Called with one line of text when the compiler makes progress, from a thread of torchcc's or the calling one. It
  /// must not throw, nor call compiled functions; wait() before what it refers to goes away.
  std::function<void(const std::string&)> progress = {};
};

/// One set of guards of a function, and what became of it.
struct VariantStats {
  std::string inputs;    ///< the arguments that it is for: "float32[8, 784], 3, true"; of code that serves many
                         ///< sizes, the tensors among them: "arg0: float32[s0, 784] with 2 <= s0"
  std::string state;     ///< "recorded" (not yet compiled), "compiling", "compiled", "lazy", or "eager" (for good)
  std::string reason;    ///< why it is not compiled; else empty
  int64_t ops = 0;       ///< operators in the latest recording
  int64_t recorded = 0;  ///< calls that were recorded
  int64_t replayed = 0;  ///< calls that ran compiled code
  int64_t eager = 0;     ///< calls that ran the C++ code unrecorded
  double compile_seconds = 0;   ///< spent in the compiler, packed form included
  bool from_cache = false;      ///< the compiled code came from the cache
  int64_t sizes = 1;            ///< sets of sizes that share its code
  bool frozen = false;          ///< the next call uses packed weights
  int64_t graph_captures = 0;   ///< CUDA graphs that were recorded, where CompileOptions::cuda_graphs is true
  int64_t graph_calls = 0;      ///< compiled calls that were the launch of one
  int64_t graph_backwards = 0;  ///< backward passes that were
  std::string graph_reason;     ///< why others were not; else empty
};

/// Of lazy execution: operators between two places where the function needs values.
struct SegmentStats {
  std::string first;     ///< its first operator
  std::string end;       ///< what ended it: an operator, or "the end of the function"
  std::string where;     ///< the line of the program that called that: "train.cpp:42"; empty where it has no symbols
  int64_t next_ops = 0;  ///< operators of the piece behind it, which would be part of it without that end
  std::string state;     ///< as VariantStats::state
  std::string reason;    ///< why it is not compiled; else empty
  int64_t ops = 0;       ///< its operators
  int64_t recorded = 0;  ///< times that it was recorded
  int64_t replayed = 0;  ///< runs of its compiled code
  int64_t eager = 0;     ///< runs of it, or of its beginning, operator by operator
  double compile_seconds = 0;  ///< spent in the compiler
  bool from_cache = false;     ///< the compiled code came from the cache
  int64_t sizes = 1;           ///< sets of sizes that share its code
  int64_t graph_captures = 0;  ///< as in VariantStats
  int64_t graph_calls = 0;
  std::string graph_reason;
};

/// What a compiled function has done so far.
struct CompileStats {
  int64_t calls = 0;
  int64_t recorded = 0;
  int64_t replayed = 0;
  int64_t eager = 0;
  int64_t guard_misses = 0;  ///< calls that fitted no variant, the very first one included
  double compile_seconds = 0;
  std::string reason;  ///< why the latest call that was not replayed was not; else empty
  std::vector<VariantStats> variants;
  int64_t lazy = 0;          ///< calls in lazy mode
  int64_t compiled_ops = 0;  ///< operators that ran as part of compiled code, in lazy mode
  int64_t eager_ops = 0;     ///< operators that ran one by one, in lazy mode
  std::vector<SegmentStats> segments;

  /// Several lines for people.
  std::string str() const;
};

}  // namespace torchcc
