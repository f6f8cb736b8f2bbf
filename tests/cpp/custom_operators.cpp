// A library with operators of its own, as users have them; see tests/python/test_operators.py.
#include <tuple>

#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

at::Tensor soft_threshold(const at::Tensor& x, double level) { return x.sign() * (x.abs() - level).relu(); }

at::Tensor soft_threshold_meta(const at::Tensor& x, double) { return at::empty_like(x); }

std::tuple<at::Tensor, at::Tensor> moments(const at::Tensor& x, at::IntArrayRef dims, std::optional<bool> unbiased) {
  return {x.mean(dims, true), x.var(dims, unbiased.value_or(false), true)};
}

void accumulate(at::Tensor& total, at::TensorList parts) {
  for (const at::Tensor& part : parts) total.add_(part);
}

void accumulate_meta(at::Tensor&, at::TensorList) {}

TORCH_LIBRARY(torchcc_tests, m) {
  m.def("soft_threshold(Tensor x, float level=0.5) -> Tensor");
  m.def("moments(Tensor x, int[] dims, bool? unbiased=None) -> (Tensor, Tensor)");
  m.def("accumulate_(Tensor(a!) total, Tensor[] parts) -> ()");
}

TORCH_LIBRARY_IMPL(torchcc_tests, CPU, m) {
  m.impl("soft_threshold", soft_threshold);
  m.impl("accumulate_", accumulate);
}

TORCH_LIBRARY_IMPL(torchcc_tests, Meta, m) {
  m.impl("soft_threshold", soft_threshold_meta);
  m.impl("accumulate_", accumulate_meta);
}

TORCH_LIBRARY_IMPL(torchcc_tests, CompositeExplicitAutograd, m) { m.impl("moments", moments); }

}  // namespace
