// Needs CUDA's headers. It calls nothing of CUDA's runtime library itself, which programs need not link.
#include "graph_capture.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <vector>

#include <ATen/Context.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include "device.h"
#include "graphs.h"

namespace torchcc::detail {

std::string why_no_graphs() { return ""; }

namespace {

/// Streams to record on. Not PyTorch's own ones, of which there are 32: the program may use the same one in another
/// thread meanwhile. They are used again, and never destroyed, since PyTorch's libraries keep memory for each.
class Streams {
 public:
  static c10::cuda::CUDAStream take(c10::Device device) {
    const std::lock_guard lock(mutex());
    std::vector<c10::cuda::CUDAStream>& free = unused();
    const auto found = std::find_if(free.begin(), free.end(), [&](const auto& one) { return one.device() == device; });
    if (found == free.end()) {
      return c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(make_stream(device)), device.index());
    }
    const c10::cuda::CUDAStream stream = *found;
    free.erase(found);
    return stream;
  }
  static void give_back(c10::cuda::CUDAStream stream) {
    const std::lock_guard lock(mutex());
    unused().push_back(stream);
  }

 private:
  // Both outlive everything, as functions may end with the process.
  static std::mutex& mutex() {
    static auto& made = *new std::mutex;
    return made;
  }
  static std::vector<c10::cuda::CUDAStream>& unused() {
    static auto& made = *new std::vector<c10::cuda::CUDAStream>;
    return made;
  }
};

}  // namespace

class Lane {
 public:
  explicit Lane(c10::Device device) : stream(Streams::take(device)) {}
  ~Lane() { Streams::give_back(stream); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  const c10::cuda::CUDAStream stream;
  std::mutex mutex;  ///< for what follows
  /// The allocator forgets a pool with its last graph, and its number must not be used again then.
  std::optional<at::cuda::MempoolId_t> pool;
  int64_t graphs = 0;
};

namespace {

/// PyTorch's generator knows the graphs that are there by a set without a lock (torch 2.11), which each of them enters
/// as its recording begins, and leaves when it is destroyed.
std::mutex& known_graphs_mutex() {
  static auto& made = *new std::mutex;  // as above
  return made;
}

class CudaGraph final : public Recorded {
 public:
  explicit CudaGraph(std::shared_ptr<Lane> lane) : lane_(std::move(lane)) {}
  ~CudaGraph() override {
    const std::lock_guard lock(lane_->mutex);
    {
      const std::lock_guard leaving(known_graphs_mutex());
      graph_.reset();
    }
    if (counted_ && --lane_->graphs == 0) lane_->pool.reset();
  }

  void record(bool is_random, bool is_apart, const std::function<void()>& body) {
    const std::lock_guard lock(lane_->mutex);
    // PyTorch's generator is told that a graph is recorded, and then refuses to draw for other threads (torch 2.11):
    // they have to wait. Code that draws itself would wait for ever.
    at::Generator generator = at::globalContext().defaultGenerator(lane_->stream.device());
    std::unique_lock<std::mutex> drawing(generator.mutex(), std::defer_lock);
    if (!is_random) drawing.lock();
    if (is_apart) {
      pool_ = at::cuda::graph_pool_handle();
    } else {
      if (!lane_->pool) lane_->pool = at::cuda::graph_pool_handle();
      pool_ = *lane_->pool;
      ++lane_->graphs;
      counted_ = true;
    }
    const c10::StreamGuard guard(lane_->stream.unwrap());
    {
      const std::lock_guard entering(known_graphs_mutex());
      // Other threads may go on to allocate memory.
      graph_->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    }
    std::exception_ptr failure;
    try {
      body();
    } catch (...) {
      failure = std::current_exception();
    }
    try {
      graph_->capture_end();
    } catch (...) {
      clean_up();
      if (failure == nullptr) failure = std::current_exception();
    }
    if (failure != nullptr) std::rethrow_exception(failure);
  }

  void replay() override { graph_->replay(); }

 private:
  /// Does what capture_end() leaves out when CUDA refuses to end a recording.
  void clean_up() {
    try {
      graph_->pool();
      return;  // it got as far as that, and its destructor does the rest
    } catch (...) {
    }
    const c10::DeviceIndex device = lane_->stream.device_index();
    try {
      c10::cuda::CUDACachingAllocator::endAllocateToPool(device, pool_);
    } catch (...) {  // it was done before the error
    }
    c10::cuda::CUDACachingAllocator::releasePool(device, pool_);
  }

  std::shared_ptr<Lane> lane_;
  std::optional<at::cuda::CUDAGraph> graph_{std::in_place};
  at::cuda::MempoolId_t pool_{};
  bool counted_ = false;  ///< among those that use the lane's pool
};

}  // namespace

std::shared_ptr<Lane> current_lane(c10::Device device) {
  using Key = std::tuple<c10::DeviceIndex, int64_t, std::thread::id>;
  static auto& mutex = *new std::mutex;  // both outlive everything, as above
  static auto& lanes = *new std::map<Key, std::weak_ptr<Lane>>;
  const std::lock_guard lock(mutex);
  std::weak_ptr<Lane>& known = lanes[{device.index(), current_stream_id(device), std::this_thread::get_id()}];
  std::shared_ptr<Lane> lane = known.lock();
  if (lane == nullptr) {
    lane = std::make_shared<Lane>(device);
    known = lane;
    std::erase_if(lanes, [](const auto& entry) { return entry.second.expired(); });
  }
  return lane;
}

std::unique_ptr<Recorded> Recorded::record(std::shared_ptr<Lane> lane, bool is_random, bool is_apart,
                                           const std::function<void()>& body) {
  auto graph = std::make_unique<CudaGraph>(std::move(lane));
  graph->record(is_random, is_apart, body);
  return graph;
}

}  // namespace torchcc::detail
