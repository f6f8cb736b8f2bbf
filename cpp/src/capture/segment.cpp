#include "segment.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include <ATen/ScalarOps.h>
#include <nlohmann/json.hpp>

#include "background.h"
#include "callers.h"
#include "capturable.h"
#include "log.h"
#include "mode.h"
#include "variant.h"

namespace torchcc::detail {
namespace {

// Segments of one function for which code is made; what comes later runs operator by operator.
constexpr int64_t kCompilations = 64;
// Segments that begin with one operator: the oldest one goes first that nothing agreed with, or that gives only views.
constexpr size_t kAlike = 16;
// The same of those that share code with one of other sizes: they cost no compilation, but a look at each.
constexpr size_t kSized = 32;

/// Whether two recordings are of the same segment: the same operators on tensors that lie alike, but for numbers.
std::optional<std::vector<uint32_t>> same_but_for_numbers(const Recording& before, const Recording& after) {
  if (!same_places(before, after)) return std::nullopt;
  return differing_numbers(before.trace, after.trace);
}

/// Makes inputs of numbers: one of those that were equal in both recordings. A CUDA graph finds them on the GPU.
void take_numbers(Recording& recording, const std::vector<uint32_t>& positions, const Trace& before, bool has_graph) {
  const int64_t device = has_graph && recording.device.is_cuda() ? 1 + recording.device.index() : 0;
  Trace& trace = recording.trace;
  std::map<std::array<int64_t, 3>, ValueId> known;
  for (const uint32_t position : positions) {
    const int64_t bits = trace.code[position + 1];
    const auto [entry, is_new] = known.try_emplace({bits, before.code[position], before.code[position + 1]}, 0);
    if (is_new) entry->second = add_number(recording, bits, device);
    trace.code[position] = static_cast<int64_t>(Tag::number);
    trace.code[position + 1] = entry->second;
  }
}

/// Whether a segment's operators make no memory, and write into none.
bool gives_only_views(const Recording& recording) {
  const std::vector<ValueId>& roots = recording.layout.roots;
  return !recording.mutates() && std::all_of(roots.begin(), roots.end(), [](ValueId root) { return root < 0; });
}

const Operator* first_of(const Recording& recording) { return recording.trace.steps[recording.layout.prologue].op; }

}  // namespace

bool same_places(const Recording& before, const Recording& after) {
  const Recording::Layout& a = before.layout;
  const Recording::Layout& b = after.layout;
  return a.memories.size() >= b.memories.size() && a.roots == b.roots && a.prologue == b.prologue &&
         std::equal(b.memories.begin(), b.memories.end(), a.memories.begin()) &&
         std::equal(b.externals.begin(), b.externals.end(), a.externals.begin());
}

ValueId add_number(Recording& recording, int64_t bits, int64_t device) {
  const Unrecorded unrecorded;
  Trace& trace = recording.trace;
  const auto value = static_cast<ValueId>(trace.value_begin.size());
  trace.value_begin.push_back(static_cast<uint32_t>(trace.values.size()));
  trace.values.append({static_cast<int64_t>(at::kDouble), 0, device, 0, 0});
  recording.layout.memories.push_back(SIZE_MAX);
  recording.layout.externals.push_back(false);
  Input& input = recording.inputs.emplace_back();
  input.kind = Input::Kind::constant;
  input.value = value;
  input.before = at::scalar_tensor(std::bit_cast<double>(bits), at::kDouble);
  return value;
}

std::shared_ptr<const Recording> without_tensors(const Recording& recording) {
  auto made = std::make_shared<Recording>(recording);
  made->drop_samples();
  for (Input& input : made->inputs) {
    input.before.reset();
    input.captured.reset();
  }
  return made;
}

const char* name_of(CodeState state) {
  switch (state) {
    case CodeState::recorded: return "recorded";
    case CodeState::compiling: return "compiling";
    case CodeState::compiled: return "compiled";
    case CodeState::eager: return "eager";
  }
  return "";
}

std::vector<std::shared_ptr<Segment>> Segments::beginning_with(const Operator& op) const {
  const std::lock_guard lock(mutex_);
  const auto found = by_first_.find(&op);
  if (found == by_first_.end()) return {};
  std::vector<std::shared_ptr<Segment>> segments(found->second.rbegin(), found->second.rend());
  std::stable_partition(segments.begin(), segments.end(),
                        [](const auto& one) { return one->state == Segment::State::compiled; });
  return segments;
}

Segments::Known Segments::know(const Segment& segment) const {
  const std::lock_guard lock(mutex_);
  return {segment.recording, segment.code, segment.graphs, segment.state, segment.is_views};
}

void Segments::add(std::shared_ptr<Segment> segment) {
  std::vector<std::shared_ptr<Segment>>& alike = by_first_[first_of(*segment->recording)];
  const auto is_like_it = [&](const auto& one) { return one->is_sized == segment->is_sized; };
  const auto count = static_cast<size_t>(std::count_if(alike.begin(), alike.end(), is_like_it));
  if (count >= (segment->is_sized ? kSized : kAlike)) {
    const auto oldest = std::find_if(alike.begin(), alike.end(), [&](const auto& one) {
      return is_like_it(one) && (one->is_sized || one->is_views || one->state == Segment::State::recorded);
    });
    if (oldest == alike.end()) return;
    alike.erase(oldest);
  }
  alike.push_back(std::move(segment));
}

/// To be called with the mutex.
void Segments::set_code(Segment& segment, std::shared_ptr<const Artifact> code) {
  segment.code = std::move(code);
  segment.graphs.reset();
  if (segment.code == nullptr || !core_.options.cuda_graphs) return;
  // What the program may keep for as long as it likes has to be memory of its own.
  segment.graphs = std::make_shared<Graphs>(Graphs::Results::copied,
                                            why_no_graph(*segment.recording, segment.code.get()), /*is_random=*/false);
}

void Segments::stay_eager(Segment& segment, std::string reason) {
  segment.state = Segment::State::eager;
  segment.reason = std::move(reason);
  log(Topic::capture, core_.options.name,
      "a segment of " + std::to_string(segment.recording->trace.steps.size()) +
          " operators stays eager: " + segment.reason);
}

std::shared_ptr<Segment> Segments::commit(std::unique_ptr<Recording> made, std::string end) {
  const std::shared_ptr<Recording> now = std::move(made);
  if (now->touches_memory) core_.note_memory(now->refusal);
  const bool is_views = now->refusal.empty() && gives_only_views(*now);
  if (is_views) now->refusal = "its operators give nothing but views, so there is nothing to compile";
  name_captured(*now, core_.module.get());
  std::shared_ptr<Segment> segment;
  std::vector<uint32_t> differing;
  Sized sized;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& one : by_first_[first_of(*now)]) {
      if (one->state == Segment::State::compiling) continue;
      if (!now->refusal.empty()) {
        if (one->reason == now->refusal && difference(one->recording->trace, now->trace).empty()) return one;
        continue;
      }
      const auto numbers = same_but_for_numbers(*one->recording, *now);
      if (!numbers.has_value()) continue;
      // Where there is code, a number differs that it has as a constant, already in the first operator.
      const bool is_news = std::any_of(numbers->begin(), numbers->end(), [&](uint32_t position) {
        return static_cast<Tag>(one->recording->trace.code[position]) == Tag::floating;
      });
      if (one->state == Segment::State::eager || (one->state == Segment::State::compiled && !is_news)) return one;
      segment = one;
      differing = *numbers;
      break;
    }
    sized = place(*now, segment.get());
    const bool is_new = segment == nullptr;
    if (is_new) {
      segment = std::make_shared<Segment>();
      segment->end = std::move(end);
      segment->stack = callers();
      segment->is_views = is_views;
    }
    ++segment->recorded;
    set_code(*segment, nullptr);
    if (sized.recording != nullptr) {
      if (sized.code == nullptr) sized.family->begin_compilation();
      segment->family = sized.family;
      segment->is_sized = true;
    } else if (!is_new) {
      take_numbers(*now, differing, segment->recording->trace, core_.options.cuda_graphs);
      segment->is_sized = false;
    }
    segment->recording = without_tensors(sized.recording != nullptr ? *sized.recording : *now);
    const bool waits = is_new && sized.recording == nullptr;
    if (!waits) segment->state = Segment::State::compiling;
    if (is_new) add(segment);
    if (!now->refusal.empty()) stay_eager(*segment, now->refusal);
    if (waits) return segment;
  }
  if (sized.code != nullptr) {
    join(*segment, sized);
  } else {
    compile(segment, sized.recording != nullptr ? sized.recording : now);
  }
  return segment;
}

void Segments::note_next(Segment& segment, int64_t ops) {
  const std::lock_guard lock(mutex_);
  segment.next_ops = ops;
}

void Segments::replace(const std::shared_ptr<Segment>& segment, std::unique_ptr<Recording> made, std::string end) {
  const std::shared_ptr<Recording> now = std::move(made);
  name_captured(*now, core_.module.get());
  auto next = std::make_shared<Segment>();
  {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Segment>>& alike = by_first_[first_of(*now)];
    const auto known = std::find(alike.begin(), alike.end(), segment);
    if (known == alike.end()) return;  // another thread has done so
    now->sizes = nullptr;
    next->recording = without_tensors(*now);
    next->state = Segment::State::compiling;
    next->end = std::move(end);
    next->stack = callers();
    next->recorded = segment->recorded;
    next->replayed = segment->replayed;
    next->eager = segment->eager;
    next->mismatches = segment->mismatches;
    *known = next;
  }
  compile(next, now);
}

void Segments::compile(const std::shared_ptr<Segment>& segment, const std::shared_ptr<Recording>& recording) {
  {
    const std::lock_guard lock(mutex_);
    if (++compilations_ > kCompilations) {
      stay_eager(*segment, "the function has " + std::to_string(kCompilations) + " segments already");
      return;
    }
  }
  {
    const std::lock_guard lock(core_.mutex);
    ++core_.pending;
  }
  const auto job = [this, segment, recording] {
    Compilation code = find_or_compile(*recording, core_.options);
    {
      const std::lock_guard lock(mutex_);
      segment->compile_seconds = code.seconds;
      segment->from_cache = code.from_cache;
      code.drop_slower(core_.options);
      if (recording->sizes != nullptr) {
        take_in(*segment, code.artifact, code.reason);
      } else if (code.artifact != nullptr) {
        set_code(*segment, std::move(code.artifact));
        segment->state = Segment::State::compiled;
        log(Topic::compile, core_.options.name,
            "a segment of " + std::to_string(recording->trace.steps.size()) + " operators is compiled");
      } else {
        stay_eager(*segment, code.reason);
      }
    }
    const std::lock_guard lock(core_.mutex);
    --core_.pending;
    core_.idle.notify_all();
  };
  if (!core_.options.background) {
    const Unrecorded unrecorded;
    job();
    return;
  }
  const Unrecorded unrecorded;
  detach_from_program(*recording);
  run_in_background([weak = core_.weak_from_this(), job] {
    if (const auto core = weak.lock()) job();
  });
}

void Segments::note_replayed(const std::shared_ptr<Segment>& segment) {
  const std::lock_guard lock(mutex_);
  ++segment->replayed;
}

void Segments::note_eager(Segment& segment) {
  const std::lock_guard lock(mutex_);
  ++segment.eager;
}

void Segments::forget_code(Segment& segment) {
  const std::lock_guard lock(mutex_);
  if (segment.state != Segment::State::compiled) return;
  segment.state = Segment::State::recorded;
  set_code(segment, nullptr);
  segment.is_sized = false;
}

void Segments::count(int64_t compiled, int64_t eager) {
  const std::lock_guard lock(mutex_);
  compiled_ops_ += compiled;
  eager_ops_ += eager;
}

std::vector<Segments::Snapshot> Segments::snapshots() const {
  std::vector<Snapshot> taken;
  {
    const std::lock_guard lock(mutex_);
    std::map<const Artifact*, size_t> by_code;  // of code that serves many sizes
    for (const auto& [first, alike] : by_first_) {
      for (const auto& segment : alike) {
        SegmentStats one;
        one.first = first->name;
        one.ops = static_cast<int64_t>(segment->recording->trace.steps.size());
        one.state = name_of(segment->state);
        one.reason = segment->reason;
        one.end = segment->end;
        one.next_ops = segment->next_ops;
        one.recorded = segment->recorded;
        one.replayed = segment->replayed;
        one.eager = segment->eager;
        one.compile_seconds = segment->compile_seconds;
        one.from_cache = segment->from_cache;
        if (segment->graphs != nullptr) {
          one.graph_captures = segment->graphs->captures();
          one.graph_calls = segment->graphs->replays();
          one.graph_reason = segment->graphs->reason();
        }
        if (segment->is_sized && segment->code != nullptr) {
          const auto [known, is_new] = by_code.emplace(segment->code.get(), taken.size());
          if (!is_new) {
            SegmentStats& shared = taken[known->second].stats;
            ++shared.sizes;
            shared.recorded += one.recorded;
            shared.replayed += one.replayed;
            shared.eager += one.eager;
            shared.compile_seconds += one.compile_seconds;
            shared.graph_captures += one.graph_captures;
            shared.graph_calls += one.graph_calls;
            continue;
          }
        }
        taken.push_back({std::move(one), segment->recording, segment->stack});
      }
    }
  }
  // Symbols take long to read, and calls need the mutex.
  for (Snapshot& one : taken) one.stats.where = place_of(one.stack);
  return taken;
}

void Segments::describe(CompileStats& stats) const {
  for (Snapshot& one : snapshots()) {
    stats.compile_seconds += one.stats.compile_seconds;
    stats.segments.push_back(std::move(one.stats));
  }
  const std::lock_guard lock(mutex_);
  stats.compiled_ops = compiled_ops_;
  stats.eager_ops = eager_ops_;
}

std::string Segments::to_json(const std::string& name) const {
  nlohmann::ordered_json segments = nlohmann::ordered_json::array();
  for (const auto& [one, recording, stack] : snapshots()) {
    segments.push_back({{"end", one.end},
                        {"where", one.where},
                        {"next_ops", one.next_ops},
                        {"state", one.state},
                        {"reason", one.reason},
                        {"recorded", one.recorded},
                        {"replayed", one.replayed},
                        {"eager", one.eager},
                        {"trace", nlohmann::ordered_json::parse(detail::to_json(*recording, name))}});
  }
  if (segments.empty()) return "";
  return nlohmann::ordered_json{{"format", "torchcc-segments"}, {"version", 1}, {"name", name}, {"segments", segments}}
      .dump();
}

}  // namespace torchcc::detail
