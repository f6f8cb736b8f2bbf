#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torchcc/signature.h>

#include "backward.h"

namespace torchcc::portable {
class Program;
}

namespace torchcc::detail {

class Archive;

/// The manifest's format that this runtime reads. Raised with every change that an older runtime would misread.
inline constexpr int64_t kFormatVersion = 2;

/// A checked file inside the archive.
struct Record {
  uint64_t size = 0;
  uint32_t crc32 = 0;
};

/// One compiled form of a function.
struct VariantEntry {
  std::string target;                     ///< "cpu-x86_64-avx512"
  std::string torch;                      ///< "2.13": major and minor version it was compiled with
  std::vector<std::string> cpu_features;  ///< names as in __builtin_cpu_supports
  std::string library;                    ///< record of the shared library; the call form
  std::string library_out;                ///< record of the form that writes into given outputs; may be empty
  std::string extern_ops;                 ///< record of the JSON of operators without a C entry point; may be empty
  std::string extern_ops_out;
  std::string architecture;          ///< of the GPU that it is for: "sm90", or "sm80+", later ones too; empty: the CPU
  std::string uncapturable;          ///< why no CUDA graph can be made of the code; empty when one can
  bool exclusive = false;            ///< see Library::Source
  std::vector<std::string> weights;  ///< that the code takes as inputs, behind those of the signature
};

/// One compiled form of a function whose results carry gradients.
struct TrainingVariant {
  std::string target;  ///< like the next two, as in VariantEntry
  std::string torch;
  std::vector<std::string> cpu_features;
  std::string library;           ///< record of the shared library for the forward direction
  std::string library_backward;  ///< record of the one for gradients
  std::string extern_ops;        ///< as in VariantEntry, for both
  std::string extern_ops_backward;
  std::string architecture;                  ///< as in VariantEntry
  bool exclusive = false;                    ///< see Library::Source
  std::vector<std::string> weights;          ///< that the code takes as inputs, behind those of the signature
  Backward backward;                         ///< without its library
  std::vector<std::vector<size_t>> covered;  ///< as in Differentiable
  std::vector<std::vector<size_t>> reached;
  bool is_random = false;    ///< the function draws random numbers
  std::string uncapturable;  ///< as in VariantEntry, of both directions
};

struct FunctionEntry {
  Signature signature;
  std::string graph;                                 ///< record of torch.export's graph; may be empty
  std::shared_ptr<const portable::Program> program;  ///< the graph, where it was read already
  std::string model;                                 ///< under which name the package has the graph's weights
  std::string group;                                 ///< functions of the same group share their weights
  bool is_on_gpu = false;                            ///< some tensor of it is on a GPU, by CUDA
  std::vector<VariantEntry> variants;
  std::vector<TrainingVariant> training;
};

struct Manifest {
  std::string producer;
  std::vector<FunctionEntry> functions;
  std::map<std::string, Record> records;
};

/// Whether it is a package that torchcc made.
bool has_manifest(Archive& archive);

/// Reads and checks the manifest. Throws PackageError.
Manifest read_manifest(Archive& archive);

}  // namespace torchcc::detail
