// Memory that changes, or is read, without an operator that a recording sees.

#include "recorder.h"

#include <c10/core/impl/COW.h>

#include "content.h"

namespace torchcc::detail {

size_t Recorder::hash(const c10::StorageImpl& storage) {
  try {
    return hash_of(storage);
  } catch (const c10::OutOfMemoryError&) {
    refuse("the GPU has too little memory left for checking what the function does");
    return 0;
  }
}

void Recorder::check(Memory& memory, const c10::StorageImpl& storage) {
  if (memory.checks <= 0) return;
  --memory.checks;
  const size_t now = hash(storage);
  if (memory.hash == now) return;
  if (memory.is_unwritten) {
    memory.hash = now;  // see add_copy
    return;
  }
  refuse("the function writes data without operators (data_ptr, accessor, from_blob, another thread)", true);
}

// Of a segment: memory that operators have written is marked for copying on write, by nobody else; access that may
// write (data_ptr, accessor) takes the mark away, and between operators only the program has it.
void Recorder::watch_touched() {
  if (!is_segment_) return;
  for (const size_t index : touched_) {
    Memory& memory = memories_[index];
    if (memory.is_external || memory.is_unwritten) continue;
    const auto storage = memory.storage.lock();
    if (storage == nullptr || c10::impl::cow::is_cow_data_ptr(storage->data_ptr())) continue;
    memory.is_watched = c10::impl::cow::lazy_clone_storage(*storage) != nullptr;
  }
}

void Recorder::check_access(Memory& memory, const c10::StorageImpl& storage) {
  if (!memory.is_watched || c10::impl::cow::is_cow_data_ptr(storage.data_ptr())) return;
  memory.is_watched = false;
  refuse("the function uses the memory of a tensor that operators have made (data_ptr, accessor)", true);
}

void Recorder::end_watch() {
  for (Memory& memory : memories_) {
    if (!memory.is_watched) continue;
    if (const auto storage = memory.storage.lock()) {
      check_access(memory, *storage);
      storage->mutable_data();  // takes the mark away, and copies nothing
    }
    memory.is_watched = false;
  }
}

// An operator that gives a view where it can (contiguous, to, reshape) has made a copy: it has read after all.
void Recorder::check_source(Memory& copy, const Operator& op) {
  if (first_used_ == Memory::kNone) return;
  copy.source = first_used_;
  Memory& memory = memories_[first_used_];
  const auto storage = memory.storage.lock();
  if (storage == nullptr || storage->nbytes() == 0) return;
  check(memory, *storage);
  if (memory.is_unwritten)
    refuse("memory that was written without operators (data_ptr, accessor) is copied by " + op.name, true);
}

// Of a new tensor on the CPU: the host may read it without an operator. What attention gives beside its result is the
// state of the generator.
void Recorder::check_origin(const Operator& op) {
  for (const size_t index : touched_) {
    const int64_t* words = trace_.value(memories_[index].values.front());
    if (words[kDevice] == 0 || op.ignores_data || op.is_random) continue;
    refuse("the function makes a tensor on the CPU out of one on a GPU (" + op.name + ")");
  }
}

void Recorder::copy_original(Memory& memory, const c10::StorageImpl& storage) {
  try {
    memory.original = copy_of(storage);
  } catch (const c10::OutOfMemoryError&) {
    refuse("the GPU has too little memory left for a copy of what the function writes into");
  }
}

void Recorder::rehash_written() {
  if (!checks_content_) return;
  for (const size_t index : written_) {
    Memory& memory = memories_[index];
    if (const auto storage = memory.storage.lock()) {
      memory.expect(hash(*storage));
    }
  }
}

}  // namespace torchcc::detail
