#include "archive.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

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

bool Archive::has(const std::string& record) { return reader_->hasRecord(record); }

std::string Archive::read(const std::string& record, uint64_t limit) {
  try {
    if (!reader_->hasRecord(record)) fail("a record " + record, "no such record");
    const size_t size = reader_->getRecordSize(record);
    if (size / kMostCompression > size_)
      fail("an undamaged record " + record, "one larger than it can be in this file");
    if (size > limit) {
      fail("a record " + record + " of at most " + std::to_string(limit) + " bytes", std::to_string(size) + " bytes");
    }
    std::string bytes(size, '\0');
    if (size != 0) reader_->getRecord(record, bytes.data(), size);
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

std::vector<std::string> Archive::records() { return reader_->getAllRecords(); }

uint32_t checksum(const void* bytes, size_t size) { return crc32_fast(bytes, size); }

}  // namespace torchcc::detail
