#include "content.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string_view>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "mode.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

// Numbers that are hashed at once; each needs 24 bytes of the GPU's memory meanwhile.
constexpr int64_t kAtOnce = 1 << 22;

/// The bytes of a storage as a tensor.
at::Tensor bytes_of(const c10::StorageImpl& storage) {
  auto* shared = const_cast<c10::StorageImpl*>(&storage);
  const auto size = static_cast<int64_t>(storage.nbytes());
  const std::array<int64_t, kSizes + 2> words{static_cast<int64_t>(at::kByte), 0, 0, 0, 1, size, 1};
  return make_view(c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(shared)), words.data());
}

/// A sum of numbers, each times an odd number of its own, so that it shows if two change places.
at::Tensor weighted_sum(const at::Tensor& numbers) {
  const at::TensorOptions options = numbers.options().dtype(at::kLong);
  at::Tensor sum = at::zeros({}, options);
  for (int64_t begin = 0; begin < numbers.numel(); begin += kAtOnce) {
    const at::Tensor part = numbers.narrow(0, begin, std::min(kAtOnce, numbers.numel() - begin)).to(at::kLong);
    const int64_t first = 2 * begin + 1;
    sum = sum + part.mul_(at::arange(first, first + 2 * part.numel(), 2, options)).sum();
  }
  return sum;
}

// What this launches is nobody's business: neither autograd's, nor that of a mode.
class Unseen {
 private:
  Unrecorded unrecorded_;
  at::AutoDispatchBelowADInplaceOrView below_;
  c10::AutoGradMode no_grad_{false};
};

size_t hash_on_gpu(const c10::StorageImpl& storage) {
  if (storage.nbytes() == 0) return 0;
  const Unseen unseen;
  const at::Tensor bytes = bytes_of(storage);
  constexpr int64_t kWord = sizeof(int32_t);
  const int64_t rest = bytes.numel() % kWord;
  at::Tensor sum = weighted_sum(bytes.narrow(0, 0, bytes.numel() - rest).view(at::kInt));
  if (rest != 0) sum = sum * 31 + weighted_sum(bytes.narrow(0, bytes.numel() - rest, rest));
  return static_cast<size_t>(sum.item<int64_t>());
}

}  // namespace

size_t hash_of(const c10::StorageImpl& storage) {
  if (storage.device_type() == c10::kCUDA) return hash_on_gpu(storage);
  return std::hash<std::string_view>{}({static_cast<const char*>(storage.data()), storage.nbytes()});
}

at::Tensor copy_of(const c10::StorageImpl& storage) {
  const Unseen unseen;
  if (storage.device_type() == c10::kCUDA) return bytes_of(storage).clone();
  at::Tensor copy = at::empty({static_cast<int64_t>(storage.nbytes())}, at::kByte);
  std::memcpy(copy.mutable_data_ptr(), storage.data(), storage.nbytes());
  return copy;
}

bool same_bytes(const at::Tensor& a, const at::Tensor& b) {
  const Unseen unseen;
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes() || a.nbytes() != b.nbytes()) return false;
  const at::Tensor one = a.cpu().contiguous();
  const at::Tensor other = b.cpu().contiguous();
  return std::memcmp(one.const_data_ptr(), other.const_data_ptr(), one.nbytes()) == 0;
}

}  // namespace torchcc::detail
