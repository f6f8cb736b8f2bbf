#include "archive.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <caffe2/serialize/inline_container.h>
#include <torchcc/error.h>

#include "message.h"

namespace {
// The header defines plain functions; the unnamed namespace keeps them out of the user's link.
#include <caffe2/serialize/crc_alt.h>
}  // namespace

namespace torchcc::detail {
namespace {

// Deflate never makes anything smaller than this; a record that claims more would only exhaust memory.
constexpr uint64_t kMostCompression = 1032;

class MemoryAdapter : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit MemoryAdapter(std::span<const std::byte> bytes) : bytes_(bytes) {}
  size_t size() const override { return bytes_.size(); }
  size_t read(uint64_t position, void* buffer, size_t count, const char*) const override {
    if (position >= bytes_.size()) return 0;
    const size_t available = std::min<size_t>(count, bytes_.size() - position);
    std::memcpy(buffer, bytes_.data() + position, available);
    return available;
  }

 private:
  std::span<const std::byte> bytes_;
};

/// What PyTorch's reader says, without its advice about checkpoints.
std::string first_sentence(const char* text) {
  const std::string line = first_line(text);
  return line.substr(0, line.find(". "));
}

// What PyTorch's writer aligns records to.
constexpr size_t kAlignment = 64;

/// The whole file; null when it cannot be mapped.
std::shared_ptr<std::byte> map_file(const std::filesystem::path& file, size_t size) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
  ::close(descriptor);
  if (address == MAP_FAILED) return nullptr;
  return {static_cast<std::byte*>(address), [size](std::byte* begin) { ::munmap(begin, size); }};
}

std::shared_ptr<std::byte> allocate(size_t size) {
  void* address = std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment);
  if (address == nullptr) throw std::bad_alloc();
  return {static_cast<std::byte*>(address), [](std::byte* begin) { std::free(begin); }};
}

/// The folder with the records: a zip has one folder at its top, which may have been unpacked with it.
std::filesystem::path root_of(const std::filesystem::path& folder) {
  const auto is_root = [](const std::filesystem::path& one) {
    std::error_code ignored;
    return std::filesystem::is_directory(one / "models", ignored) ||
           std::filesystem::is_directory(one / "extra", ignored);
  };
  std::error_code code;
  if (is_root(folder)) return folder;
  for (const auto& entry : std::filesystem::directory_iterator(folder, code)) {
    if (is_root(entry.path())) return entry.path();
  }
  return folder;
}

template <class Open>
auto open_reader(const Archive& archive, uint64_t size, Open open) {
  if (size == 0) archive.fail("a .pt2 package", "an empty file");
  try {
    return open();
  } catch (const std::exception& error) {
    archive.fail("a .pt2 package (a zip file)", first_sentence(error.what()));
  }
}

}  // namespace

Archive::Archive(const std::filesystem::path& file) : origin_(file.string()) {
  std::error_code code;
  if (std::filesystem::is_directory(file, code)) {
    folder_ = root_of(file);
    return;
  }
  if (!std::filesystem::is_regular_file(file, code)) {
    fail("a .pt2 package", code ? code.message() : std::string("not a regular file"), "check the path");
  }
  size_ = std::filesystem::file_size(file, code);
  if (code) fail("a .pt2 package", code.message());
  reader_ = open_reader(*this, size_,
                        [&] { return std::make_unique<caffe2::serialize::PyTorchStreamReader>(file.string()); });
  mapping_ = map_file(file, size_);
}

Archive::Archive(std::span<const std::byte> bytes) : origin_("package in memory"), size_(bytes.size()) {
  reader_ = open_reader(*this, size_, [&] {
    return std::make_unique<caffe2::serialize::PyTorchStreamReader>(std::make_shared<MemoryAdapter>(bytes));
  });
}

Archive::~Archive() = default;

void Archive::fail(const std::string& expected, const std::string& got, const std::string& fix) const {
  throw PackageError(
      message(origin_ + ": the package cannot be loaded", {{"expected", expected}, {"got", got}, {"fix", fix}}));
}

bool Archive::has(const std::string& record) {
  if (folder_.empty()) return reader_->hasRecord(record);
  std::error_code ignored;
  return std::filesystem::is_regular_file(folder_ / record, ignored);
}

uint64_t Archive::size_of(const std::string& record) {
  if (!folder_.empty()) return std::filesystem::file_size(folder_ / record);
  const size_t size = reader_->getRecordSize(record);
  if (size / kMostCompression > size_) fail("an undamaged record " + record, "one larger than it can be in this file");
  return size;
}

void Archive::read_into(const std::string& record, char* bytes, uint64_t size) {
  if (size == 0) return;
  if (folder_.empty()) {
    reader_->getRecord(record, bytes, size);
    return;
  }
  std::ifstream stream(folder_ / record, std::ios::binary);
  stream.read(bytes, static_cast<std::streamsize>(size));
  if (!stream) fail("a readable record " + record, "a file that cannot be read whole");
}

std::string Archive::read(const std::string& record, uint64_t limit) {
  try {
    if (!has(record)) fail("a record " + record, "no such record");
    const uint64_t size = size_of(record);
    if (size > limit) {
      fail("a record " + record + " of at most " + std::to_string(limit) + " bytes", std::to_string(size) + " bytes");
    }
    std::string bytes(size, '\0');
    read_into(record, bytes.data(), size);
    return bytes;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail("a readable record " + record, first_sentence(error.what()));
  }
}

std::string Archive::read(const std::string& record, uint64_t size, uint32_t crc32) {
  std::string bytes = read(record, size);
  if (bytes.size() != size) {
    fail("a record " + record + " of " + std::to_string(size) + " bytes", std::to_string(bytes.size()) + " bytes");
  }
  if (checksum(bytes) != crc32) fail("an undamaged record " + record, "another checksum than the manifest states");
  return bytes;
}

std::shared_ptr<std::byte> Archive::map(const std::string& record, uint64_t size, uint32_t crc32) {
  if (!folder_.empty() && size > 0 && has(record) && size_of(record) == size) {
    std::shared_ptr<std::byte> bytes = map_file(folder_ / record, size);
    if (bytes != nullptr && checksum(bytes.get(), size) == crc32) return bytes;
  }
  if (mapping_ != nullptr && size > 0 && reader_->hasRecord(record)) {
    const uint64_t offset = reader_->getRecordOffset(record);
    std::byte* begin = mapping_.get() + offset;
    // A record that is compressed, or not aligned, fails here and is read.
    if (offset % kAlignment == 0 && offset <= size_ && size <= size_ - offset && checksum(begin, size) == crc32) {
      return {mapping_, begin};
    }
  }
  const std::string bytes = read(record, size, crc32);
  std::shared_ptr<std::byte> copy = allocate(size);
  std::memcpy(copy.get(), bytes.data(), size);
  return copy;
}

std::vector<std::string> Archive::records() {
  if (folder_.empty()) return reader_->getAllRecords();
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
    if (entry.is_regular_file()) names.push_back(std::filesystem::relative(entry.path(), folder_).generic_string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

uint32_t checksum(const void* bytes, size_t size) { return crc32_fast(bytes, size); }

}  // namespace torchcc::detail
