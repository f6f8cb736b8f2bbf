// Boost.Test's own code and main(), for all programs with tests.
#define BOOST_TEST_MODULE torchcc
#include <boost/test/included/unit_test.hpp>

#include <ATen/Context.h>
#include <ATen/Parallel.h>

namespace {

struct Setup {
  Setup() {
    at::manual_seed(20240607);
    at::set_num_threads(1);
  }
};

}  // namespace

BOOST_TEST_GLOBAL_FIXTURE(Setup);
