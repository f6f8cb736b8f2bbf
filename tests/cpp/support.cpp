#include "support.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <c10/core/CPUAllocator.h>

namespace test {
namespace {

std::atomic<int64_t> allocation_count{0};
std::atomic<int64_t> alive_count{0};

/// libtorch's own allocator, with a count.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    auto* block = new c10::DataPtr(c10::GetDefaultCPUAllocator()->allocate(size));
    ++allocation_count;
    ++alive_count;
    return {block->get(), block, &release, block->device()};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

 private:
  static void release(void* block) {
    delete static_cast<c10::DataPtr*>(block);
    --alive_count;
  }
};

CountingAllocator counting_allocator;
const bool installed = [] {
  c10::SetCPUAllocator(&counting_allocator, /*priority=*/1);
  return true;
}();

}  // namespace

std::filesystem::path file(const std::string& name) {
  const char* folder = std::getenv("TORCHCC_TEST_FILES");
  if (folder == nullptr) throw std::runtime_error("TORCHCC_TEST_FILES is not set; run these tests with pytest");
  return std::filesystem::path(folder) / name;
}

std::vector<std::byte> read(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path.string());
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

const torchcc::Package& regions() {
  static const torchcc::Package package = torchcc::load(file("regions.pt2"));
  return package;
}

int64_t allocations() { return allocation_count; }

int64_t alive() { return alive_count; }

int64_t descriptors() {
  const std::filesystem::directory_iterator entries("/proc/self/fd");
  return std::distance(begin(entries), end(entries)) - 1;  // one is the iterator's own
}

Folder::Folder() {
  std::string name = (std::filesystem::temp_directory_path() / "torchcc-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make " + name);
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace test
