#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "artifact.h"

namespace torchcc::detail {

/// The folder of compiled code, private to this user: `compiled` in TORCHCC_CACHE, else in `torchcc` in XDG_CACHE_HOME
/// or ~/.cache. Made when it is missing. Throws CompileError when it cannot be, or when others may write into it.
std::filesystem::path cache_folder();

/// Everything that decides what code comes out of the compiler, as text, and a hash of it, which names the file.
struct CacheKey {
  std::string text;
  std::string name;

  explicit CacheKey(std::string content);
  std::filesystem::path file(const std::filesystem::path& folder) const { return folder / (name + ".pt2"); }
  /// Present where the code was measured and lost; says against what.
  std::filesystem::path slower(const std::filesystem::path& folder) const { return folder / (name + ".slower"); }
};

/// torch, torchcc and the kind of CPU, and of the GPU if the device is one: lines of each key.
std::string build_text(c10::Device device);

/// The compiled code of a key, to run on a device: from this process, else from the folder. Null when there is none. A
/// file that is damaged or made for something else is removed, and the reason written to `reason`.
std::shared_ptr<const Artifact> find_code(const CacheKey& key, const std::filesystem::path& folder, c10::Device device,
                                          std::string& reason);

/// Writes a line into a small file, whole or not at all.
void write_marker(const std::filesystem::path& file, const std::string& text);
/// The line of such a file; empty when there is none.
std::string read_marker(const std::filesystem::path& file);

}  // namespace torchcc::detail
