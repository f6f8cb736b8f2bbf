#include "callers.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <map>
#include <mutex>
#include <string_view>

#include <torch/csrc/profiler/unwind/unwind.h>

namespace torchcc::detail {
namespace {

/// The start of the library or program that has some code; null when nobody knows.
const void* module_of(const void* code, Dl_info& info) { return ::dladdr(code, &info) != 0 ? info.dli_fbase : nullptr; }

}  // namespace

// Not by torch::unwind::unwind(), which trusts what it finds on the stack more than the C++ runtime does.
std::vector<void*> callers() {
  constexpr int kDeepest = 64;
  std::vector<void*> stack(kDeepest);
  stack.resize(static_cast<size_t>(::backtrace(stack.data(), kDeepest)));
  return stack;
}

std::string place_of(const std::vector<void*>& stack) {
  static std::mutex mutex;
  static std::map<std::vector<void*>, std::string> known;  // it takes long
  if (stack.empty()) return "";
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace(stack);
  if (!is_new) return entry->second;
  const auto is_ours = [](const torch::unwind::Frame& frame) {
    for (const char* part :
         {"/include/torchcc/", "/src/capture/", "/torch/", "/ATen/", "/c10/", "libtorch", "libc10"}) {
      if (frame.filename.find(part) != std::string::npos) return true;
    }
    for (const char* start : {"torchcc::", "torch::", "at::", "c10::", "std::", "void torchcc::", "void c10::"}) {
      if (frame.funcname.starts_with(start)) return true;
    }
    return frame.funcname.empty() || frame.funcname == "??";
  };
  for (const torch::unwind::Frame& frame : torch::unwind::symbolize(stack, torch::unwind::Mode::fast)) {
    if (is_ours(frame)) continue;
    const std::string file = frame.filename.substr(frame.filename.rfind('/') + 1);
    const bool has_line = file.find(".c") != std::string::npos || file.find(".h") != std::string::npos;
    entry->second =
        has_line ? file + ":" + std::to_string(frame.lineno) : frame.funcname;  // else the program, an offset
    break;
  }
  return entry->second;
}

bool is_equal_of_libtorch() {
  constexpr std::string_view kEqual = "_ZN2at4_ops5equal4call";
  const std::vector<void*> stack = callers();
  Dl_info info{};
  for (size_t i = 0; i + 1 < stack.size(); ++i) {
    const void* const library = module_of(stack[i], info);
    if (library == nullptr || info.dli_sname == nullptr || !std::string_view(info.dli_sname).starts_with(kEqual)) {
      continue;
    }
    // Where everything is one program, nobody can tell.
    const void* const own = module_of(reinterpret_cast<const void*>(&is_equal_of_libtorch), info);
    return library != own && module_of(stack[i + 1], info) == library;
  }
  return false;
}

}  // namespace torchcc::detail
