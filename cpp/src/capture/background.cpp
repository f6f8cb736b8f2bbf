#include "background.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "compiler.h"

namespace torchcc::detail {
namespace {

class Background {
 public:
  Background() { prepare_compiler(); }  // so that it outlives this
  ~Background() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      jobs_.clear();
    }
    stop_compiler();
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  void add(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    changed_.notify_all();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ends_ || !jobs_.empty(); });
      if (ends_) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;
  std::thread thread_;
  bool ends_ = false;
};

}  // namespace

void run_in_background(std::function<void()> job) {
  static Background background;
  background.add(std::move(job));
}

}  // namespace torchcc::detail
