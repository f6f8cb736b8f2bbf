// `digits_mobile <digits.pte> <digits.bin>`: classifies the images that were held out from training, with ExecuTorch.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

namespace {

constexpr int kPixels = 64;
constexpr int kHeldOut = 4;  // every 4th image was kept from training, see digits.py
constexpr int kBatch = 450;  // the file is for 512 images at once, at most

struct Images {
  std::vector<uint8_t> pixels;
  std::vector<int> labels;
};

Images read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
  Images images;
  for (size_t record = 0; (record + 1) * (kPixels + 1) <= bytes.size(); ++record) {
    if (record % kHeldOut != 0) continue;
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(record * (kPixels + 1));
    images.pixels.insert(images.pixels.end(), begin, begin + kPixels);
    images.labels.push_back(begin[kPixels]);
  }
  return images;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  executorch::extension::Module module(argv[1]);
  // The signatures of the file's functions, as torchcc wrote them.
  const auto signatures = module.execute("torchcc_signatures");
  if (!signatures.ok()) {
    std::fprintf(stderr, "%s: not a file that torchcc wrote\n", argv[1]);
    return 1;
  }
  const auto text = signatures.get()[0].toString();
  std::printf("%.*s\n", static_cast<int>(text.size()), text.data());

  Images images = read(argv[2]);
  const int count = std::min(static_cast<int>(images.labels.size()), kBatch);
  const auto input =
      executorch::extension::from_blob(images.pixels.data(), {count, 8, 8}, executorch::aten::ScalarType::Byte);
  const auto outputs = module.forward(input);
  if (!outputs.ok()) {
    std::fprintf(stderr, "%s: it failed with error %d\n", argv[1], static_cast<int>(outputs.error()));
    return 1;
  }
  const auto logits = outputs.get()[0].toTensor();
  int right = 0;
  for (int i = 0; i < count; ++i) {
    const float* row = logits.const_data_ptr<float>() + static_cast<std::ptrdiff_t>(i) * logits.size(1);
    right += std::max_element(row, row + logits.size(1)) - row == images.labels[static_cast<size_t>(i)];
  }
  std::printf("%d images, %.1f %% right\n", count, 100.0 * right / count);
}
