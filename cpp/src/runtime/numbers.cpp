#include "numbers.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/SmallVector.h>

#include "device.h"

namespace torchcc::detail {
namespace {

// Compiled code loads from multiples of 16 bytes.
constexpr int64_t kStep = 2;

}  // namespace

Numbers::Numbers(size_t count, c10::Device device)
    : memory_(at::empty({static_cast<int64_t>(count) * kStep}, at::TensorOptions().device(device).dtype(at::kDouble))) {
}

at::Tensor Numbers::at(size_t position) const {
  return memory_.as_strided({}, {}, static_cast<int64_t>(position) * kStep);
}

void Numbers::copy(std::span<const at::Tensor* const> numbers) const {
  const c10::DeviceGuard guard(memory_.device());
  if (is_capturing(memory_.device())) {
    // A graph of the program's own: a copy would read memory of the host whenever the graph is launched.
    for (size_t i = 0; i < numbers.size(); ++i) at(i).fill_(*numbers[i]->const_data_ptr<double>());
    return;
  }
  const at::Tensor host = at::empty({static_cast<int64_t>(numbers.size()) * kStep}, at::kDouble);
  for (size_t i = 0; i < numbers.size(); ++i) {
    double* const pair = host.mutable_data_ptr<double>() + i * kStep;
    pair[0] = *numbers[i]->const_data_ptr<double>();
    pair[1] = 0;
  }
  // CUDA has read memory that is not pinned when it returns, and for so little of it does not wait for the stream.
  memory_.copy_(host, /*non_blocking=*/true);
}

void move_numbers(std::vector<at::Tensor>& inputs, const Signature& signature, c10::Device device) {
  c10::SmallVector<size_t, 8> positions;
  c10::SmallVector<const at::Tensor*, 8> given;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_number_for(signature.inputs[i], inputs[i])) continue;
    positions.push_back(i);
    given.push_back(&inputs[i]);
  }
  if (positions.empty()) return;
  const Numbers numbers(positions.size(), device);
  numbers.copy(given);
  for (size_t k = 0; k < positions.size(); ++k) inputs[positions[k]] = numbers.at(k);
}

}  // namespace torchcc::detail
