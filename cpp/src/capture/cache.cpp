#include "cache.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/lazy/core/hash.h>
#include <torch/version.h>
#include <torchcc/error.h>
#include <torchcc/package.h>
#include <nlohmann/json.hpp>

#include "archive.h"
#include "cpu.h"
#include "device.h"
#include "message.h"
#include "state.h"

namespace torchcc::detail {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kKeyLimit = 1 << 28;

fs::path base_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  if (const fs::path chosen = variable("TORCHCC_CACHE"); !chosen.empty()) return chosen;
  if (const fs::path chosen = variable("XDG_CACHE_HOME"); !chosen.empty()) return chosen / "torchcc";
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "torchcc";
  throw CompileError(message("there is no place for compiled code",
                             {{"expected", "one of the variables TORCHCC_CACHE, XDG_CACHE_HOME, HOME"},
                              {"got", "none of them"},
                              {"fix", "set TORCHCC_CACHE to a folder that only you can write to"}}));
}

[[noreturn]] void fail_folder(const fs::path& folder, const std::string& got) {
  throw CompileError(message("the cache folder " + folder.string() + " cannot be used",
                             {{"expected", "a folder that belongs to this user, and that nobody else can write to"},
                              {"got", got},
                              {"fix", "chmod 700 it, or set TORCHCC_CACHE to another folder"}}));
}

/// Code by key and device, shared by all functions of the process as long as one uses it.
struct Shared {
  struct Before {
    using Key = std::pair<std::string, c10::Device>;
    bool operator()(const Key& a, const Key& b) const {
      return std::tuple(a.second.type(), a.second.index(), std::string_view(a.first)) <
             std::tuple(b.second.type(), b.second.index(), std::string_view(b.first));
    }
  };
  std::mutex mutex;
  std::map<std::pair<std::string, c10::Device>, std::weak_ptr<const Artifact>, Before> artifacts;
};
Shared& shared() {
  static Shared instance;
  return instance;
}

std::shared_ptr<const Artifact> load_file(const CacheKey& key, const fs::path& file, c10::Device device) {
  Archive archive(file);
  if (archive.read("extra/torchcc_key.txt", kKeyLimit) != key.text) {
    archive.fail("code for this trace", "code for another one with the same hash", "remove the file");
  }
  std::vector<LoadedCode> code = load_code(archive, device);
  auto artifact = std::make_shared<Artifact>();
  artifact->library = code.at(0).library;
  artifact->signature = std::move(code.at(0).signature);
  artifact->uncapturable = std::move(code.at(0).uncapturable);
  if (code.size() > 1) {
    auto backward = std::make_shared<Backward>(
        parse_backward(nlohmann::json::parse(archive.read("extra/torchcc_backward.json", kKeyLimit))));
    backward->library = code.at(1).library;
    if (artifact->uncapturable.empty()) artifact->uncapturable = std::move(code.at(1).uncapturable);
    artifact->backward = std::move(backward);
  }
  return artifact;
}

}  // namespace

fs::path cache_folder() {
  const fs::path folder = base_folder() / "compiled";
  std::error_code error;
  fs::create_directories(folder.parent_path(), error);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) fail_folder(folder, std::strerror(errno));
  struct stat found{};
  if (::stat(folder.c_str(), &found) != 0) fail_folder(folder, std::strerror(errno));
  if (found.st_uid != ::geteuid()) fail_folder(folder, "it belongs to user " + std::to_string(found.st_uid));
  if ((found.st_mode & (S_IWGRP | S_IWOTH)) != 0) fail_folder(folder, "others can write to it");
  return folder;
}

CacheKey::CacheKey(std::string content)
    : text(std::move(content)), name(torch::lazy::HashToString(torch::lazy::DataHash(text.data(), text.size()))) {}

std::string build_text(c10::Device device) {
  std::string text = "torchcc " TORCHCC_VERSION "\ntorch " TORCH_VERSION "\ncpu";
  // What Inductor compiles for; see cpu_target in python/torchcc/_torch/inductor_targets.py.
  for (const char* feature : {"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni",
                              "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"}) {
    if (cpu_supports(feature)) text += std::string(" ") + feature;
  }
  if (device.is_cuda()) {
    text += "\ncuda " + std::to_string(at::detail::getCUDAHooks().versionCUDART()) + " " + cuda_architecture(device);
  }
  return text + "\n";
}

std::shared_ptr<const Artifact> find_code(const CacheKey& key, const fs::path& folder, c10::Device device,
                                          std::string& reason) {
  const std::lock_guard lock(shared().mutex);
  std::weak_ptr<const Artifact>& entry = shared().artifacts[{key.text, device}];
  if (auto artifact = entry.lock()) return artifact;
  const fs::path file = key.file(folder);
  std::error_code error;
  if (!fs::exists(file, error)) return nullptr;
  try {
    auto artifact = load_file(key, file, device);
    entry = artifact;
    ::utimensat(AT_FDCWD, file.c_str(), nullptr, 0);  // used now: the cache drops what was not used for longest
    return artifact;
  } catch (const Error& failure) {
    reason = one_line(failure.what());
    fs::remove(file, error);
    return nullptr;
  }
}

void write_marker(const fs::path& file, const std::string& text) {
  const fs::path temporary = file.string() + "." + std::to_string(::getpid());
  std::error_code error;
  {
    std::ofstream stream(temporary);
    stream << text << "\n";
    if (!stream.flush()) {
      fs::remove(temporary, error);
      return;
    }
  }
  fs::permissions(temporary, fs::perms::owner_read | fs::perms::owner_write, error);
  fs::rename(temporary, file, error);
}

std::string read_marker(const fs::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

}  // namespace torchcc::detail
