// Embeds sentences with the encoder that export.py exported, compares the vectors with Python's, and ranks the
// sentences by how near they are to a query: `sentences <package.pt2> <batches.pt>`. Prints one measurement a line, its
// name first, then the ranking. Ends with 1 where a vector differs from Python's by more than 1e-5.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <time.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/torchcc.h>

namespace {

constexpr double kTolerance = 1e-5;

using Dict = c10::Dict<c10::IValue, c10::IValue>;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Since the process was started, so with the time that the dynamic linker took. The kernel keeps it in steps of 10 ms.
double milliseconds_since_start_of_process() {
  std::ifstream file("/proc/self/stat");
  std::string text(std::istreambuf_iterator<char>(file), {});
  // The name of the program, in parentheses, may have spaces; the start is the 20th field behind it.
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  std::string field;
  for (int i = 0; i < 20; ++i) fields >> field;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double started = std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
  return (static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 - started) * 1e3;
}

Dict read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  return torch::jit::pickle_load(bytes).toGenericDict();
}

/// Token ids as the library `tokenizers` made them, and Python's embeddings.
struct Batch {
  at::Tensor ids, mask, expected;

  explicit Batch(const Dict& tensors)
      : ids(tensors.at("input_ids").toTensor()),
        mask(tensors.at("attention_mask").toTensor()),
        expected(tensors.at("embeddings").toTensor()) {}
};

bool has(const torchcc::Package& package, const std::string& function) {
  const std::vector<std::string> names = package.names();
  return std::find(names.begin(), names.end(), function) != names.end();
}

at::Tensor embed(const torchcc::Function& encoder, const Batch& batch) {
  return encoder({{"input_ids", batch.ids}, {"attention_mask", batch.mask}})["embeddings"];
}

double median_milliseconds(const torchcc::Function& encoder, const Batch& batch, int calls) {
  std::vector<double> times;
  for (int i = 0; i < calls; ++i) {
    const auto start = Clock::now();
    embed(encoder, batch);
    times.push_back(milliseconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + calls / 2, times.end());
  return times[static_cast<size_t>(calls / 2)];
}

/// How near each sentence is to the query, the nearest first, and the positions of these sentences.
std::pair<at::Tensor, at::Tensor> rank(const torchcc::Package& package, const at::Tensor& query,
                                       const at::Tensor& sentences) {
  if (has(package, "rank")) {
    const torchcc::Outputs ranked = package["rank"]({{"query", query}, {"sentences", sentences}});
    return {ranked["scores"], ranked["order"]};
  }
  const auto [scores, order] = sentences.mv(query[0]).sort(/*stable=*/true, 0, /*descending=*/true);
  return {scores, order};
}

void print_ranking(const std::pair<at::Tensor, at::Tensor>& ranked, const c10::List<c10::IValue>& texts) {
  const auto& [scores, order] = ranked;
  std::cout << "\n" << texts.get(0).toStringRef() << "\n";
  for (int64_t i = 0; i < order.size(0); ++i) {
    const auto text = static_cast<size_t>(order[i].item<int64_t>()) + 1;  // the query is the first text
    std::cout << "  " << scores[i].item<double>() << "  " << texts.get(text).toStringRef() << "\n";
  }
}

int run(const char* package_file, const char* batches_file) {
  const c10::AutoGradMode no_grad(false);
  at::set_num_threads(1);
  const Dict file = read(batches_file);
  const Dict batches = file.at("batches").toGenericDict();
  const Batch query(batches.at("query").toGenericDict());

  const auto start = Clock::now();
  const torchcc::Package package = torchcc::load(package_file);
  const torchcc::Function encoder = package["forward"];
  const double load = milliseconds_since(start);
  const auto before_call = Clock::now();
  const at::Tensor wanted = embed(encoder, query);
  const double first_call = milliseconds_since(before_call);
  const double cold_start = milliseconds_since_start_of_process();

  const torchcc::Stats stats = encoder.stats();
  std::cout << std::fixed << std::setprecision(1) << "backend " << stats.backend << "\ntarget "
            << (stats.target.empty() ? "none" : stats.target) << "\nthreads " << at::get_num_threads() << "\nload_ms "
            << load << "\nfirst_call_ms " << first_call << "\ncold_start_ms " << cold_start << "\n";
  at::Tensor largest = at::zeros({});
  for (const char* name : {"query", "sentences", "long"}) {
    const Batch batch(batches.at(name).toGenericDict());
    largest = at::maximum(largest, (embed(encoder, batch) - batch.expected).abs().max());  // NaN stays NaN
    std::cout << name << "_size " << batch.ids.size(0) << "x" << batch.ids.size(1) << "\n"
              << name << "_ms " << median_milliseconds(encoder, batch, 15) << "\n";
  }
  const double difference = largest.item<double>();
  std::cout << std::defaultfloat << std::setprecision(3) << "difference " << difference << "\nranked_by "
            << (has(package, "rank") ? "package" : "LibTorch") << "\n";
  const Batch sentences(batches.at("sentences").toGenericDict());
  print_ranking(rank(package, wanted, embed(encoder, sentences)), file.at("texts").toList());
  if (difference <= kTolerance) return 0;
  std::cerr << "a vector differs from Python's by " << difference << ", more than " << kTolerance << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: sentences <package.pt2> <batches.pt>\n";
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
