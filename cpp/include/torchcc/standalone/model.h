#pragma once

// How a generated source tells the runtime about its functions: tables that are constants, so that nothing runs before
// the first call. For generated sources only.

#include <cstddef>
#include <cstdint>
#include <span>

#include <torchcc/package.h>
#include <torchcc/signature.h>
#include <torchcc/tensor.h>

namespace torchcc::generated {

struct SizeTable {
  const char* text;
  std::span<const SizeStep> steps;
};

struct ValueTable {
  const char* name;
  ScalarType dtype;
  std::span<const SizeTable> sizes;
  bool is_number;
  int64_t min;
  int64_t max;
  bool is_mutated;
};

struct SymbolTable {
  const char* name;
  int64_t min;
  int64_t max;
};

struct GuardTable {
  const char* text;
  SizeGuard::Kind kind;
  SizeTable left;
  SizeTable right;
};

/// A tensor in the file of weights.
struct ConstantTable {
  const char* name;
  ScalarType dtype;
  uint64_t position;  ///< of its first element, in bytes from the start of the file
  std::span<const int64_t> sizes;
  std::span<const int64_t> strides;
};

/// Runs the code: takes over the inputs, and gives the outputs.
using Run = void (*)(Tensor** inputs, Tensor** outputs, const Tensor* constants);

struct FunctionTable {
  const char* name;
  const char* target;  ///< "cpu-x86_64-avx512"
  std::span<const ValueTable> inputs;
  std::span<const ValueTable> outputs;
  std::span<const SymbolTable> symbols;
  std::span<const GuardTable> guards;
  std::span<const ConstantTable> constants;
  std::span<const ConstantTable>
      states;  ///< buffers that the code writes into; its inputs behind those of the signature
  Run run;
  bool is_exclusive;  ///< divides whole numbers, and must not run beside other such code
};

struct PackageTable {
  const char* name;
  std::span<const FunctionTable> functions;
  std::span<const char* const> cpu_features;  ///< that the code needs, by their names in __builtin_cpu_supports
  uint64_t weights;                           ///< bytes of the file of weights
  uint64_t key;                               ///< the first bytes of that file, so that another one is not taken for it
};

/// Binds the functions to their weights, which stay where they are: embedded, mapped, or the caller's. Throws
/// PackageError when there are none, or another package's, and when this CPU cannot run the code.
Package bind(const PackageTable& table, std::span<const std::byte> weights);

/// Maps a file of weights. It stays mapped. Throws PackageError when it cannot be.
std::span<const std::byte> map(const char* file);

void delete_handle(Tensor* handle) noexcept;

}  // namespace torchcc::generated
