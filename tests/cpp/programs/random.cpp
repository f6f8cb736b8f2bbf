// Random programs, eager against compiled. TORCHCC_RANDOM_PROGRAMS of them, from TORCHCC_RANDOM_SEED on.
#include <cstdlib>
#include <random>
#include <sstream>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Dispatch.h>
#include <ATen/MemoryOverlap.h>

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

std::vector<Tensor> copies_of(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> copies;
  for (const Tensor& one : tensors) copies.push_back(one.clone());
  return copies;
}

/// Runs programs on copies of their inputs, since they write into these.
std::vector<std::vector<Tensor>> run_on_copies(const Bundle& bundle, const Inputs& inputs) {
  Inputs copies;
  for (const auto& of_one : inputs) copies.push_back(copies_of(of_one));
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
std::string check_trained_bundle(const Bundle& all) {
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

/// A random program that now and then reads a value, branches on it, or writes into memory by pointer.
std::vector<Tensor> run_with_reads(const Dag& dag, std::vector<Tensor> values) {
  std::mt19937_64 random(dag.seed());
  const auto is_chosen = [&](double share) { return std::uniform_real_distribution<double>()(random) < share; };
  std::vector<Tensor> read;
  std::vector<Tensor> results = dag.run(std::move(values), [&](Tensor& value) {
    const bool reads = is_chosen(0.12), branches = is_chosen(0.12), writes = is_chosen(0.12), prints = is_chosen(0.03);
    if (value.numel() == 0 || !value.is_floating_point()) return;
    if (reads) read.push_back(torch::full({}, value.sum().item<double>(), at::kDouble));
    if (branches && value.mean().item<double>() > 0) value = value * 0.5 + 0.1;
    if (prints) {
      std::ostringstream text;
      text << value;
      read.push_back(torch::full({}, static_cast<double>(text.str().size()), at::kDouble));
    }
    if (writes && at::has_internal_overlap(value) == at::MemOverlap::No) {
      torchcc::materialize(value);
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "write",
                                      [&] { *value.data_ptr<scalar_t>() = 0.25; });
    }
  });
  results.insert(results.end(), read.begin(), read.end());
  return results;
}

/// Calls a program with reads lazily and eagerly; results have to be the same bits where no compiled code ran.
void check_reads(const std::shared_ptr<const Dag>& dag, bool has_compiler) {
  Options options = plain_options();
  options.mode = torchcc::CompileMode::lazy;
  options.name = "reads_" + std::to_string(dag->seed());
  const auto function = [dag](const std::vector<Tensor>& inputs) { return run_with_reads(*dag, inputs); };
  const auto compiled = torchcc::compile(function, options);
  for (uint64_t call = 1; call <= (has_compiler ? 5 : 3); ++call) {
    const uint64_t seed = dag->seed() + 1000 * call;
    const Bundle bundle{dag};
    const auto arguments = make_inputs(bundle, seed)[0], others = make_inputs(bundle, seed)[0];
    const auto expected = function(arguments);
    const auto got = compiled(others);
    BOOST_TEST_REQUIRE(got.size() == expected.size());
    if (has_compiler) {
      BOOST_TEST(differences(*dag, "result", got, expected) == "", dag->text());
      BOOST_TEST(differences(*dag, "input after the call", others, arguments) == "", dag->text());
      continue;
    }
    for (size_t i = 0; i < got.size(); ++i) {
      BOOST_TEST(at::allclose(got[i], expected[i], 0, 0, /*equal_nan=*/true), "result " << i << "\n" << dag->text());
    }
    for (size_t i = 0; i < others.size(); ++i) {
      BOOST_TEST(at::allclose(others[i], arguments[i], 0, 0, /*equal_nan=*/true), "input " << i << "\n" << dag->text());
    }
  }
}

/// Gradients through a program of which parts run with grad mode off. False if eager code cannot differentiate it.
bool check_parts_without_grad(const std::shared_ptr<const Dag>& dag, torchcc::CompileMode mode) {
  const auto function = [dag](const std::vector<Tensor>& inputs) {
    return dag->run_partly_without_grad(copies_of(inputs));
  };
  Options options = plain_options();
  options.mode = mode;
  options.name = "parts_" + std::to_string(dag->seed());
  const auto compiled = torchcc::compile(function, options);
  for (uint64_t call = 1; call <= 4; ++call) {
    const uint64_t seed = dag->seed() + 1000 * call;
    const auto inputs = make_leaves({dag}, seed)[0];
    std::vector<Tensor> expected, expected_gradients;
    try {
      expected = function(inputs);
      expected_gradients = gradients(expected, inputs, seed);
    } catch (const c10::Error&) {  // it writes into what autograd has saved, or into a view made with grad mode off
      return false;
    }
    const auto got = compiled(inputs);
    for (size_t i = 0; i < got.size(); ++i) {
      BOOST_TEST(got[i].requires_grad() == expected[i].requires_grad(), "result " << i << "\n" << dag->text());
    }
    BOOST_TEST(differences(*dag, "result", got, expected) == "", dag->text());
    BOOST_TEST(differences(*dag, "gradient", gradients(got, inputs, seed), expected_gradients) == "", dag->text());
  }
  return true;
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

BOOST_AUTO_TEST_CASE(eager_and_compiled_gradients_agree) { check_all(check_trained_bundle); }

// Most of them without a compiler: everything then runs by eager kernels, in lazy mode's order.
BOOST_AUTO_TEST_CASE(parts_without_grad) {
  const uint64_t first = setting("TORCHCC_RANDOM_SEED", 1), programs = setting("TORCHCC_RANDOM_PROGRAMS", kBundle);
  setenv("TORCHCC_COMPILER", "off", 1);
  uint64_t checked = 0;
  for (uint64_t i = 0; i < 10 * programs; ++i) {
    checked += check_parts_without_grad(std::make_shared<const Dag>(first + i), torchcc::CompileMode::lazy) ? 1 : 0;
  }
  BOOST_TEST(2 * checked > 10 * programs, "only " << checked << " can be differentiated");
  unsetenv("TORCHCC_COMPILER");
  for (uint64_t i = 0; i < std::max<uint64_t>(1, programs / 10); ++i) {
    check_parts_without_grad(std::make_shared<const Dag>(first + i), torchcc::CompileMode::automatic);
  }
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(random_reads)

// Without a compiler everything runs by eager kernels, in lazy mode's order.
BOOST_AUTO_TEST_CASE(eager_kernels_give_the_same_bits) {
  const torch::NoGradGuard no_grad;
  setenv("TORCHCC_COMPILER", "off", 1);
  const uint64_t first = setting("TORCHCC_RANDOM_SEED", 1), programs = setting("TORCHCC_RANDOM_PROGRAMS", kBundle);
  for (uint64_t seed = first; seed < first + programs; ++seed) check_reads(std::make_shared<const Dag>(seed), false);
  unsetenv("TORCHCC_COMPILER");
}

BOOST_AUTO_TEST_CASE(compiled_segments_agree) {
  const torch::NoGradGuard no_grad;
  const uint64_t first = setting("TORCHCC_RANDOM_SEED", 1), programs = setting("TORCHCC_RANDOM_PROGRAMS", kBundle);
  for (uint64_t i = 0; i < std::max<uint64_t>(1, programs / 300); ++i)
    check_reads(std::make_shared<const Dag>(first + i), true);
}

BOOST_AUTO_TEST_SUITE_END()
