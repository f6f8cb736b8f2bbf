#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

namespace benchmarks {

/// Counts the bytes of PyTorch's CPU allocator that are alive, from its construction on, in all threads. What was
/// allocated before is not counted. Compiled code allocates its buffers and results there too; scratch memory that
/// oneDNN and MKL keep for themselves is not seen, neither in eager code nor in compiled code.
class Peak {
 public:
  Peak() : counter_(std::make_shared<Counter>()), guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {
    // Lets the allocator keep its books for all threads; its reports come for the calling thread, and for those that
    // autograd starts on its behalf.
    FLAGS_caffe2_report_cpu_memory_usage = true;
  }
  ~Peak() { FLAGS_caffe2_report_cpu_memory_usage = false; }
  Peak(const Peak&) = delete;
  Peak& operator=(const Peak&) = delete;

  /// The most bytes that were alive at once while `work` ran.
  template <class Work>
  int64_t of(const Work& work) {
    c10::GetCPUAllocator()->allocate(1);  // its report also has what other threads freed since the last one
    counter_->peak = counter_->alive;
    work();
    return counter_->peak;
  }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* /*memory*/, int64_t /*bytes*/, size_t total, size_t /*reserved*/,
                           c10::Device device) override {
      if (!device.is_cpu()) return;
      alive = static_cast<int64_t>(total);
      peak = std::max(peak, alive);
    }
    bool memoryProfilingEnabled() const override { return true; }

    int64_t alive = 0;
    int64_t peak = 0;
  };

  std::shared_ptr<Counter> counter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace benchmarks
