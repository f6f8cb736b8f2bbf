// The only file that needs CUDA's headers. It calls nothing of CUDA's runtime library itself, which programs need not
// link.
#include "graph_capture.h"

#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include "device.h"
#include "graphs.h"

namespace torchcc::detail {

std::string why_no_graphs() { return ""; }

class Lane {
 public:
  explicit Lane(c10::Device device) : stream(c10::cuda::getStreamFromPool(false, device.index())) {}

  const c10::cuda::CUDAStream stream;
  std::mutex mutex;  ///< for what follows
  /// The allocator forgets a pool with its last graph, and its number must not be used again then.
  std::optional<at::cuda::MempoolId_t> pool;
  int64_t graphs = 0;
};

namespace {

class CudaGraph final : public Recorded {
 public:
  explicit CudaGraph(std::shared_ptr<Lane> lane) : lane_(std::move(lane)) {}
  ~CudaGraph() override {
    const std::lock_guard lock(lane_->mutex);
    graph_.reset();
    if (counted_ && --lane_->graphs == 0) lane_->pool.reset();
  }

  void record(const std::function<void()>& body) {
    const std::lock_guard lock(lane_->mutex);
    if (!lane_->pool) lane_->pool = at::cuda::graph_pool_handle();
    ++lane_->graphs;
    counted_ = true;
    const c10::StreamGuard guard(lane_->stream.unwrap());
    // Other threads may go on to allocate memory.
    graph_->capture_begin(*lane_->pool, cudaStreamCaptureModeThreadLocal);
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
      c10::cuda::CUDACachingAllocator::endAllocateToPool(device, *lane_->pool);
    } catch (...) {  // it was done before the error
    }
    c10::cuda::CUDACachingAllocator::releasePool(device, *lane_->pool);
  }

  std::shared_ptr<Lane> lane_;
  std::optional<at::cuda::CUDAGraph> graph_{std::in_place};
  bool counted_ = false;
};

}  // namespace

std::shared_ptr<Lane> current_lane(c10::Device device) {
  using Key = std::tuple<c10::DeviceIndex, int64_t, std::thread::id>;
  static std::mutex mutex;
  static auto& lanes = *new std::map<Key, std::weak_ptr<Lane>>;  // functions may be called at the end of the process
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

std::unique_ptr<Recorded> Recorded::record(std::shared_ptr<Lane> lane, const std::function<void()>& body) {
  auto graph = std::make_unique<CudaGraph>(std::move(lane));
  graph->record(body);
  return graph;
}

}  // namespace torchcc::detail
