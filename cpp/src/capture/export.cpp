// torchcc::export_function: from recordings of a C++ function to a package of a whole model.

#include <torchcc/export.h>

#include <atomic>

#include <unistd.h>

#include <ATen/core/grad_mode.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "cache.h"
#include "compilation.h"
#include "compiler.h"
#include "message.h"
#include "recorder.h"

namespace torchcc::detail {
namespace {

[[noreturn]] void fail_capture(const ExportOptions& options, const std::string& got, const std::string& fix) {
  throw CaptureError(message("export of '" + options.name + "': the function cannot be captured",
                             {{"expected", "a function whose operators and results depend on its arguments alone"},
                              {"got", got},
                              {"fix", fix}}));
}

/// The position among the outputs of each result.
std::vector<size_t> positions_of_results(const Recording& recording, const ExportOptions& options) {
  std::vector<size_t> positions;
  for (const Result& result : recording.results) {
    if (result.source != Result::Source::output) {
      fail_capture(options, "a result that is an argument, a captured tensor, or a view of one or of another result",
                   "return a tensor of its own: add .clone()");
    }
    positions.push_back(result.index);
  }
  if (positions.empty()) fail_capture(options, "no tensor among the results", "return what it computes");
  return positions;
}

}  // namespace

struct FunctionCapture::State {
  ExportOptions options;
  std::unique_ptr<ModuleView> module;
  std::unique_ptr<c10::AutoGradMode> no_grad;
  std::unique_ptr<Recorder> recorder;
  std::unique_ptr<Recording> last;
};

FunctionCapture::FunctionCapture(const ExportOptions& options, std::unique_ptr<ModuleView> module)
    : state_(std::make_unique<State>()) {
  if (!(options.timeout > 0)) {
    throw ArgumentError(message("export of '" + options.name + "': ExportOptions::timeout is not a time",
                                {{"expected", "seconds, more than 0"},
                                 {"got", std::to_string(options.timeout)},
                                 {"fix", "leave it out for 600 s"}}));
  }
  if (Mode::current() != nullptr) {
    throw CaptureError(message("export of '" + options.name + "': inside of a function that is being recorded",
                               {{"fix", "call export_function outside of compiled functions"}}));
  }
  state_->options = options;
  state_->module = std::move(module);
}

FunctionCapture::~FunctionCapture() = default;

void FunctionCapture::begin(const Leaves& arguments) {
  state_->no_grad = std::make_unique<c10::AutoGradMode>(false);
  state_->recorder = std::make_unique<Recorder>(arguments.tensors, state_->last.get());
}

void FunctionCapture::finish(const Leaves& results) {
  std::unique_ptr<Recording> made = state_->recorder->finish(results.tensors);
  state_->recorder.reset();
  state_->no_grad.reset();
  if (!made->refusal.empty()) {
    fail_capture(state_->options, made->refusal, "change the function, or export the part of it that computes");
  }
  if (state_->last != nullptr) {
    const std::string differs = disagreement(*state_->last, *made);
    if (!differs.empty())
      fail_capture(state_->options, "it differs from call to call: " + differs, "make it repeatable");
  }
  state_->last = std::move(made);
}

void FunctionCapture::write(const std::filesystem::path& file) {
  using Json = nlohmann::ordered_json;
  const ExportOptions& options = state_->options;
  Recording& recording = *state_->last;
  name_captured(recording, state_->module.get());
  Json parameters = Json::array();
  for (Input& input : recording.inputs) {
    if (input.is_base) fail_capture(options, "memory that it writes to through several views", "write to one of them");
    if (input.kind == Input::Kind::argument && input.argument < options.arguments.size()) {
      input.name = options.arguments[input.argument];
    }
    if (input.kind != Input::Kind::captured) continue;
    for (const auto& [name, tensor] : options.weights) {
      if (tensor.is_same(input.captured->tensor())) input.name = name;
    }
    if (input.captured->tensor().requires_grad()) parameters.push_back(input.name);
  }
  CompileRequest request;
  request.function = options.name;
  request.trace = to_json(recording, options.name);
  request.tensors = pickle(recording);
  request.package = std::filesystem::absolute(file).string();
  request.options = options_json(options.options);
  request.exports = Json{{"results", positions_of_results(recording, options)},
                         {"parameters", parameters},
                         {"targets", options.targets},
                         {"updatable", options.updatable}}
                        .dump();
  const std::filesystem::path logs = cache_folder() / "logs";
  std::error_code error;
  std::filesystem::create_directories(logs, error);
  static std::atomic<int> count{0};
  request.log = logs / ("export-" + std::to_string(::getpid()) + "-" + std::to_string(++count) + ".log");
  request.timeout = options.timeout;
  request.device = recording.device;
  request.progress = options.progress;
  const CompileAnswer answer = compile_trace(request);
  if (answer.error.empty()) {
    std::filesystem::remove(request.log, error);
    return;
  }
  const bool has_log = std::filesystem::exists(request.log, error);
  const std::string text = message("export of '" + options.name + "' to " + file.string() + " failed",
                                   {{"got", answer.error},
                                    {"log", has_log ? request.log : "none"},
                                    {"fix", "see the log; `torchcc doctor` checks what the compiler needs"}});
  if (answer.kind == "export" || answer.kind == "mismatch") throw CaptureError(text);
  if (answer.kind == "argument") throw ArgumentError(text);
  throw CompileError(text);
}

}  // namespace torchcc::detail
