// `main <file>`: loads a model from a package, or is one with weights in the file, calls it, and serves calls.
#include <cstdint>
#include <cstring>

#include <torchcc/function.h>
#include <torchcc/package.h>

#include "serve.h"

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

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const torchcc::Function function = load(argv[1]);
  const torchcc::Tensor x = input();
  const torchcc::Tensor y = function(x);
  footprint::serve(*y.data_ptr<float>(), [&] { function(x); });
}
