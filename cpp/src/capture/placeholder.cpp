#include "placeholder.h"

#include <optional>
#include <string>
#include <utility>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/COW.h>

#include "pool.h"

namespace torchcc::detail {
namespace {

/// Marks memory that is not there yet.
void no_memory(void*) {}

/// What such a storage has in place of memory.
at::DataPtr placeholder(c10::Device device) { return {nullptr, nullptr, &no_memory, device}; }

c10::Allocator* allocator_of(c10::Device device) {
  return device.is_cpu() ? c10::GetCPUAllocator() : c10::GetAllocator(device.type());
}

at::DeleterFnPtr deleter_of(const c10::StorageImpl& storage) {
  return const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get_deleter();
}

template <class Storage>
constexpr bool kCanAllowAgain = requires(Storage& storage) { storage.clear_data_ptr_access_error_msg_(); };

thread_local const char* access_message = nullptr;

/// Makes every access to the data an error. Before torch 2.13 that cannot be undone.
template <class Storage>
void forbid_access(Storage& storage) {
  if constexpr (kCanAllowAgain<Storage>) {
    storage.release_data_and_set_meta_custom_data_ptr_error_msg_(
        access_message == nullptr ? std::nullopt : std::optional<std::string>(access_message));
  }
}
template <class Storage>
void allow_access(Storage& storage) {
  if constexpr (kCanAllowAgain<Storage>) storage.clear_data_ptr_access_error_msg_();
}

}  // namespace

const char* set_access_message(const char* message) { return std::exchange(access_message, message); }

bool is_placeholder(const c10::StorageImpl& storage) { return deleter_of(storage) == &no_memory; }

c10::intrusive_ptr<c10::StorageImpl> make_placeholder(size_t bytes, c10::Device device) {
  c10::intrusive_ptr<c10::StorageImpl> storage = c10::make_intrusive<Pooled<c10::StorageImpl>>(
      c10::StorageImpl::use_byte_size_t(), bytes, placeholder(device), allocator_of(device), true);
  forbid_access(*storage);
  return storage;
}

at::DataPtr take_data(c10::StorageImpl& storage) {
  at::DataPtr data = storage.set_data_ptr(placeholder(storage.device()));
  forbid_access(storage);
  return data;
}

void set_data(c10::StorageImpl& storage, at::DataPtr data) {
  allow_access(storage);
  storage.set_data_ptr_noswap(std::move(data));
}

bool is_allocated(const c10::StorageImpl& storage) {
  return deleter_of(storage) == allocator_of(storage.device())->raw_deleter() ||
         c10::impl::cow::is_cow_data_ptr(const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks());
}

}  // namespace torchcc::detail
