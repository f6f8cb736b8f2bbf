// Counts allocations of all kinds: glibc's entries, in front of which these stand.
#include <cstddef>

extern "C" {
void* __libc_malloc(size_t size);
void* __libc_memalign(size_t alignment, size_t size);

long torchcc_test_allocations = 0;

void* malloc(size_t size) {
  __atomic_fetch_add(&torchcc_test_allocations, 1, __ATOMIC_RELAXED);
  return __libc_malloc(size);
}

void* aligned_alloc(size_t alignment, size_t size) {
  __atomic_fetch_add(&torchcc_test_allocations, 1, __ATOMIC_RELAXED);
  return __libc_memalign(alignment, size);
}
}
