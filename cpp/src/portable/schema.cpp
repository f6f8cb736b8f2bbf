#include "schema.h"

#include <limits>
#include <map>

#include <torchcc/error.h>

namespace torchcc::portable {

void bad(std::string expected, std::string got) { throw Bad{std::move(expected), std::move(got)}; }

// PyTorch's numbers for these, in schema.py.
c10::Layout layout_of(int64_t number) {
  using L = c10::Layout;
  static const std::map<int64_t, L> table{{1, L::Sparse},    {2, L::SparseCsr}, {3, L::SparseCsc}, {4, L::SparseBsr},
                                          {5, L::SparseBsc}, {6, L::Mkldnn},    {7, L::Strided}};
  const auto known = table.find(number);
  if (known == table.end()) bad("a layout that this version knows", "number " + std::to_string(number));
  return known->second;
}

c10::MemoryFormat memory_format_of(int64_t number) {
  using M = c10::MemoryFormat;
  static const std::map<int64_t, M> table{
      {1, M::Contiguous}, {2, M::ChannelsLast}, {3, M::ChannelsLast3d}, {4, M::Preserve}};
  const auto known = table.find(number);
  if (known == table.end()) bad("a memory format that this version knows", "number " + std::to_string(number));
  return known->second;
}

c10::Device device_of(const json& node) {
  std::string text = node.at("type").get<std::string>();
  // A graph names the GPU of the machine that exported it; here it is the current one.
  const bool has_index = !node.at("index").is_null() && text != "cuda";
  if (has_index) text.append(":").append(std::to_string(node.at("index").get<int64_t>()));
  return c10::Device(text);
}

double number_of(const json& node) {
  if (!node.is_string()) return node.get<double>();
  const auto text = node.get<std::string>();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  bad("a number", text);
}

std::pair<std::string, const json&> member(const json& node) {
  if (!node.is_object() || node.size() != 1) bad("an object with one member", node.dump().substr(0, 200));
  const auto only = node.items().begin();
  return {only.key(), only.value()};
}

std::string location_of(const json& metadata) {
  const auto trace = metadata.find("stack_trace");
  if (trace == metadata.end() || !trace->is_string()) return "";
  const std::string text = trace->get<std::string>();
  const size_t file = text.rfind("File \"");
  const size_t line = text.find("\", line ", file);
  if (file == std::string::npos || line == std::string::npos) return "";
  const std::string path = text.substr(file + 6, line - file - 6);
  const size_t number = line + 8;
  return path.substr(path.rfind('/') + 1) + ":" + text.substr(number, text.find_first_of(",\n", number) - number);
}

c10::ScalarType exported_dtype(int64_t number) {
  using T = c10::ScalarType;
  static const std::map<int64_t, T> table{{1, T::Byte},
                                          {2, T::Char},
                                          {3, T::Short},
                                          {4, T::Int},
                                          {5, T::Long},
                                          {6, T::Half},
                                          {7, T::Float},
                                          {8, T::Double},
                                          {9, T::ComplexHalf},
                                          {10, T::ComplexFloat},
                                          {11, T::ComplexDouble},
                                          {12, T::Bool},
                                          {13, T::BFloat16},
                                          {28, T::UInt16},
                                          {29, T::Float8_e4m3fn},
                                          {30, T::Float8_e5m2},
                                          {31, T::Float8_e4m3fnuz},
                                          {32, T::Float8_e5m2fnuz},
                                          {33, T::Float8_e8m0fnu},
                                          {34, T::UInt32},
                                          {35, T::UInt64}};
  const auto known = table.find(number);
  if (known == table.end()) throw Error("number " + std::to_string(number) + " is no dtype that this version knows");
  return known->second;
}

}  // namespace torchcc::portable
