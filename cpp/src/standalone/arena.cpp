// Where the memory of tensors comes from. Compiled code asks for the same sizes in each call, so each thread keeps what
// was given back to it, up to as much as it had in use at once, and a call in the steady state allocates nothing.
#include "arena.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>

#include <torchcc/error.h>

namespace torchcc::detail {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSpareHandles = 256;

void destroy(Storage* storage) noexcept {
  std::free(storage->data);
  delete storage;
}

/// What a thread keeps. A block may be given back to another thread than it came from.
class Arena {
 public:
  ~Arena() {
    for (Storage* block : blocks_) destroy(block);
    for (Tensor* handle : handles_) delete handle;
    is_gone = true;
  }

  /// The smallest block that is large enough, and not more than twice as large; null when there is none.
  Storage* take(size_t capacity) {
    in_use_ += capacity;
    most_in_use_ = std::max(most_in_use_, in_use_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if ((*block)->capacity < capacity || (*block)->capacity > 2 * capacity) continue;
      if (best == blocks_.end() || (*block)->capacity < (*best)->capacity) best = block;
    }
    if (best == blocks_.end()) return nullptr;
    Storage* block = *best;
    blocks_.erase(best);
    kept_ -= block->capacity;
    return block;
  }

  void keep(Storage* block) noexcept {
    in_use_ -= std::min(in_use_, block->capacity);
    while (!blocks_.empty() && kept_ + block->capacity > 2 * most_in_use_) {
      kept_ -= blocks_.front()->capacity;  // the one that was not wanted for longest
      destroy(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
    if (block->capacity > 2 * most_in_use_ || !reserve(blocks_)) {
      destroy(block);
      return;
    }
    kept_ += block->capacity;
    blocks_.push_back(block);
  }

  Tensor* take_handle() {
    if (handles_.empty()) return nullptr;
    Tensor* handle = handles_.back();
    handles_.pop_back();
    return handle;
  }

  void keep_handle(Tensor* handle) noexcept {
    if (handles_.size() >= kSpareHandles || !reserve(handles_)) {
      delete handle;
    } else {
      handles_.push_back(handle);
    }
  }

  static thread_local bool is_gone;  ///< the thread is ending

 private:
  /// Makes room for one more; false when there is no memory.
  template <class T>
  static bool reserve(std::vector<T>& entries) noexcept {
    if (entries.size() < entries.capacity()) return true;
    try {
      entries.reserve(2 * entries.size() + 16);
      return true;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  std::vector<Storage*> blocks_;
  std::vector<Tensor*> handles_;
  size_t kept_ = 0;
  size_t in_use_ = 0;
  size_t most_in_use_ = 0;
};

thread_local bool Arena::is_gone = false;

Arena& arena() {
  static thread_local Arena own;
  return own;
}

}  // namespace

Storage* allocate(size_t bytes) {
  const size_t capacity = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (!Arena::is_gone) {
    if (Storage* block = arena().take(capacity)) {
      block->owners.store(1, std::memory_order_relaxed);
      return block;
    }
  }
  void* data = capacity < bytes ? nullptr : std::aligned_alloc(kAlignment, capacity);
  if (data == nullptr) throw Error("there is no memory for a tensor of " + std::to_string(bytes) + " bytes");
  auto* storage = new (std::nothrow) Storage;
  if (storage == nullptr) {
    std::free(data);
    throw Error("there is no memory for a tensor of " + std::to_string(bytes) + " bytes");
  }
  storage->capacity = capacity;
  storage->data = data;
  return storage;
}

void retain(Storage* storage) noexcept { storage->owners.fetch_add(1, std::memory_order_relaxed); }

void release(Storage* storage) noexcept {
  if (storage->owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (storage->give_back != nullptr) {
    storage->give_back(storage->owner);
    delete storage;
  } else if (Arena::is_gone) {
    destroy(storage);
  } else {
    arena().keep(storage);
  }
}

Tensor* new_handle() {
  if (!Arena::is_gone) {
    if (Tensor* handle = arena().take_handle()) return handle;
  }
  return new Tensor;
}

void delete_handle(Tensor* handle) noexcept {
  if (handle == nullptr) return;
  *handle = Tensor();
  if (Arena::is_gone) {
    delete handle;
  } else {
    arena().keep_handle(handle);
  }
}

}  // namespace torchcc::detail
