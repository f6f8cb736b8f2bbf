#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <torchcc/function.h>

namespace torchcc {

namespace detail {
struct PackageState;
}

/// The functions of one `.pt2` file. A handle that is cheap to copy; safe to use from many threads at once.
class Package {
 public:
  /// An empty handle; looking up a function throws PackageError.
  Package() = default;

  /// The function of this name. Throws PackageError, with the names that exist, when there is none.
  const Function& operator[](std::string_view name) const;

  /// Names in the order in which they were built.
  std::vector<std::string> names() const;

 private:
  friend struct detail::Access;
  std::shared_ptr<const detail::PackageState> state_;
};

#ifndef TORCHCC_STANDALONE  // whose packages are part of the program
/// How a package is loaded. A plain value.
struct LoadOptions {
  bool compiled = true;  ///< use compiled code that fits this machine; false: run the portable graphs
  /// Convert arguments of another dtype, or on another device, to what the signature says, as Tensor::to does; false:
  /// refuse them. Also with true, what would lose more than precision is refused (a number with a fraction as a whole
  /// one, see c10::canCast), and so is an argument that the function writes into. Results are what the signature says.
  bool convert = false;
  /// Launch compiled code of functions on a GPU as one CUDA graph: two calls for each combination of thread, stream and
  /// sizes run as without, the third records a graph, and all others are one launch. At most 16 graphs are kept for a
  /// function. Results of such a call lie in memory of the graph: they are valid until the same thread calls the
  /// function for the same sizes on the same stream again, so clone() what has to stay. Backward of calls with
  /// gradients is a graph of its own; what it reads stays until it has run. Where no graph can be made, or not yet,
  /// calls run as without, and Function::stats() says why. See docs/cuda.md.
  bool cuda_graphs = false;
  /// The GPU for functions that were exported on one; -1: the one that is current while the package is loaded. All
  /// arguments on a GPU have to be there.
  int device = -1;
};

/// Loads a package that `torchcc build` or `torchcc export` wrote, or a file of torch.export.save (its functions are
/// named as in the file, "model"); `file` may also be the folder into which one was unpacked. Everything is read,
/// checked and bound here: the file may be removed or replaced afterwards, but not overwritten in place, since weights
/// stay mapped from it. Of each function the first compiled variant is taken that fits this machine and this torch,
/// else its portable graph; Function::stats() says which and why. Nothing is unpacked into a folder that others can
/// see. Throws PackageError when the file is missing, damaged or of another format version, or holds nothing that can
/// run here.
Package load(const std::filesystem::path& file, const LoadOptions& options = {});

/// The same from memory; `bytes` may be freed afterwards.
Package load(std::span<const std::byte> bytes, const LoadOptions& options = {});

/// Loads a shared library that registers operators (TORCH_LIBRARY), which graphs of packages that are loaded afterwards
/// may use. It stays loaded. Throws PackageError with the dynamic loader's reason.
void load_operators(const std::filesystem::path& library);

#endif

}  // namespace torchcc
