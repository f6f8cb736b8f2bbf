// The one file with Boost.Test's own code and the program's main().
#define BOOST_TEST_MODULE programs
#include <boost/test/included/unit_test.hpp>

#include <ATen/Parallel.h>

namespace {

struct Setup {
  Setup() { at::set_num_threads(1); }
};

}  // namespace

BOOST_TEST_GLOBAL_FIXTURE(Setup);
