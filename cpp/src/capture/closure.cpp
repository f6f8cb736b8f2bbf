#include "closure.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <typeinfo>

#include <cxxabi.h>
#include <link.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <torch/nn/module.h>

namespace torchcc::detail {

namespace {

// Bytes behind an address that are watched: all of an allocation on the heap up to the first of these, else the second.
constexpr size_t kObject = 512;
constexpr size_t kUnknown = 128;

/// Copies memory of this process, if it is there. Returns how many bytes, from the first on, could be read.
size_t copy_memory(const void* address, void* to, size_t size) {
  const iovec local{to, size};
  const iovec remote{const_cast<void*>(address), size};
  const ssize_t count = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
  if (count >= 0) return static_cast<size_t>(count);
  return size > 8 ? copy_memory(address, to, 8) : 0;
}

bool is_in_stack_of_this_thread(const void* address) {
  thread_local const std::pair<const char*, const char*> stack = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &begin, &size);
      pthread_attr_destroy(&attributes);
    }
    return std::pair(static_cast<const char*>(begin), static_cast<const char*>(begin) + size);
  }();
  return address >= stack.first && address < stack.second;
}

/// Whether an address is in a loaded segment of the program or of a library. Other than dladdr, which does the same,
/// this does not look for the name of a symbol, which takes long in libtorch.
bool is_program_data(const void* address) {
  auto wanted = reinterpret_cast<uintptr_t>(address);
  const auto holds = [](dl_phdr_info* object, size_t, void* given) -> int {
    const uintptr_t offset = *static_cast<uintptr_t*>(given) - object->dlpi_addr;
    return std::any_of(object->dlpi_phdr, object->dlpi_phdr + object->dlpi_phnum, [&](const auto& segment) {
      return segment.p_type == PT_LOAD && offset >= segment.p_vaddr && offset < segment.p_vaddr + segment.p_memsz;
    });
  };
  return dl_iterate_phdr(holds, &wanted) != 0;
}

// The part of the heap that grows at its end. A mapping of its own, as for a large array, may go at any time.
bool is_in_heap(const void* address) {
  static const int in_data = 0;
  return address > static_cast<const void*>(&in_data) && address < sbrk(0);
}

/// How many bytes from an address on belong to one object on the heap, going by glibc's sizes in front of each
/// allocation; few when that is not to be seen. What lies behind belongs to others, and changes without the function.
size_t object_size(const std::byte* address) {
  const auto size_before = [](const std::byte* content) {
    uint64_t size = 0;
    return copy_memory(content - 8, &size, sizeof size) == sizeof size ? size : 0;
  };
  const auto is_size = [](uint64_t size) { return (size & ~7ULL) >= 32 && size <= (1 << 20) && (size & 8) == 0; };
  for (const size_t in_front : {size_t{0}, size_t{16}}) {  // new, and make_shared
    const std::byte* content = address - in_front;
    const uint64_t size = size_before(content);
    if (!is_size(size)) continue;
    const uint64_t next = size_before(content + (size & ~7ULL));
    if (is_size(next) && (next & 1) != 0) return (size & ~7ULL) - 8 - in_front;
  }
  return kUnknown;
}

/// Whether memory at an address stays mapped as long as this thread or the program lives.
bool stays(const void* address) {
  return reinterpret_cast<uintptr_t>(address) > 4096 &&
         (is_in_stack_of_this_thread(address) || is_in_heap(address) || is_program_data(address));
}

// The variables belong to the program, which may have freed or poisoned what a stale pointer names, or may be writing
// it.
#if defined(__GNUC__)
__attribute__((no_sanitize("address", "thread", "undefined")))
#endif
uint64_t read_word(const std::byte* address, uint32_t size) {
  if (size == 8) return *reinterpret_cast<const volatile uint64_t*>(address);
  if (size == 4) return *reinterpret_cast<const volatile uint32_t*>(address);
  return *reinterpret_cast<const volatile uint8_t*>(address);
}

/// How many bytes a variable at an address may have, going by its alignment.
uint32_t size_at(uintptr_t address) { return address % 8 == 0 ? 8 : address % 4 == 0 ? 4 : 1; }

struct Plain {
  virtual ~Plain() = default;
};
struct Other {
  virtual ~Other() = default;
};
struct Single : Plain {};
struct Several : Plain, Other {};

/// Whether what is at an address is type information of a class: only that begins with one of these tables.
bool is_class_type(const void* address) {
  const auto table_of = [](const std::type_info& type) {
    return *static_cast<const void* const*>(static_cast<const void*>(&type));
  };
  static const std::array<const void*, 3> tables{table_of(typeid(Plain)), table_of(typeid(Single)),
                                                 table_of(typeid(Several))};
  const void* table = nullptr;
  return reinterpret_cast<uintptr_t>(address) % 8 == 0 && is_program_data(address) &&
         copy_memory(address, static_cast<void*>(&table), 8) == 8 &&
         std::find(tables.begin(), tables.end(), table) != tables.end();
}

/// Whether the object at an address is of a class that derives from another, going by its type information. Reads
/// nothing that may not be there.
bool derives_from(const void* address, const std::type_info& base) {
  if (address == nullptr || reinterpret_cast<uintptr_t>(address) % 8 != 0) return false;
  const void* table = nullptr;
  if (!stays(address) || copy_memory(address, static_cast<void*>(&table), 8) != 8) return false;
  if (reinterpret_cast<uintptr_t>(table) % 8 != 0 || !is_program_data(table)) return false;
  std::array<const void*, 2> header{};  // Itanium C++ ABI: the offset to the top of the object, and the type
  if (copy_memory(static_cast<const void* const*>(table) - 2, header.data(), 16) != 16) return false;
  if (header[0] != nullptr || !is_class_type(header[1])) return false;
  const auto* type = static_cast<const std::type_info*>(header[1]);
  while (type != nullptr) {
    if (*type == base) return true;
    const auto* derived = dynamic_cast<const abi::__si_class_type_info*>(type);
    type = derived == nullptr ? nullptr : derived->__base_type;
  }
  return false;
}

/// Whether an object is one that only counts who uses it, or a tensor: its words change with every handle.
bool is_counted(const void* address) {
  return derives_from(address, typeid(c10::intrusive_ptr_target)) ||
         derives_from(address, typeid(std::_Sp_counted_base<std::__default_lock_policy>));
}

/// Whether a module that some word points to is still there. Where it is not, its memory may look as it did: but what
/// counted its owners lay in front of it, and does not. `is_certain`: the word is the function's own, which may also
/// name a module without owners.
bool is_alive(const torch::nn::Module* module, bool is_certain) {
  const std::enable_shared_from_this<torch::nn::Module>* shared = module;
  std::array<const void*, 2> words{};  // of its weak_ptr: the module, and what counts
  if (copy_memory(static_cast<const void*>(shared), static_cast<void*>(words.data()), sizeof words) != sizeof words) {
    return false;
  }
  if (words[1] == nullptr) return is_certain;
  return words[0] == module && derives_from(words[1], typeid(std::_Sp_counted_base<std::__default_lock_policy>));
}

}  // namespace

void ClosureWatch::add(const std::byte* address, uint32_t size, bool is_certain) {
  places_.push_back({address, size, is_certain});
  if (size != 8) return;
  const void* pointer = nullptr;
  std::memcpy(static_cast<void*>(&pointer), address, sizeof pointer);
  if (!derives_from(pointer, typeid(torch::nn::Module))) return;
  auto* found = static_cast<torch::nn::Module*>(const_cast<void*>(pointer));
  if (!is_alive(found, is_certain)) return;
  if (auto owner = found->weak_from_this().lock()) modules_.owners.push_back(std::move(owner));
  modules_.all.push_back(found);
  for (const auto& part : found->modules(/*include_self=*/false)) {
    modules_.owners.push_back(part);
    modules_.all.push_back(part.get());
  }
}

void ClosureWatch::add_memory(const std::byte* address) {
  const auto number = reinterpret_cast<uintptr_t>(address);
  const uint32_t first = size_at(number);
  std::array<std::byte, kObject> content;
  size_t wanted = kUnknown;
  if (is_in_heap(address)) {
    // Of a vector's three words, two are addresses in, or at the end of, what the first one names.
    const auto known = std::find_if(objects_.begin(), objects_.end(), [&](const auto& object) {
      return object.first < address && address <= object.second;
    });
    wanted = known != objects_.end() ? static_cast<size_t>(known->second - address) : object_size(address);
    if (known == objects_.end()) objects_.emplace_back(address, address + wanted);
    wanted = std::min(kObject, wanted);
  }
  const size_t size = copy_memory(address, content.data(), wanted);
  if (size < first) return;
  add(address, first, true);
  for (size_t i = 8 - number % 8; i + 8 <= size; i += 8) {
    if (stays(address + i + 7)) add(address + i, 8, false);
  }
}

ClosureWatch::ClosureWatch(ClosureBytes closure) {
  for (size_t i = 0; i + 8 <= closure.size; i += 8) {
    add(closure.begin + i, 8, true);
    const std::byte* target = nullptr;
    std::memcpy(static_cast<void*>(&target), closure.begin + i, sizeof target);
    if (stays(target) && !is_counted(target)) add_memory(target);
  }
  for (size_t i = closure.size / 8 * 8; i < closure.size; ++i) add(closure.begin + i, 1, true);
  dropped_ = std::make_unique<std::atomic<bool>[]>(places_.size());
}

std::vector<uint64_t> ClosureWatch::read() const {
  std::vector<uint64_t> words;
  words.reserve(places_.size());
  for (const Place& place : places_) words.push_back(read_word(place.address, place.size));
  return words;
}

bool ClosureWatch::is(const std::vector<uint64_t>& earlier) const {
  for (size_t i = 0; i < places_.size(); ++i) {
    if (read_word(places_[i].address, places_[i].size) != earlier[i] && !dropped_[i].load(std::memory_order_relaxed)) {
      return false;
    }
  }
  return true;
}

bool ClosureWatch::is_certain(const std::vector<uint64_t>& earlier) const {
  for (size_t i = 0; i < places_.size(); ++i) {
    if (places_[i].is_certain && read_word(places_[i].address, places_[i].size) != earlier[i]) return false;
  }
  return true;
}

bool ClosureWatch::same(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) const {
  for (size_t i = 0; i < places_.size(); ++i) {
    if (a[i] != b[i] && !dropped_[i].load(std::memory_order_relaxed)) return false;
  }
  return true;
}

bool ClosureWatch::drop_differences(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b) const {
  for (size_t i = 0; i < places_.size(); ++i) {
    if (a[i] != b[i] && places_[i].is_certain) return false;
  }
  for (size_t i = 0; i < places_.size(); ++i) {
    if (a[i] != b[i]) dropped_[i].store(true, std::memory_order_relaxed);
  }
  return true;
}

void ClosureWatch::append_modes(std::vector<int64_t>& words) const {
  if (modules_.all.empty()) return;
  uint64_t word = 0;
  size_t bits = 0;
  for (const torch::nn::Module* module : modules_.all) {
    word = word << 1 | (module->is_training() ? 1U : 0U);
    if (++bits % 64 == 0) words.push_back(static_cast<int64_t>(word));
  }
  words.push_back(static_cast<int64_t>(word));
}

}  // namespace torchcc::detail
