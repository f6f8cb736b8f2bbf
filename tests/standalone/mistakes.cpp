// Makes the mistakes of ../errors/mistakes.h without LibTorch; test_standalone.py compares the messages with those of
// LibTorch's runtime. Then what only these tensors refuse.
#include "../errors/mistakes.h"

#include <cstdio>
#include <vector>

#include "regions.h"

namespace {

using mistakes::full;
using mistakes::mistake;
using mistakes::Tensors;
using torchcc::Tensor;

void tensors(const Tensors& t) {
  mistake("elements of another type", [&] { t.x.data_ptr<double>(); });
  mistake("no single value", [&] { t.x.item<float>(); });
  mistake("no such dimension", [&] { t.x.size(1); });
  mistake("copy of other sizes", [&] { t.x.copy_(t.a); });
  mistake("conversion that C++ does not have", [&] { t.x.to(torchcc::kHalf); });
  mistake("nine dimensions", [] { torchcc::empty({1, 1, 1, 1, 1, 1, 1, 1, 1}); });
  mistake("sizes that are none", [] { torchcc::empty({-1}); });
}

void results(const Tensors& t) {
  // Not mistakes: layouts that the code does not read as they are.
  const Tensor turned = t.a.as_strided({3, 4}, {1, 3});
  std::vector<Tensor> both = t.blend.call({turned, turned, 2.0, 1, true});
  const Tensor total = full({4, 6}, 0.0, torchcc::kDouble);
  const Tensor every_second = total.as_strided({4, 3}, {6, 2});
  const Tensor sums = t.accumulate(every_second, t.a);
  std::printf("blend %g %g accumulate %g %g %g\n", both[0].data_ptr<double>()[0], both[1].data_ptr<double>()[0],
              sums.data_ptr<double>()[0], total.data_ptr<double>()[2], total.data_ptr<double>()[3]);
}

}  // namespace

int main() {
  const Tensors t(regions::regions_package());
  mistakes::make(t);
  std::printf("# of these tensors\n\n");
  tensors(t);
  results(t);
}
