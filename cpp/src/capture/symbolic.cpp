#include <torchcc/symbolic.h>

#include "mode.h"
#include "recorder.h"

namespace torchcc {

c10::SymInt sym_size(const at::Tensor& tensor, int64_t dim) {
  if (auto* recorder = dynamic_cast<detail::Recorder*>(detail::Mode::current())) return recorder->size(tensor, dim);
  return tensor.size(dim);
}

std::vector<c10::SymInt> sym_sizes(const at::Tensor& tensor) {
  std::vector<c10::SymInt> sizes;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) sizes.push_back(sym_size(tensor, dim));
  return sizes;
}

c10::SymInt sym_numel(const at::Tensor& tensor) {
  c10::SymInt product = 1;
  for (const c10::SymInt& size : sym_sizes(tensor)) product *= size;
  return product;
}

}  // namespace torchcc
