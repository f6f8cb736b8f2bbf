// Makes calls that Python wrote into a file (tests/standalone_models.py), and writes what they give into another. A
// call is the length of a function's name, the name, and of each input its rank, its sizes and its content.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <torchcc/torchcc.h>

namespace calls {

/// The content of a file, from front to back.
class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    content_.assign(std::istreambuf_iterator<char>(file), {});
  }
  bool at_end() const { return place_ == content_.size(); }
  const char* take(size_t bytes) {
    if (bytes > content_.size() - place_) throw std::runtime_error("the file of calls is too short");
    place_ += bytes;
    return content_.data() + place_ - bytes;
  }
  int64_t number() {
    int64_t value = 0;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }

 private:
  std::vector<char> content_;
  size_t place_ = 0;
};

inline size_t bytes_of(const torchcc::Tensor& tensor) {
  return static_cast<size_t>(tensor.numel()) * tensor.element_size();
}

inline torchcc::Tensor read(Reader& reader, torchcc::ScalarType dtype) {
  std::vector<int64_t> sizes(static_cast<size_t>(reader.number()));
  for (int64_t& size : sizes) size = reader.number();
  const torchcc::Tensor tensor = torchcc::empty(sizes, dtype);
  std::memcpy(tensor.data_ptr(), reader.take(bytes_of(tensor)), bytes_of(tensor));
  return tensor;
}

/// `find` gives the function of a name such as "zoo.embed".
inline void make(const char* file, const char* results,
                 const std::function<const torchcc::Function&(const std::string& name)>& find) {
  Reader reader(file);
  std::ofstream out(results, std::ios::binary);
  while (!reader.at_end()) {
    const auto length = static_cast<size_t>(reader.number());
    const torchcc::Function& function = find(std::string(reader.take(length), length));
    std::vector<torchcc::Tensor> tensors;  // which arguments only refer to
    for (const torchcc::Value& input : function.signature().inputs) tensors.push_back(read(reader, input.dtype));
    const std::vector<torchcc::Argument> arguments(tensors.begin(), tensors.end());
    for (const torchcc::Tensor& result : function.call(arguments)) {
      const torchcc::Tensor plain = result.contiguous();
      out.write(static_cast<const char*>(plain.const_data_ptr()), static_cast<std::streamsize>(bytes_of(plain)));
    }
  }
}

}  // namespace calls
