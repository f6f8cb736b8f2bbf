// `executorch <file.pte>`: the same for ExecuTorch, with XNNPACK's kernels and one thread.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include "serve.h"

namespace {

template <class T>
T checked(executorch::runtime::Result<T> result) {
  if (result.ok()) return std::move(result.get());
  std::fprintf(stderr, "ExecuTorch's error %d\n", static_cast<int>(result.error()));
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  using executorch::extension::Module;
  const executorch::extension::threadpool::NoThreadPoolGuard one_thread;
  Module module(argv[1], Module::LoadMode::Mmap);
  const auto meta = checked(module.method_meta("forward"));
  const auto form = checked(meta.input_tensor_meta(0));
  const std::vector<executorch::aten::SizesType> sizes(form.sizes().begin(), form.sizes().end());
  const auto x = executorch::extension::zeros(sizes, form.scalar_type());
  const auto y = checked(module.forward(x));
  footprint::serve(*y[0].toTensor().const_data_ptr<float>(), [&] { checked(module.forward(x)); });
}
