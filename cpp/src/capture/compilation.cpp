#include "compilation.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/csrc/lazy/core/hash.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "backward.h"
#include "cache.h"
#include "compiler.h"
#include "log.h"
#include "message.h"

namespace torchcc::detail {
namespace {

bool compiler_is_off() {
  const char* variable = std::getenv("TORCHCC_COMPILER");
  return variable != nullptr && std::strcmp(variable, "off") == 0;
}

/// Everything that decides what code comes out of the compiler.
std::string key_text(const Recording& recording, const CompileOptions& options, bool freeze) {
  std::string text = build_text(recording.device) + "options " + options_json(options.options) + "\n";
  if (freeze) {
    torch::lazy::hash_t hash(uint64_t{0});
    for (const Input& input : recording.inputs) {
      if (input.kind == Input::Kind::argument || input.written) continue;
      const c10::StorageImpl& storage = *input.content().storage().unsafeGetStorageImpl();
      hash = torch::lazy::HashCombine(hash, torch::lazy::DataHash(storage.data(), storage.nbytes()));
    }
    text += "weights " + torch::lazy::HashToString(hash) + "\n";
  }
  return text + to_json(recording, options.name);
}

Compilation get_code(const Recording& recording, const CompileOptions& options, bool freeze) {
  const std::filesystem::path folder = cache_folder();
  const CacheKey key(key_text(recording, options, freeze));
  std::string slower = read_marker(key.slower(folder));
  if (freeze && !slower.empty()) return {};
  std::string damage;
  if (auto artifact = find_code(key, folder, recording.device, damage)) {
    return {std::move(artifact), "", std::move(slower), 0, true};
  }
  if (!damage.empty()) log(Topic::compile, options.name, "not used: " + damage);
  if (compiler_is_off()) {
    return {nullptr,
            "TORCHCC_COMPILER is off, and the cache has no code for it" + (damage.empty() ? "" : " (" + damage + ")")};
  }
  const std::filesystem::path logs = folder / "logs";
  std::error_code error;
  std::filesystem::create_directories(logs, error);
  CompileRequest request;
  request.function = options.name;
  request.trace = to_json(recording, options.name);
  request.tensors = pickle(recording);
  request.package = key.file(folder);
  request.key = key.text;
  request.freeze = freeze;
  if (freeze) request.against = CacheKey(key_text(recording, options, false)).file(folder);
  request.options = options_json(options.options);
  static std::atomic<int> count{0};  // functions of other threads may have the same key
  request.log = logs / (key.name + "-" + std::to_string(::getpid()) + "-" + std::to_string(++count) + ".log");
  request.threads = at::get_num_threads();
  request.timeout = options.timeout;
  request.device = recording.device;
  request.progress = options.progress;
  const CompileAnswer answer = compile_trace(request);
  if (answer.kind == "slower") write_marker(key.slower(folder), answer.error);
  if (!answer.error.empty()) {
    const std::string place = std::filesystem::exists(request.log, error) ? " (log: " + request.log + ")" : "";
    return {nullptr, answer.error + place, "", answer.seconds};
  }
  std::filesystem::remove(request.log, error);
  if (!answer.slower.empty()) write_marker(key.slower(folder), answer.slower);
  if (auto artifact = find_code(key, folder, recording.device, damage)) {
    return {std::move(artifact), "", answer.slower, answer.seconds};
  }
  return {nullptr, "the compiled code cannot be used: " + damage, "", answer.seconds};
}

/// Whether code takes and gives what was recorded, as far as the numbers of tensors tell.
bool fits(const Recording& recording, const Artifact& artifact) {
  const Backward* backward = artifact.backward.get();
  const size_t extras = backward == nullptr ? 0 : backward->extras;
  if ((backward != nullptr) != recording.trains || artifact.library->inputs() != recording.inputs.size() ||
      artifact.library->outputs() != recording.outputs.size() + extras) {
    return false;
  }
  return backward == nullptr || (backward->library->inputs() == backward->saved.size() + backward->tangents.size() &&
                                 backward->library->outputs() == backward->gradients.size());
}

}  // namespace

void Compilation::drop_slower(const CompileOptions& options) {
  if (artifact == nullptr || slower.empty() || options.allow_slower) return;
  artifact.reset();
  reason = slower;
}

Compilation find_or_compile(const Recording& recording, const CompileOptions& options) {
  Compilation code;
  try {
    code = get_code(recording, options, false);
    if (code.artifact != nullptr && !fits(recording, *code.artifact)) {
      code.artifact = nullptr;
      code.reason = "the compiled code takes or gives another number of tensors than recorded";
    }
  } catch (const Error& failure) {
    code.reason = one_line(failure.what());
  } catch (const std::exception& failure) {
    code.reason = first_line(failure.what());  // libtorch's own have a backtrace
  }
  return code;
}

Compilation find_or_compile_frozen(const Recording& recording, const CompileOptions& options) {
  return get_code(recording, options, true);
}

std::string options_json(const InductorOptions& options) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : options) {
    std::visit([&, &key = name](const auto& held) { json[key] = held; }, value);
  }
  return json.dump();
}

std::vector<char> pickle(const Recording& recording) {
  const c10::AutoGradMode no_grad(false);
  std::vector<c10::IValue> inputs;
  std::vector<c10::IValue> outputs;
  std::vector<c10::IValue> mutated;
  std::vector<c10::IValue> random_state;
  for (const Input& input : recording.inputs) inputs.emplace_back(input.content().detach());
  for (const at::Tensor& tensor : recording.expected) outputs.emplace_back(tensor.detach());
  for (const at::Tensor& tensor : recording.after) mutated.emplace_back(tensor.detach());
  std::vector<c10::IValue> tangents(recording.tangents.begin(), recording.tangents.end());
  std::vector<c10::IValue> gradients;
  for (const at::Tensor& tensor : recording.gradients) {
    gradients.push_back(tensor.defined() ? c10::IValue(tensor.detach()) : c10::IValue());
  }
  if (recording.random_state.defined()) random_state.emplace_back(recording.random_state);
  if (recording.device.is_cuda() && recording.gpu_random_state.defined()) {
    random_state.emplace_back(recording.gpu_random_state);
  }
  // Tuples: Python's weights_only reads no lists and dicts that C++ has written.
  return torch::jit::pickle_save(c10::ivalue::Tuple::create(
      {c10::ivalue::Tuple::create(std::move(inputs)), c10::ivalue::Tuple::create(std::move(outputs)),
       c10::ivalue::Tuple::create(std::move(mutated)), c10::ivalue::Tuple::create(std::move(random_state)),
       c10::ivalue::Tuple::create(std::move(tangents)), c10::ivalue::Tuple::create(std::move(gradients))}));
}

}  // namespace torchcc::detail
