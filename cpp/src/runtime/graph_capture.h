#pragma once

#include <functional>
#include <memory>
#include <string>

#include <c10/core/Device.h>

namespace torchcc::detail {

/// What the graphs of one thread and stream have in common: the memory of what they need while they run, since they
/// never run at the same time, and the stream on which they are recorded.
class Lane;

/// The lane of the calling thread and the device's current stream; all functions of the process share it.
std::shared_ptr<Lane> current_lane(c10::Device device);

/// A CUDA graph.
class Recorded {
 public:
  /// Runs `body` while CUDA records what it launches on the current stream, in place of doing it. Throws what `body`
  /// throws, and c10::Error when CUDA refuses; the lane is then as before. With `is_random`, it draws random numbers;
  /// no other thread may do so on this GPU meanwhile. Without, others wait for the end if they want to. With
  /// `is_apart`, its memory is its own: what `body` leaves there stays until its next launch.
  static std::unique_ptr<Recorded> record(std::shared_ptr<Lane> lane, bool is_random, bool is_apart,
                                          const std::function<void()>& body);

  virtual ~Recorded() = default;
  /// Launches the graph on the device's current stream.
  virtual void replay() = 0;
};

}  // namespace torchcc::detail
