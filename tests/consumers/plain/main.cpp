#include <iostream>

#include <ATen/ATen.h>
#include <torchcc/torchcc.h>

#include "kernels.h"

int main(int, char** arguments) {
  const auto x = at::randn({5, 64});
  const auto bias = at::randn({64});
  const auto expected = at::gelu(x + bias);
  auto out = at::empty_like(x);
  kernels::bias_gelu_out(out, x, bias);
  // The package beside the program, and the one inside it.
  const torchcc::Function function = torchcc::load(arguments[1])["bias_gelu"];
  const bool same = at::allclose(kernels::bias_gelu(x, bias), expected, 1e-4, 1e-5) &&
                    at::allclose(out, expected, 1e-4, 1e-5) && at::allclose(function(x, bias), expected, 1e-4, 1e-5);
  // Without a folder for compiled code it stays eager.
  const auto compiled = torchcc::compile([](const at::Tensor& a, const at::Tensor& b) { return at::gelu(a + b); });
  bool right = true;
  for (int call = 0; call < 3; ++call) right = right && at::equal(compiled(x, bias), expected);
  std::cout << (right ? "right" : "wrong") << ": " << compiled.stats().reason << "\n";
  std::cout << (same ? "same" : "different") << " " << function.stats().backend << std::endl;
}
