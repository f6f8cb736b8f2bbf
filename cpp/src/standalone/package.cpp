// From the tables of a generated source and its weights to functions.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <torchcc/error.h>
#include <torchcc/standalone/model.h>

#include "access.h"
#include "cpu.h"
#include "message.h"
#include "state.h"

namespace torchcc {
namespace detail {

namespace {

Size made(const generated::SizeTable& table) { return {table.text, {table.steps.begin(), table.steps.end()}}; }

Value made(const generated::ValueTable& table) {
  Value value;
  value.name = table.name;
  value.dtype = table.dtype;
  for (const generated::SizeTable& size : table.sizes) value.sizes.push_back(made(size));
  value.is_number = table.is_number;
  value.min = table.min;
  value.max = table.max;
  value.mutated = table.is_mutated;
  return value;
}

Signature made(const generated::FunctionTable& table) {
  Signature signature;
  signature.name = table.name;
  for (const generated::ValueTable& value : table.inputs) signature.inputs.push_back(made(value));
  for (const generated::ValueTable& value : table.outputs) signature.outputs.push_back(made(value));
  for (const generated::SymbolTable& one : table.symbols) signature.symbols.push_back({one.name, one.min, one.max});
  for (const generated::GuardTable& one : table.guards) {
    signature.guards.push_back({one.text, one.kind, made(one.left), made(one.right)});
  }
  return signature;
}

/// A weight where it lies in the file.
Tensor made(const generated::ConstantTable& table, std::span<const std::byte> weights) {
  void* data = const_cast<std::byte*>(weights.data()) + table.position;
  return from_memory(data, table.sizes, table.strides, table.dtype);
}

std::shared_ptr<const FunctionState> made(const generated::PackageTable& package, const generated::FunctionTable& table,
                                          std::span<const std::byte> weights) {
  auto state = std::make_shared<FunctionState>();
  state->signature = made(table);
  state->checks = input_checks(state->signature, package.name);
  state->has_relations = has_relations(state->signature, state->checks);
  for (const Value& input : state->signature.inputs) state->mutates = state->mutates || input.mutated;
  state->stats.backend = "compiled";
  state->stats.target = table.target;
  state->is_exclusive = table.is_exclusive;
  state->run = table.run;
  for (const generated::ConstantTable& one : table.constants) state->constants.push_back(made(one, weights));
  for (const generated::ConstantTable& one : table.states) {
    state->states.emplace_back(one.name, made(one, weights).clone());
  }
  if (table.is_exclusive) count_exclusive();
  return state;
}

// Where the weights of all packages are.
std::mutex known_weights_mutex;
std::vector<std::span<const std::byte>> known_weights;

[[noreturn]] void fail(const std::string& subject, const std::string& expected, const std::string& got,
                       const std::string& fix) {
  throw PackageError(message(subject, {{"expected", expected}, {"got", got}, {"fix", fix}}));
}

}  // namespace

bool is_constant(const void* data) {
  const std::lock_guard lock(known_weights_mutex);
  const auto* place = static_cast<const std::byte*>(data);
  return std::any_of(known_weights.begin(), known_weights.end(), [&](std::span<const std::byte> one) {
    return std::less_equal<>()(one.data(), place) && std::less<>()(place, one.data() + one.size());
  });
}

}  // namespace detail

Package generated::bind(const PackageTable& table, std::span<const std::byte> weights) {
  for (const char* feature : table.cpu_features) {
    if (!detail::cpu_supports(feature)) {
      detail::fail(std::string(table.name) + ": it was compiled for another CPU", std::string("a CPU with ") + feature,
                   "one without", "generate it for this CPU, e.g. with --isa avx2");
    }
  }
  if (weights.empty()) {
    detail::fail(std::string(table.name) + ": it is used before its weights were given",
                 "weights, which are not embedded in this program", "none",
                 std::string("call ") + table.name + "_package(file) first, or generate it with embedded weights");
  }
  uint64_t key = 0;
  if (weights.size() >= sizeof(key)) std::memcpy(&key, weights.data(), sizeof(key));
  if (weights.size() < table.weights || key != table.key) {
    detail::fail(std::string(table.name) + ": these are not its weights",
                 std::to_string(table.weights) + " bytes that were written together with the sources",
                 weights.size() < table.weights ? std::to_string(weights.size()) + " bytes" : "those of another model",
                 "give the file of weights that lies beside the sources");
  }
  if (reinterpret_cast<uintptr_t>(weights.data()) % 64 != 0) {
    detail::fail(std::string(table.name) + ": its weights are not aligned", "an address that is a multiple of 64",
                 "another one", "map the file, or copy it into memory of std::aligned_alloc(64, ...)");
  }
  auto state = std::make_shared<detail::PackageState>();
  state->origin = table.name;
  for (const FunctionTable& function : table.functions) {
    state->functions.emplace_back(function.name, detail::Access::function(detail::made(table, function, weights)));
  }
  const std::lock_guard lock(detail::known_weights_mutex);
  detail::known_weights.push_back(weights);
  return detail::Access::package(std::move(state));
}

std::span<const std::byte> generated::map(const char* file) {
  const int descriptor = open(file, O_RDONLY | O_CLOEXEC);
  struct stat status{};
  if (descriptor < 0 || fstat(descriptor, &status) != 0) {
    const std::string reason = std::strerror(errno);
    if (descriptor >= 0) close(descriptor);
    detail::fail(std::string(file) + ": the weights cannot be read", "a file that can be opened", reason,
                 "check the path");
  }
  const auto size = static_cast<size_t>(status.st_size);
  void* data = size == 0 ? MAP_FAILED : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (data == MAP_FAILED) {
    detail::fail(std::string(file) + ": the weights cannot be mapped", "a file that is not empty",
                 std::to_string(size) + " bytes", "check the path");
  }
  return {static_cast<const std::byte*>(data), size};
}

}  // namespace torchcc
