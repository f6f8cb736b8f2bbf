#include <torchcc/package.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include <dlfcn.h>

#include <torch/version.h>
#include <torchcc/error.h>

#include "archive.h"
#include "cpu.h"
#include "device.h"
#include "manifest.h"
#include "message.h"
#include "plain.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

/// What a package holds, read and checked.
struct Contents {
  std::string origin;
  Weights::Records records;
  std::map<std::string, std::shared_ptr<Weights>> weights;  ///< by group: functions of one group share them
  Weights::Gpu gpu;
};

// These are mapped, not copied.
bool is_weight(const std::string& record) {
  return (record.starts_with("data/weights/") || record.starts_with("data/constants/")) && !record.ends_with(".json");
}

/// Whether code for GPUs of an architecture, or with "+" of that and later ones, runs on this one.
bool runs_on(const std::string& wanted, const std::string& here) {
  if (wanted == here) return true;
  const auto number = [](const std::string& name) { return std::atoi(name.c_str() + std::string_view("sm").size()); };
  return wanted.ends_with('+') && here.starts_with("sm") && number(here) >= number(wanted);
}

/// Why a variant cannot run here; empty when it can.
template <class Form>
std::string misfit(const Form& variant, c10::Device device) {
  const std::string torch = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  if (variant.torch != torch) return "compiled with torch " + variant.torch + ", this is torch " + torch;
  for (const std::string& feature : variant.cpu_features) {
    if (!cpu_supports(feature)) return "this CPU lacks " + feature;
  }
  if (!variant.architecture.empty()) {
    const std::string here = cuda_architecture(device);
    if (!runs_on(variant.architecture, here)) {
      return "compiled for GPUs of " + variant.architecture + ", this one is " + here;
    }
  }
  return "";
}

/// What all libraries of a function have in common.
Library::Source source_of(const FunctionEntry& entry, bool exclusive, const std::string& origin, c10::Device device) {
  Library::Source source;
  source.device = device;
  source.name = entry.signature.name;
  source.origin = origin;
  source.exclusive = exclusive;
  return source;
}

std::shared_ptr<const Library> load_library(Library::Source source, const Contents& contents, const std::string& code,
                                            const std::string& extern_ops, size_t inputs, size_t outputs) {
  source.code = contents.records.texts.at(code);
  if (!extern_ops.empty()) source.extern_ops = contents.records.texts.at(extern_ops);
  return std::make_shared<const Library>(source, inputs, outputs);
}

[[noreturn]] void fail_function(const FunctionEntry& entry, const std::string& origin, const std::string& expected,
                                const std::string& got, const std::string& fix) {
  throw PackageError(message(origin + ": function '" + entry.signature.name + "' cannot run here",
                             {{"expected", expected}, {"got", got}, {"fix", fix}}));
}

/// The positions of weights by name.
std::vector<size_t> positions_of(const std::vector<std::string>& names, const FunctionEntry& entry,
                                 const Contents& contents, const Weights& weights) {
  std::vector<size_t> positions;
  for (const std::string& name : names) {
    positions.push_back(weights.find(entry.model, name));
    if (positions.back() == weights.names().size()) {
      fail_function(entry, contents.origin, "a package with all weights of its graph", "none named '" + name + "'",
                    "make the package again");
    }
  }
  return positions;
}

void bind_graph(FunctionState& state, const FunctionEntry& entry, const Contents& contents) {
  if (entry.graph.empty()) return;
  const auto fail = [&](const std::string& expected, const std::string& got) {
    fail_function(entry, contents.origin, expected, got, "make the package again with this version of torchcc");
  };
  state.program =
      entry.program != nullptr ? entry.program : portable::Program::parse(contents.records.texts.at(entry.graph), fail);
  state.weights = contents.weights.at(entry.group);
  state.program_weights = positions_of(state.program->weights(), entry, contents, *state.weights);
  size_t arguments = 0;
  for (const auto& input : state.program->inputs()) {
    arguments += input.kind == portable::Program::Input::Kind::argument ? 1 : 0;
  }
  if (arguments != entry.signature.inputs.size()) {
    fail_function(entry, contents.origin, std::to_string(entry.signature.inputs.size()) + " inputs of the graph",
                  std::to_string(arguments), "make the package again");
  }
  for (size_t i = 0; i < state.program_weights.size(); ++i) {
    if (!state.program->writes_weight(i)) continue;
    state.weights->note_written(state.program_weights[i]);
    state.writes_weights = true;
  }
}

void bind_variant(FunctionState& state, const FunctionEntry& entry, const VariantEntry& variant,
                  const Contents& contents) {
  const Library::Source source = source_of(entry, variant.exclusive, contents.origin, state.device);
  const size_t inputs = entry.signature.inputs.size() + variant.weights.size();
  const size_t outputs = entry.signature.outputs.size();
  std::vector<size_t> taken;
  if (!variant.weights.empty()) {
    if (state.weights == nullptr) {
      fail_function(entry, contents.origin, "a graph beside code that takes weights", "none", "make the package again");
    }
    taken = positions_of(variant.weights, entry, contents, *state.weights);
  }
  std::vector<size_t> burnt_in;
  for (size_t i = 0; i < state.program_weights.size(); ++i) {
    const size_t position = state.program_weights[i];
    const bool is_taken = std::find(taken.begin(), taken.end(), position) != taken.end();
    if (!is_taken && state.program->uses_weight(i)) burnt_in.push_back(position);
  }
  if (!taken.empty() && burnt_in.empty()) {
    if (state.updatable.library != nullptr) return;
    state.updatable = {load_library(source, contents, variant.library, variant.extern_ops, inputs, outputs),
                       variant.target, std::move(taken)};
    return;
  }
  if (state.library != nullptr) return;
  state.library = load_library(source, contents, variant.library, variant.extern_ops, inputs, outputs);
  if (!variant.library_out.empty()) {
    state.library_out =
        load_library(source, contents, variant.library_out, variant.extern_ops_out, inputs + outputs, 0);
  }
  state.library_weights = std::move(taken);
  state.burnt_in = std::move(burnt_in);
  state.stats.target = variant.target;
}

/// Why no CUDA graph can be made of a function, whatever its code is; empty when one can.
std::string why_no_graph(const FunctionState& state) {
  if (!state.device.is_cuda()) return "the function runs on the CPU";
  for (const Value& input : state.signature.inputs) {
    if (input.device != c10::DeviceType::CPU) continue;
    return "the argument '" + input.name + "' is " + (input.is_number ? "a number" : "on the CPU") +
           ", which the host reads in each call";
  }
  return why_no_graphs();
}

/// Where CUDA graphs are wanted, prepares them, or says why there will be none.
void bind_graphs(FunctionState& state, const FunctionEntry& entry, const LoadOptions& options) {
  if (!options.cuda_graphs) return;
  std::string refusal = why_no_graph(state);
  const bool is_compiled = state.library != nullptr || state.updatable.library != nullptr;
  if (refusal.empty() && !is_compiled) refusal = "no compiled code runs, but the graph, operator by operator";
  for (const VariantEntry& variant : entry.variants) {
    const bool runs = variant.target == state.stats.target || variant.target == state.updatable.target;
    if (refusal.empty() && runs) refusal = variant.uncapturable;
  }
  const bool is_random = state.program == nullptr || state.program->draws_random_numbers();
  state.graphs = std::make_unique<Graphs>(Graphs::Results::lent, refusal, is_random);
}

/// Takes the code that carries gradients for the first target that fits this machine.
void bind_training(FunctionState& state, const FunctionEntry& entry, const Contents& contents,
                   const LoadOptions& options) {
  for (const TrainingVariant& variant : entry.training) {
    const std::string reason = options.compiled ? misfit(variant, state.device) : "LoadOptions::compiled is false";
    if (!reason.empty()) {
      state.stats.reasons.push_back(variant.target + ", for training: " + reason);
      continue;
    }
    if (state.program == nullptr) continue;
    if (!state.training.empty() && state.training.front()->target != variant.target) continue;
    auto code = std::make_shared<TrainingCode>();
    const size_t arguments = entry.signature.inputs.size();
    const size_t inputs = arguments + variant.weights.size();
    const size_t outputs = entry.signature.outputs.size();
    const Backward& stated = variant.backward;
    const Library::Source source = source_of(entry, variant.exclusive, contents.origin, state.device);
    code->library =
        load_library(source, contents, variant.library, variant.extern_ops, inputs, outputs + stated.extras);
    auto backward = std::make_shared<Backward>(stated);
    backward->library = load_library(source, contents, variant.library_backward, variant.extern_ops_backward,
                                     stated.saved.size() + stated.tangents.size(), stated.gradients.size());
    code->backward = std::move(backward);
    code->target = variant.target;
    code->weights = positions_of(variant.weights, entry, contents, *state.weights);
    code->covered = variant.covered;
    code->reached = variant.reached;
    code->is_random = variant.is_random;
    code->output_grads.resize(outputs);
    for (const Backward::Tangent& one : stated.tangents) code->output_grads[one.output] = true;
    code->has_gradient.resize(inputs);
    for (const size_t input : stated.gradients) code->has_gradient[input] = true;
    code->program = state.program;
    code->program_weights = state.program_weights;
    for (size_t i = 0; i < state.program_weights.size(); ++i) {
      if (!state.program->writes_weight(i)) continue;
      const auto taken = std::find(code->weights.begin(), code->weights.end(), state.program_weights[i]);
      if (taken != code->weights.end()) {
        code->written.push_back(arguments + static_cast<size_t>(taken - code->weights.begin()));
      }
    }
    if (options.cuda_graphs) {
      std::string refusal = why_no_graph(state);
      if (refusal.empty()) refusal = variant.uncapturable;
      code->graphs = std::make_unique<Graphs>(Graphs::Results::kept, std::move(refusal), variant.is_random);
    }
    state.stats.training_target = variant.target;
    state.training.push_back(std::move(code));
  }
}

/// The GPU for the functions that need one.
std::optional<c10::Device> find_gpu(const Manifest& manifest, const std::string& origin, const LoadOptions& options) {
  for (const FunctionEntry& entry : manifest.functions) {
    if (!entry.is_on_gpu) continue;
    if (const std::string reason = why_no_cuda(); !reason.empty()) {
      fail_function(entry, origin, "a GPU, and a program linked with LibTorch for CUDA", reason,
                    "run it on a machine with a GPU, or export the model on the CPU");
    }
    return cuda_device(options.device);
  }
  return std::nullopt;
}

Function bind_function(const FunctionEntry& entry, const Contents& contents, const LoadOptions& options) {
  auto state = std::make_shared<FunctionState>();
  state->signature = entry.signature;
  if (entry.is_on_gpu) state->device = *contents.gpu.device;
  state->prepare(contents.origin);
  state->converts = options.convert;
  std::string without_graph;
  try {
    bind_graph(*state, entry, contents);
  } catch (const PackageError& error) {
    // Compiled code may still run; the graph may need an operator that this program does not have.
    without_graph = error.what();
    state->program = nullptr;
    state->weights = nullptr;
    state->stats.reasons.push_back("portable: " + one_line(without_graph));
  }
  for (const VariantEntry& variant : entry.variants) {
    const std::string reason = options.compiled ? misfit(variant, state->device) : "LoadOptions::compiled is false";
    if (!reason.empty()) {
      state->stats.reasons.push_back(variant.target + ": " + reason);
    } else {
      bind_variant(*state, entry, variant, contents);
    }
  }
  bind_training(*state, entry, contents, options);
  const bool is_compiled = state->library != nullptr || state->updatable.library != nullptr;
  if (!is_compiled && !without_graph.empty()) throw PackageError(without_graph);
  if (!is_compiled && state->program == nullptr) {
    std::string reasons;
    for (const std::string& reason : state->stats.reasons) reasons += (reasons.empty() ? "" : "; ") + reason;
    fail_function(entry, contents.origin, "compiled code for this machine and this torch, or a graph",
                  reasons.empty() ? "a package without either" : reasons,
                  "build it with `torchcc build` on a machine like this one, with this version of torch");
  }
  state->is_plain = state->library != nullptr && state->burnt_in.empty() && state->library_weights.empty();
  state->stats.backend = is_compiled ? "compiled" : "portable";
  if (state->library == nullptr) state->stats.target = state->updatable.target;
  bind_graphs(*state, entry, options);
  return Access::function(std::move(state));
}

}  // namespace

std::vector<LoadedCode> load_code(Archive& archive, c10::Device device) {
  const Manifest manifest = read_manifest(archive);
  Contents contents;
  contents.origin = archive.origin();
  LoadOptions options;
  if (device.is_cuda()) options.device = device.index();
  contents.gpu.device = find_gpu(manifest, contents.origin, options);
  for (const auto& [name, record] : manifest.records) {
    if (name.starts_with("data/aotinductor/"))
      contents.records.texts[name] = archive.read(name, record.size, record.crc32);
  }
  std::vector<LoadedCode> code;
  for (FunctionEntry entry : manifest.functions) {
    entry.graph.clear();
    entry.training.clear();
    const std::string uncapturable = entry.variants.empty() ? "" : entry.variants.front().uncapturable;
    code.push_back({Access::state(bind_function(entry, contents, {}))->library, entry.signature, uncapturable});
  }
  return code;
}

namespace {

/// Every record that the manifest lists is checked, used or not: a damaged package is refused as a whole.
Weights::Records read_records(Archive& archive, const Manifest& manifest) {
  Weights::Records records;
  for (const auto& [name, record] : manifest.records) {
    if (is_weight(name)) {
      records.bytes[name] = {archive.map(name, record.size, record.crc32), record.size};
    } else {
      records.texts[name] = archive.read(name, record.size, record.crc32);
    }
  }
  return records;
}

/// The records of a file that states no checksums.
Weights::Records read_plain_records(Archive& archive) {
  constexpr uint64_t kLimit = uint64_t{1} << 40;
  Weights::Records records;
  for (const std::string& name : archive.records()) {
    if (!name.starts_with("data/weights/") && !name.starts_with("data/constants/") && !name.starts_with("models/"))
      continue;
    std::string content = archive.read(name, kLimit);
    if (is_weight(name)) {
      records.bytes[name] = {archive.map(name, content.size(), checksum(content)), content.size()};
    } else {
      records.texts[name] = std::move(content);
    }
  }
  return records;
}

Package load(Archive& archive, const LoadOptions& options) {
  const bool is_plain = !has_manifest(archive);
  const Manifest manifest = is_plain ? read_plain(archive) : read_manifest(archive);
  if (manifest.functions.empty()) read_manifest(archive);  // which says what is missing
  Contents contents;
  contents.origin = archive.origin();
  contents.records = is_plain ? read_plain_records(archive) : read_records(archive, manifest);
  contents.gpu.device = find_gpu(manifest, contents.origin, options);
  for (const FunctionEntry& entry : manifest.functions) {
    if (entry.graph.empty()) continue;
    std::shared_ptr<Weights>& weights = contents.weights[entry.group];
    if (weights == nullptr) weights = std::make_shared<Weights>();
    weights->add(archive, entry.model, contents.records, contents.gpu);
  }
  auto state = std::make_shared<PackageState>();
  state->origin = archive.origin();
  for (const FunctionEntry& entry : manifest.functions) {
    state->functions.emplace_back(entry.signature.name, bind_function(entry, contents, options));
  }
  return Access::package(std::move(state));
}

}  // namespace
}  // namespace detail

Package load(const std::filesystem::path& file, const LoadOptions& options) {
  detail::Archive archive(file);
  return detail::load(archive, options);
}

Package load(std::span<const std::byte> bytes, const LoadOptions& options) {
  detail::Archive archive(bytes);
  return detail::load(archive, options);
}

void load_operators(const std::filesystem::path& library) {
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  throw PackageError(detail::message(library.string() + ": the operators cannot be loaded",
                                     {{"expected", "a shared library that registers operators with TORCH_LIBRARY"},
                                      {"got", dlerror()},
                                      {"fix", "check the path, and build it against this LibTorch"}}));
}

}  // namespace torchcc
