// What all test files share; precompiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torchcc/torchcc.h>

namespace test {

/// A file of the folder that the environment variable TORCHCC_TEST_FILES names.
std::filesystem::path file(const std::string& name);

/// All bytes of a file.
std::vector<std::byte> read(const std::filesystem::path& path);

/// The package of tests/regions.py, loaded once.
const torchcc::Package& regions();

/// How often tensor memory on the CPU was allocated since the program started, and how many blocks are alive.
int64_t allocations();
int64_t alive();

/// Open file descriptors of this process.
int64_t descriptors();

/// An empty folder, removed at the end.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace test
