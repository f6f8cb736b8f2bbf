// Exports functions written in C++, loads them again, and chains them; tests/test_export_function.py runs it and opens
// the files in Python. The argument is the folder to write to.
#include <cstdlib>
#include <fstream>
#include <iostream>

#include <torch/torch.h>
#include <torchcc/compile.h>
#include <torchcc/export.h>
#include <torchcc/package.h>

namespace {

using torch::Tensor;

struct NetworkImpl : torch::nn::Module {
  NetworkImpl() {
    register_module("conv", conv);
    register_module("norm", norm);
    register_module("dropout", dropout);
    register_module("head", head);
  }
  Tensor forward(const Tensor& x) {
    Tensor y = torch::max_pool2d(torch::relu(norm(conv(x))), 2);
    return torch::log_softmax(head->forward(dropout(y.flatten(1))), 1);
  }
  torch::nn::Conv2d conv{torch::nn::Conv2dOptions(1, 6, 3).padding(1)};
  torch::nn::BatchNorm2d norm{6};
  torch::nn::Dropout dropout{0.5};
  torch::nn::Sequential head{torch::nn::Linear(6 * 16, 32), torch::nn::ReLU(), torch::nn::Linear(32, 10)};
};
TORCH_MODULE(Network);

void save(const std::string& file, std::vector<Tensor> tensors) {
  std::vector<c10::IValue> values(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::pickle_save(c10::ivalue::Tuple::create(std::move(values)));
  std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

Network trained() {
  torch::manual_seed(1);
  Network network;
  torch::optim::SGD optimizer(network->parameters(), 0.1);
  for (int i = 0; i < 5; ++i) {
    optimizer.zero_grad();
    torch::nll_loss(network(torch::randn({16, 1, 8, 8})), torch::randint(10, {16})).backward();
    optimizer.step();
  }
  network->eval();
  return network;
}

double difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

void export_network(const std::string& folder, Network network) {
  const Tensor example = torch::randn({4, 1, 8, 8});
  torchcc::ExportOptions options;
  options.arguments = {"image"};
  for (const char* target : {"portable", "native"}) {
    options.targets = {target};
    const std::string file = folder + "/network-" + target + ".pt2";
    torchcc::export_function(file, network, example, options);
    const torchcc::Function again = torchcc::load(file)["forward"];
    const torch::NoGradGuard no_grad;
    const Tensor x = torch::randn({4, 1, 8, 8});
    std::cout << target << " " << again.stats().backend << " " << difference(again(x), network(x)) << " "
              << again.signature().str() << "\n";
    save(folder + "/network-" + target + ".pt", {x, network(x)});
  }
}

void export_lambda(const std::string& folder) {
  torch::nn::Linear linear(8, 8);
  torch::nn::LSTM lstm(torch::nn::LSTMOptions(8, 5).batch_first(true));
  const auto function = [&](const Tensor& x, double scale) {
    auto [out, state] = lstm(linear(x) * scale);
    return std::make_tuple(out.mean(1), std::get<1>(state) + 1);
  };
  torchcc::ExportOptions options;
  options.name = "encode";
  options.targets = {"portable"};
  for (const auto& item : linear->named_parameters()) options.weights["linear." + item.key()] = item.value();
  for (const auto& item : lstm->named_parameters()) options.weights["lstm." + item.key()] = item.value();
  const std::string file = folder + "/lambda.pt2";
  torchcc::export_function(file, function, std::make_tuple(torch::randn({2, 6, 8}), 0.5), options);
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::randn({2, 6, 8});
  const std::vector<Tensor> got = torchcc::load(file)["encode"].call({x});
  const auto [mean, cell] = function(x, 0.5);
  std::cout << "lambda " << std::max(difference(got[0], mean), difference(got[1], cell)) << "\n";
  save(folder + "/lambda.pt", {x, mean, cell});
}

void export_state(const std::string& folder) {
  Tensor total = torch::zeros({3});
  const auto add = [total](const Tensor& x) mutable { return total.add_(x) * 2; };
  torchcc::ExportOptions options;
  options.targets = {"portable"};
  options.weights = {{"total", total}};
  const std::string file = folder + "/state.pt2";
  torchcc::export_function(file, add, torch::ones({3}), options);
  const torchcc::Function again = torchcc::load(file)["forward"];
  const Tensor first = again(torch::ones({3}));
  const Tensor second = again(torch::ones({3}));
  std::cout << "state " << (second - first).sum().item<double>() << "\n";
}

// A function of a package, and C++ code around it, captured as one graph.
void chain(const std::string& folder, Network network) {
  const torch::NoGradGuard no_grad;
  const torchcc::Function inner = torchcc::load(folder + "/network-native.pt2")["forward"];
  auto chained = torchcc::compile([inner](const Tensor& x) { return torch::exp(inner(x * 0.5)).cumsum(1); });
  double largest = 0;
  for (int i = 0; i < 5; ++i) {
    const Tensor x = torch::randn({4, 1, 8, 8});
    largest = std::max(largest, difference(chained(x), torch::exp(network(x * 0.5)).cumsum(1)));
  }
  const torchcc::CompileStats stats = chained.stats();
  std::cout << "chain " << largest << " replayed " << stats.replayed << " operators "
            << (stats.variants.empty() ? 0 : stats.variants.front().ops) << " " << stats.reason << "\n";
}

template <class F>
void mistake(const char* title, F make) {
  try {
    make();
    std::cout << title << ": no error\n";
  } catch (const torchcc::CaptureError& error) {
    std::cout << title << ": CaptureError " << error.what() << "\n";
  } catch (const torchcc::ArgumentError& error) {
    std::cout << title << ": ArgumentError " << error.what() << "\n";
  } catch (const torchcc::CompileError& error) {
    std::cout << title << ": CompileError " << error.what() << "\n";
  }
}

void mistakes(const std::string& folder) {
  const Tensor x = torch::randn({3});
  const std::string file = folder + "/mistake.pt2";
  // First: a compiler that runs already would serve it.
  const std::string python = std::getenv("TORCHCC_PYTHON");
  mistake("python", [&] {
    setenv("TORCHCC_PYTHON", "/nonexistent/python", 1);
    torchcc::export_function(file, [](const Tensor& y) { return y + 1; }, x);
  });
  setenv("TORCHCC_PYTHON", python.c_str(), 1);
  mistake("branch", [&] {
    torchcc::export_function(file, [](const Tensor& y) { return y.sum().item<float>() > 0 ? y + 1 : y - 1; }, x);
  });
  mistake("counter", [&] {
    int count = 0;
    torchcc::export_function(file, [&count](const Tensor& y) { return y + ++count; }, x);
  });
  mistake("argument", [&] { torchcc::export_function(file, [](const Tensor& y) { return y; }, x); });
  mistake("target", [&] {
    torchcc::ExportOptions options;
    options.targets = {"z80"};
    torchcc::export_function(file, [](const Tensor& y) { return y + 1; }, x, options);
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = arguments[2];
  if (std::string(arguments[1]) == "mistakes") {
    mistakes(folder);
    return 0;
  }
  Network network = trained();
  export_network(folder, network);
  export_lambda(folder);
  export_state(folder);
  chain(folder, network);
}
