// `main <file>`: loads a model from a package, or is one with weights in the file, calls it once, and prints a number
// of the result. Then it reads how many calls to make, a line each, and answers with nanoseconds a call. Prints its own
// peak of memory first, in KiB.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <torchcc/function.h>
#include <torchcc/package.h>

#define JOIN_OF(a, b) a##b
#define JOIN(a, b) JOIN_OF(a, b)

#ifdef TORCHCC_STANDALONE
#include FOOTPRINT_HEADER
#endif

namespace {

torchcc::Function load([[maybe_unused]] const char* file) {
#if !defined(TORCHCC_STANDALONE)
  return torchcc::load(file)["forward"];
#elif defined(MODEL_encoder)
  return encoder::encoder_package(file)["forward"];
#else
  return MODEL::JOIN(MODEL, _package)()["forward"];
#endif
}

torchcc::Tensor input() {
#if defined(MODEL_classifier)
  torchcc::Tensor x = torchcc::empty({1, 8, 8}, torchcc::kByte);
#elif defined(MODEL_encoder)
  torchcc::Tensor x = torchcc::empty({1, 128, 256}, torchcc::kFloat);
#elif defined(MODEL_cnn)
  torchcc::Tensor x = torchcc::empty({1, 3, 64, 64}, torchcc::kFloat);
#else
  torchcc::Tensor x = torchcc::empty({1, 128}, torchcc::kFloat);
#endif
  std::memset(x.data_ptr(), 0, static_cast<size_t>(x.numel()) * static_cast<size_t>(x.element_size()));
  return x;
}

/// VmHWM of /proc/self/status.
long peak() {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  char line[256];
  long found = 0;
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr) {
    if (std::strncmp(line, "VmHWM:", 6) == 0) found = std::strtol(line + 6, nullptr, 10);
  }
  if (file != nullptr) std::fclose(file);
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const torchcc::Function function = load(argv[1]);
  const torchcc::Tensor x = input();
  const torchcc::Tensor y = function(x);
  std::printf("%g\n", static_cast<double>(*y.data_ptr<float>()));
  std::fflush(stdout);
  std::printf("%ld\n", peak());
  std::fflush(stdout);
  long calls = 0;
  while (std::scanf("%ld", &calls) == 1) {
    const auto start = std::chrono::steady_clock::now();
    for (long i = 0; i < calls; ++i) function(x);
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
    std::printf("%g\n", elapsed.count() / static_cast<double>(calls));
    std::fflush(stdout);
  }
}
