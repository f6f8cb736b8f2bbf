// Threads of a test.
#pragma once

#include <ATen/Parallel.h>

#include <barrier>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <boost/test/unit_test.hpp>

namespace test {

/// Ends a thread of run_together() unless all is right there: Boost.Test's checks are not safe from many threads.
inline void require(bool condition, std::string_view wrong) {
  if (!condition) throw std::runtime_error(std::string(wrong));
}

/// Runs `body(index)` in threads that start at the same moment, and checks that none of them throws.
inline void run_together(int count, const std::function<void(int)>& body) {
  std::mutex mutex;
  int failures = 0;
  std::string first;
  std::barrier start(count);
  std::vector<std::thread> threads;
  for (int index = 0; index < count; ++index) {
    threads.emplace_back([&, index] {
      at::set_num_threads(1);
      start.arrive_and_wait();
      try {
        body(index);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (failures++ == 0) first = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BOOST_TEST(failures == 0, failures << " threads failed, one with: " << first);
}

}  // namespace test
