#include "tensors.h"

#include "pool.h"

namespace torchcc::detail {

void append_words(Words& to, const at::Tensor& tensor) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  to.push_back(static_cast<int64_t>(tensor.scalar_type()));
  to.push_back(conjugation_of(tensor));
  to.push_back(device_word(tensor));
  to.push_back(tensor.storage_offset());
  to.push_back(static_cast<int64_t>(sizes.size()));
  for (const int64_t size : sizes) to.push_back(size);
  for (const int64_t stride : strides) to.push_back(stride);
}

std::pair<int64_t, int64_t> extent(const int64_t* words) {
  int64_t last = words[kOffset];
  for (int64_t d = 0; d < words[kRank]; ++d) {
    if (words[kSizes + d] == 0) return {0, 0};
    last += (words[kSizes + d] - 1) * words[kSizes + words[kRank] + d];
  }
  const auto size = static_cast<int64_t>(c10::elementSize(static_cast<c10::ScalarType>(words[kDtype])));
  return {words[kOffset] * size, (last + 1) * size};
}

at::Tensor make_view(c10::Storage storage, const int64_t* words) {
  const auto dtype = static_cast<c10::ScalarType>(words[kDtype]);
  const bool is_on_gpu = storage.device_type() == c10::kCUDA;
  at::Tensor tensor = at::detail::make_tensor<Pooled<c10::TensorImpl>>(
      std::move(storage), c10::DispatchKeySet(is_on_gpu ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(dtype));
  const auto rank = static_cast<size_t>(words[kRank]);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides({words + kSizes, rank}, {words + kSizes + rank, rank},
                                                      words[kOffset]);
  if ((words[kFlags] & kConjugate) != 0) tensor._set_conj(true);
  if ((words[kFlags] & kNegative) != 0) tensor._set_neg(true);
  return tensor;
}

}  // namespace torchcc::detail
