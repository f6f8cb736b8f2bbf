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

/// Loads a package that `torchcc build` wrote. Everything is read, checked and bound here: the file may be removed or
/// replaced afterwards. Nothing is unpacked into a folder that others can see. Throws PackageError when the file is
/// missing, damaged, of another format version, made for another torch, or holds no code that this machine can run.
Package load(const std::filesystem::path& file);

/// The same from memory; `bytes` may be freed afterwards.
Package load(std::span<const std::byte> bytes);

}  // namespace torchcc
