#include <torchcc/package.h>

#include <torch/version.h>

#include "archive.h"
#include "cpu.h"
#include "manifest.h"
#include "message.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

using Records = std::map<std::string, std::string>;

/// Why a variant cannot run here; empty when it can.
std::string misfit(const Variant& variant) {
  const std::string torch = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  if (variant.torch != torch) return "compiled with torch " + variant.torch + ", this is torch " + torch;
  for (const std::string& feature : variant.cpu_features) {
    if (!cpu_supports(feature)) return "this CPU lacks " + feature;
  }
  return "";
}

/// What all libraries of a function have in common.
Library::Source source_of(const FunctionEntry& entry, const Variant& variant, const std::string& origin) {
  Library::Source source;
  source.name = entry.signature.name;
  source.origin = origin;
  source.exclusive = variant.exclusive;
  return source;
}

std::shared_ptr<const Library> load_library(Library::Source source, const Records& records, const std::string& code,
                                            const std::string& extern_ops, size_t inputs, size_t outputs) {
  source.code = records.at(code);
  if (!extern_ops.empty()) source.extern_ops = records.at(extern_ops);
  return std::make_shared<const Library>(source, inputs, outputs);
}

Function bind_function(const FunctionEntry& entry, const Records& records, const std::string& origin) {
  auto state = std::make_shared<FunctionState>();
  state->signature = entry.signature;
  state->prepare(origin);
  const size_t inputs = entry.signature.inputs.size();
  const size_t outputs = entry.signature.outputs.size();
  for (const Variant& variant : entry.variants) {
    if (const std::string reason = misfit(variant); !reason.empty()) {
      state->stats.reasons.push_back(variant.target + ": " + reason);
      continue;
    }
    const Library::Source source = source_of(entry, variant, origin);
    state->library = load_library(source, records, variant.library, variant.extern_ops, inputs, outputs);
    if (!variant.library_out.empty()) {
      state->library_out =
          load_library(source, records, variant.library_out, variant.extern_ops_out, inputs + outputs, 0);
    }
    state->stats.backend = "compiled";
    state->stats.target = variant.target;
    return Access::function(std::move(state));
  }
  std::string reasons;
  for (const std::string& reason : state->stats.reasons) reasons += (reasons.empty() ? "" : "; ") + reason;
  throw PackageError(
      message(origin + ": function '" + entry.signature.name + "' cannot run here",
              {{"expected", "compiled code for this machine and this torch"},
               {"got", reasons.empty() ? "a package without compiled code" : reasons},
               {"fix", "build it with `torchcc build` on a machine like this one, with this version of torch"}}));
}

Package load(Archive& archive) {
  const Manifest manifest = read_manifest(archive);
  // Every record that the manifest lists is checked, used or not: a damaged package is refused as a whole.
  Records contents;
  for (const auto& [name, record] : manifest.records) {
    contents[name] = archive.read(name, record.size, record.crc32);
  }
  auto state = std::make_shared<PackageState>();
  state->origin = archive.origin();
  for (const FunctionEntry& entry : manifest.functions) {
    state->functions.emplace_back(entry.signature.name, bind_function(entry, contents, archive.origin()));
  }
  return Access::package(std::move(state));
}

}  // namespace
}  // namespace detail

Package load(const std::filesystem::path& file) {
  detail::Archive archive(file);
  return detail::load(archive);
}

Package load(std::span<const std::byte> bytes) {
  detail::Archive archive(bytes);
  return detail::load(archive);
}

const Function& Package::operator[](std::string_view name) const {
  if (state_ == nullptr) throw PackageError("no package is loaded: assign the result of torchcc::load() first");
  std::string names;
  for (const auto& [known, function] : state_->functions) {
    if (known == name) return function;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw PackageError(detail::message(state_->origin + ": no function '" + std::string(name) + "'",
                                     {{"expected", "one of: " + names}, {"got", std::string(name)}}));
}

std::vector<std::string> Package::names() const {
  std::vector<std::string> names;
  if (state_ != nullptr) {
    for (const auto& [name, function] : state_->functions) names.push_back(name);
  }
  return names;
}

}  // namespace torchcc
