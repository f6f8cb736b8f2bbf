#include <iostream>

#include <torch/torch.h>

#include "kernels.h"

int main() {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({100});
  const auto y = app::math::scaled_power(x);
  // What the region computes, up to a constant: the constant is the answer.
  std::cout << "scale " << (y / x.pow(2)).mean().item<float>() << std::endl;
}
