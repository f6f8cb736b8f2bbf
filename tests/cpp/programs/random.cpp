// Random programs, eager against compiled. TORCHCC_RANDOM_PROGRAMS of them, from TORCHCC_RANDOM_SEED on.
#include <cstdlib>

#include "dag.h"
#include "harness.h"

using namespace programs;

namespace {

// One compilation costs far more than the work on one small program, so many are compiled as one function.
constexpr size_t kBundle = 25;

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

using Bundle = std::vector<std::shared_ptr<const Dag>>;
using Inputs = std::vector<std::vector<Tensor>>;

std::vector<std::vector<Tensor>> run(const Bundle& bundle, const Inputs& inputs) {
  std::vector<std::vector<Tensor>> results;
  for (size_t i = 0; i < bundle.size(); ++i) results.push_back(bundle[i]->run(inputs[i]));
  return results;
}

Inputs make_inputs(const Bundle& bundle, uint64_t seed) {
  torch::manual_seed(seed);
  Inputs inputs;
  for (const auto& dag : bundle) inputs.push_back(dag->inputs());
  return inputs;
}

/// What is wrong with the results and inputs of one program; empty when nothing is.
std::string differences(const Dag& dag, const char* what, const std::vector<Tensor>& got,
                        const std::vector<Tensor>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool is_double = expected[i].scalar_type() == at::kDouble;
    const std::string wrong = difference(got[i], expected[i], is_double && dag.is_coarse() ? 1e6 : 10);
    if (!wrong.empty()) return std::string(what) + " " + std::to_string(i) + ": " + wrong;
  }
  return "";
}

/// Compiles and checks; gives the reason if it was not replayed.
std::string check_bundle(const Bundle& bundle) {
  Options options = plain_options();
  options.name = "random_" + std::to_string(bundle.front()->seed());
  const auto compiled = torchcc::compile([bundle](const Inputs& inputs) { return run(bundle, inputs); }, options);
  for (uint64_t call = 1; call <= 4; ++call) {
    const uint64_t seed = bundle.front()->seed() + 1000 * call;
    const Inputs arguments = make_inputs(bundle, seed), others = make_inputs(bundle, seed);
    const auto expected = run(bundle, arguments);
    const auto got = compiled(others);
    for (size_t i = 0; i < bundle.size(); ++i) {
      std::string wrong = differences(*bundle[i], "result", got[i], expected[i]);
      if (wrong.empty()) wrong = differences(*bundle[i], "input after the call", others[i], arguments[i]);
      BOOST_TEST(wrong.empty(), "call " << call << ", " << wrong << "\n" << bundle[i]->text());
    }
  }
  const torchcc::CompileStats stats = compiled.stats();
  return stats.replayed == 2 ? "" : stats.str();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(random_programs)

BOOST_AUTO_TEST_CASE(eager_and_compiled_agree) {
  const torch::NoGradGuard no_grad;
  const uint64_t first = setting("TORCHCC_RANDOM_SEED", 1), programs = setting("TORCHCC_RANDOM_PROGRAMS", kBundle);
  bool is_searched = false;
  for (uint64_t begin = first; begin < first + programs; begin += kBundle) {
    Bundle bundle;
    for (uint64_t seed = begin; seed < std::min(begin + kBundle, first + programs); ++seed) {
      bundle.push_back(std::make_shared<const Dag>(seed));
    }
    const std::string reason = check_bundle(bundle);
    if (reason.empty()) continue;
    BOOST_TEST(false, "programs " << begin << " to " << begin + bundle.size() - 1 << " were not replayed: " << reason);
    // Which of them? Only for the first bundle that fails: it takes a compilation for each.
    if (std::exchange(is_searched, true) || bundle.size() == 1) continue;
    for (const auto& dag : bundle) {
      const std::string alone = check_bundle({dag});
      BOOST_TEST(alone.empty(), dag->text() << "\nnot replayed: " << alone);
    }
  }
}

BOOST_AUTO_TEST_SUITE_END()
