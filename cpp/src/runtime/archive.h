#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace caffe2::serialize {
class PyTorchStreamReader;
}

namespace torchcc::detail {

/// The records of a `.pt2` file (a zip, read with PyTorch's own reader), or of the folder that it was unpacked into.
/// Throws PackageError; not thread-safe.
class Archive {
 public:
  explicit Archive(const std::filesystem::path& file);
  explicit Archive(std::span<const std::byte> bytes);
  ~Archive();

  /// The file's path, or "package in memory": how messages name this archive.
  const std::string& origin() const { return origin_; }
  bool has(const std::string& record);
  /// The whole record. Throws PackageError unless size and CRC-32 are as given.
  std::string read(const std::string& record, uint64_t size, uint32_t crc32);
  /// The whole record, unchecked; refused above `limit` bytes.
  std::string read(const std::string& record, uint64_t limit);

  /// The record's bytes, checked, in memory that can be written to: for a file, its pages (shared with all others that
  /// read it, copied where they are written to); else a copy. Aligned to 64 bytes.
  std::shared_ptr<std::byte> map(const std::string& record, uint64_t size, uint32_t crc32);
  /// Names of all records.
  std::vector<std::string> records();

  /// Throws PackageError about this archive.
  [[noreturn]] void fail(const std::string& expected, const std::string& got,
                         const std::string& fix = "build it again with `torchcc build`, or copy the file again") const;

 private:
  uint64_t size_of(const std::string& record);
  void read_into(const std::string& record, char* bytes, uint64_t size);

  std::string origin_;
  std::filesystem::path folder_;  ///< of an unpacked package; else empty
  uint64_t size_ = 0;
  std::shared_ptr<std::byte> mapping_;  ///< of the whole file; null for bytes in memory
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> reader_;
};

/// CRC-32 as zip files use it (ISO 3309).
uint32_t checksum(const void* bytes, size_t size);
inline uint32_t checksum(const std::string& bytes) { return checksum(bytes.data(), bytes.size()); }

}  // namespace torchcc::detail
