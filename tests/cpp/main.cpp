// The one file with Boost.Test's own code and the program's main().
#define BOOST_TEST_MODULE torchcc runtime
#include <boost/test/included/unit_test.hpp>

#include "support.h"

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
