#include "artifact.h"

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>

namespace benchmarks {
namespace {

/// Writes the package's shared library to a file.
void extract_library(const std::filesystem::path& package, const std::filesystem::path& file) {
  caffe2::serialize::PyTorchStreamReader reader(package.string());
  for (const std::string& record : reader.getAllRecords()) {
    if (!record.starts_with("data/aotinductor/model/") || !record.ends_with(".so")) continue;
    const auto [data, size] = reader.getRecord(record);
    std::ofstream(file, std::ios::binary)
        .write(static_cast<const char*>(data.get()), static_cast<std::streamsize>(size));
    return;
  }
  throw std::runtime_error(package.string() + ": no shared library of a function 'model'");
}

}  // namespace

Artifact::Artifact(const std::filesystem::path& package) {
  std::string folder = (std::filesystem::temp_directory_path() / "torchcc-benchmark-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) fail("no temporary folder");
  const std::filesystem::path file = std::filesystem::path(folder) / "model.so";
  extract_library(package, file);
  library_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  std::filesystem::remove_all(folder);
  if (library_ == nullptr) fail(dlerror());
  run_ = symbol<decltype(AOTInductorModelContainerRun)>("AOTInductorModelContainerRun");
  run_single_threaded_ =
      symbol<decltype(AOTInductorModelContainerRunSingleThreaded)>("AOTInductorModelContainerRunSingleThreaded");
  const auto create =
      symbol<decltype(AOTInductorModelContainerCreateWithDevice)>("AOTInductorModelContainerCreateWithDevice");
  if (create(&container_, /*num_models=*/1, "cpu", nullptr) != 0) fail("no container");
}

Artifact::~Artifact() {
  symbol<decltype(AOTInductorModelContainerDelete)>("AOTInductorModelContainerDelete")(container_);
  dlclose(library_);
}

template <class Function>
Function* Artifact::symbol(const char* name) const {
  void* address = dlsym(library_, name);
  if (address == nullptr) fail(name);
  return reinterpret_cast<Function*>(address);
}

void Artifact::fail(const char* what) { throw std::runtime_error(std::string("the bare artifact: ") + what); }

}  // namespace benchmarks
