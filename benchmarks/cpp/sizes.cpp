// What code for many sizes costs beside code for one. Prints raw measurements as JSON; benchmarks/sizes.py makes cases
// of them.
//   sizes ROUNDS CALLS ENCODER_ROUNDS

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>

#include <ATen/Parallel.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "layer.h"
#include "rounds.h"

namespace {

using nlohmann::json;

at::Tensor four(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& d) {
  return (a + b) * c - d;
}

torchcc::CompileOptions make_options(const char* name, bool is_sized) {
  torchcc::CompileOptions options;
  options.name = name;
  options.freeze = false;
  options.allow_slower = true;
  options.automatic_dynamic_shapes = is_sized;
  return options;
}

/// Throws unless a call runs compiled code.
template <class Compiled, class Call>
void require_replay(const Compiled& compiled, const Call& call) {
  const int64_t before = compiled.stats().replayed;
  call();
  if (compiled.stats().replayed != before + 1) throw std::runtime_error("not compiled:\n" + compiled.stats().str());
}

template <class Call>
benchmarks::Contender repeat(const char* name, Call call) {
  return {name, [call](size_t count) {
            for (size_t i = 0; i < count; ++i) call();
          }};
}

/// A call of a function of four tensors with so many rows.
template <class Compiled>
auto call_of(const Compiled& function, int64_t rows) {
  const auto make = [rows] { return torch::randn({rows, 4}); };
  return [&function, a = make(), b = make(), c = make(), d = make()] { function(a, b, c, d); };
}

/// Nanoseconds a call, by the number of rows.
json measure_calls(size_t rounds, size_t calls) {
  const auto fixed = torchcc::compile(four, make_options("fixed", false));
  const auto seen = torchcc::compile(four, make_options("seen", true));
  torchcc::CompileOptions options = make_options("promised", true);
  for (int64_t i = 0; i < 4; ++i) options.dynamic.push_back({i, 0, "rows", 2, 4096});
  const auto promised = torchcc::compile(four, options);
  for (const int64_t rows : {12, 20}) call_of(seen, rows)();
  for (const int64_t rows : {12, 20}) call_of(promised, rows)();
  json measured;
  for (const int64_t rows : {16, 2304}) {
    const auto call_fixed = call_of(fixed, rows);
    const auto call_seen = call_of(seen, rows);
    const auto call_promised = call_of(promised, rows);
    for (int i = 0; i < 2; ++i) call_fixed();
    call_seen();
    require_replay(fixed, call_fixed);
    require_replay(seen, call_seen);
    require_replay(promised, call_promised);
    measured[std::to_string(rows)] = benchmarks::measure(
        {repeat("fixed", call_fixed), repeat("seen", call_seen), repeat("promised", call_promised)}, rounds, calls);
  }
  return measured;
}

/// Nanoseconds a call of the encoder of benchmarks/models.py at batch 8, sequence 128.
json measure_encoder(size_t rounds) {
  torch::nn::ModuleList layers;
  for (int i = 0; i < 6; ++i) layers->push_back(benchmarks::Layer());
  torch::nn::LayerNorm norm(torch::nn::LayerNormOptions({256}));
  const auto forward = [layers, norm](at::Tensor x) mutable {
    for (const auto& layer : *layers) x = layer->as<benchmarks::Layer>()->forward(x);
    return norm->forward(x);
  };
  const auto fixed = torchcc::compile(forward, make_options("encoder_fixed", false));
  torchcc::CompileOptions options = make_options("encoder_sized", true);
  options.dynamic = {{0, 0, "batch", 2, 64}, {0, 1, "sequence", 2, 512}};
  const auto sized = torchcc::compile(forward, options);
  const at::Tensor x = torch::randn({8, 128, 256});
  for (int i = 0; i < 2; ++i) fixed(x);
  sized(torch::randn({4, 64, 256}));
  sized(torch::randn({6, 96, 256}));
  require_replay(fixed, [&] { fixed(x); });
  require_replay(sized, [&] { sized(x); });
  if (!at::allclose(sized(x), fixed(x), 1e-4, 1e-5)) throw std::runtime_error("wrong results");
  return benchmarks::measure({repeat("fixed", [&] { fixed(x); }), repeat("sized", [&] { sized(x); })}, rounds, 1);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: sizes ROUNDS CALLS ENCODER_ROUNDS");
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  const json result{{"calls", measure_calls(std::stoul(arguments[1]), std::stoul(arguments[2]))},
                    {"encoder", measure_encoder(std::stoul(arguments[3]))}};
  std::cout << result.dump() << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
