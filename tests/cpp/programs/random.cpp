// Random programs, eager against compiled. TORCHCC_RANDOM_PROGRAMS of them, from TORCHCC_RANDOM_SEED on.
#include <cstdlib>

#include <ATen/CPUGeneratorImpl.h>

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

/// Gradients of random combinations of the results, per input that requires grad.
std::vector<Tensor> gradients(const std::vector<Tensor>& results, const std::vector<Tensor>& inputs, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  std::vector<Tensor> roots, tangents, leaves;
  for (const Tensor& one : results) {
    if (!one.requires_grad()) continue;
    roots.push_back(one);
    tangents.push_back(at::randn(one.sizes(), generator, one.options().requires_grad(false)));
  }
  for (const Tensor& one : inputs) {
    if (one.requires_grad()) leaves.push_back(one);
  }
  if (roots.empty() || leaves.empty()) return {};
  return torch::autograd::grad(roots, leaves, tangents, false, false, /*allow_unused=*/true);
}

/// Runs programs on copies of their inputs, since they write into these.
std::vector<std::vector<Tensor>> run_on_copies(const Bundle& bundle, const Inputs& inputs) {
  Inputs copies;
  for (const auto& of_one : inputs) {
    copies.emplace_back();
    for (const Tensor& one : of_one) copies.back().push_back(one.clone());
  }
  return run(bundle, copies);
}

Inputs make_leaves(const Bundle& bundle, uint64_t seed) {
  Inputs inputs = make_inputs(bundle, seed);
  for (auto& of_one : inputs) {
    for (Tensor& one : of_one) one.set_requires_grad(one.is_floating_point() || one.is_complex());
  }
  return inputs;
}

/// Some programs write into what autograd has saved.
bool is_differentiable(const std::shared_ptr<const Dag>& dag) {
  try {
    const Inputs inputs = make_leaves({dag}, dag->seed());
    gradients(run_on_copies({dag}, inputs)[0], inputs[0], 0);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

/// As check_bundle(), for programs whose inputs require grad.
std::string check_trained(const Bundle& all) {
  Bundle bundle;
  std::copy_if(all.begin(), all.end(), std::back_inserter(bundle), is_differentiable);
  if (all.size() > 5) BOOST_TEST(bundle.size() * 2 > all.size(), "only " << bundle.size() << " can be differentiated");
  if (bundle.empty()) return "";
  Options options = plain_options();
  options.name = "trained_" + std::to_string(bundle.front()->seed());
  const auto function = [bundle](const Inputs& inputs) { return run_on_copies(bundle, inputs); };
  const auto compiled = torchcc::compile(function, options);
  for (uint64_t call = 1; call <= 4; ++call) {
    const uint64_t seed = bundle.front()->seed() + 1000 * call;
    const Inputs arguments = make_leaves(bundle, seed);
    const auto expected = function(arguments);
    const auto got = compiled(arguments);
    for (size_t i = 0; i < bundle.size(); ++i) {
      std::string wrong = differences(*bundle[i], "result", got[i], expected[i]);
      if (wrong.empty()) {
        wrong = differences(*bundle[i], "gradient", gradients(got[i], arguments[i], seed),
                            gradients(expected[i], arguments[i], seed));
      }
      BOOST_TEST(wrong.empty(), "call " << call << ", " << wrong << "\n" << bundle[i]->text());
    }
  }
  const torchcc::CompileStats stats = compiled.stats();
  return stats.replayed == 2 ? "" : stats.str();
}

/// Runs `check` on random programs, many of them as one function.
template <class Check>
void check_all(const Check& check) {
  const uint64_t first = setting("TORCHCC_RANDOM_SEED", 1), programs = setting("TORCHCC_RANDOM_PROGRAMS", kBundle);
  bool is_searched = false;
  for (uint64_t begin = first; begin < first + programs; begin += kBundle) {
    Bundle bundle;
    for (uint64_t seed = begin; seed < std::min(begin + kBundle, first + programs); ++seed) {
      bundle.push_back(std::make_shared<const Dag>(seed));
    }
    const std::string reason = check(bundle);
    if (reason.empty()) continue;
    BOOST_TEST(false, "programs " << begin << " to " << begin + bundle.size() - 1 << " were not replayed: " << reason);
    // Which of them? Only for the first bundle that fails: it takes a compilation for each.
    if (std::exchange(is_searched, true) || bundle.size() == 1) continue;
    for (const auto& dag : bundle) {
      const std::string alone = check({dag});
      BOOST_TEST(alone.empty(), dag->text() << "\nnot replayed: " << alone);
    }
  }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(random_programs)

BOOST_AUTO_TEST_CASE(eager_and_compiled_agree) {
  const torch::NoGradGuard no_grad;
  check_all(check_bundle);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(random_training)

BOOST_AUTO_TEST_CASE(eager_and_compiled_gradients_agree) { check_all(check_trained); }

BOOST_AUTO_TEST_SUITE_END()
