// In place of graph_capture.cpp and device_memory.cpp, where LibTorch has no CUDA, or CUDA's headers are missing.
#include <torchcc/error.h>

#include "device_memory.h"
#include "graph_capture.h"
#include "graphs.h"

namespace torchcc::detail {

std::string why_no_graphs() {
  return "torchcc was built without CUDA graphs: CMake found no LibTorch with CUDA, or no headers of CUDA";
}

class Lane {};

std::shared_ptr<Lane> current_lane(c10::Device) { throw Error(why_no_graphs()); }

std::unique_ptr<Recorded> Recorded::record(std::shared_ptr<Lane>, bool, bool, const std::function<void()>&) {
  throw Error(why_no_graphs());
}

int64_t memory_failures() { return 0; }

}  // namespace torchcc::detail
