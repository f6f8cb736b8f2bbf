// Streams and threads.
#include <atomic>
#include <chrono>
#include <iostream>
#include <thread>

#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAGraph.h>

#include "gpu.h"

namespace {

using test::close;
using test::expected;
using test::packaged;
using test::random;

using Clock = std::chrono::steady_clock;

/// Seconds that so many threads take for their calls, each on a stream of its own.
double seconds(const torchcc::Function& f, int threads, int calls) {
  std::vector<std::thread> running;
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&] {
      const at::NoGradGuard no_grad;
      const c10::StreamGuard guard(test::new_stream());
      const at::Tensor x = random({64, 64});
      for (int call = 0; call < calls; ++call) f(x);
    });
  }
  for (std::thread& thread : running) thread.join();
  test::synchronize();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Calls a function in threads at once, each on a stream of its own, with inputs of `rows(thread, call)` rows.
template <class Rows>
void call_together(const torchcc::Function& f, int threads, int calls, const Rows& rows) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      const at::NoGradGuard no_grad;
      const c10::StreamGuard guard(test::new_stream());
      for (int call = 0; call < calls; ++call) {
        const at::Tensor x = random({rows(i, call), 128});
        if (!at::allclose(f(x), expected(f, x), 1e-4, 1e-4)) ++wrong;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  BOOST_TEST(wrong == 0);
}

/// Records calls in a graph of the program's own.
void capture_calls(bool graphs) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = graphs})["forward"];
  const at::Tensor x = random({8, 128});
  const at::Tensor other = random({9, 128});
  test::synchronize();
  at::cuda::CUDAGraph graph;
  at::Tensor y;
  at::Tensor z;
  {
    const c10::StreamGuard guard(test::new_stream());
    for (int i = 0; i < 5; ++i) f(x);      // has a graph already, where there are any
    for (int i = 0; i < 2; ++i) f(other);  // would get one now
    graph.capture_begin();
    y = f(x);
    z = f(other);
    graph.capture_end();
  }
  for (int i = 0; i < 3; ++i) {
    x.copy_(random({8, 128}));
    other.copy_(random({9, 128}));
    graph.replay();
    BOOST_TEST(close(y, expected(f, x)));
    BOOST_TEST(close(z, expected(f, other)));
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(streams)

BOOST_AUTO_TEST_CASE(calls_run_on_the_current_stream) {
  const at::NoGradGuard no_grad;
  for (const bool graphs : {false, true}) {
    const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = graphs})["forward"];
    for (int i = 0; i < 8; ++i) {
      const c10::StreamGuard guard(test::new_stream());
      // Much work before and after the call: on another stream, the call would read and give something else.
      at::Tensor x = random({512, 128});
      for (int step = 0; step < 50; ++step) x = at::tanh(at::matmul(x, x.t().narrow(1, 0, 128)));
      BOOST_TEST(close(f(x), expected(f, x)));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_graph_of_the_programs_own) { capture_calls(false); }

BOOST_AUTO_TEST_CASE(a_graph_of_the_programs_own_around_others) { capture_calls(true); }

BOOST_AUTO_TEST_CASE(threads_with_streams_of_their_own) {
  for (const bool graphs : {false, true}) {
    const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = graphs})["forward"];
    call_together(f, 4, 200, [](int thread, int call) { return 2 + (call + thread) % 5; });
  }
}

// With more sizes than are kept, so that graphs are recorded in some threads while others destroy theirs.
BOOST_AUTO_TEST_CASE(threads_that_record_and_forget) {
  const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = true})["forward"];
  const auto before = f.stats().graph_captures;
  call_together(f, 8, 900, [](int thread, int call) { return 2 + (call / 3 + thread) % 30; });
  BOOST_TEST(f.stats().graph_captures - before >= 500);
}

BOOST_AUTO_TEST_CASE(threads_on_one_stream) {
  const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = true})["forward"];
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const at::NoGradGuard no_grad;
      const at::Tensor x = random({8, 128});
      for (int call = 0; call < 200; ++call) {
        if (!at::allclose(f(x), expected(f, x), 1e-4, 1e-4)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BOOST_TEST(wrong == 0);
}

BOOST_AUTO_TEST_CASE(two_streams_overlap) {
  for (const bool graphs : {false, true}) {
    const torchcc::Function f = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = graphs})["chain"];
    seconds(f, 2, 20);
    const double one = seconds(f, 1, 500);
    const double two = seconds(f, 2, 500);
    std::cout << (graphs ? "graphs" : "launches") << ": two threads with twice the work take " << two / one
              << " of the time of one\n";
    if (graphs) BOOST_TEST(two / one < 1.5);
  }
}

BOOST_AUTO_TEST_SUITE_END()
