#pragma once

#include <cstddef>
#include <new>

namespace torchcc::detail {

/// Objects of a class that come and go with every operator. Memory that the thread's last ones had is at hand sooner
/// than the heap's. Safe from any thread; memory of an object that ends in another thread goes to that thread.
template <class Base>
class Pooled final : public Base {
 public:
  using Base::Base;

  static void* operator new(size_t size) {
    Pool& pool = pool_;
    if (pool.count > 0) return pool.free[--pool.count];
    thread_local const Closer closer;
    return ::operator new(size);
  }
  static void operator delete(void* memory) {
    Pool& pool = pool_;
    if (pool.count == kMost || pool.is_closed) {
      ::operator delete(memory);
    } else {
      pool.free[pool.count++] = memory;
    }
  }

 private:
  static constexpr size_t kMost = 32;
  struct Pool {
    void* free[kMost];
    size_t count;
    bool is_closed;  ///< the thread ends: the heap takes what comes now
  };
  struct Closer {
    ~Closer() {
      pool_.is_closed = true;
      while (pool_.count > 0) ::operator delete(pool_.free[--pool_.count]);
    }
  };
  static inline constinit thread_local Pool pool_{};
};

}  // namespace torchcc::detail
