#include "library.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <shared_mutex>
#include <string_view>
#include <system_error>
#include <thread>

#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner.h>
#include <torchcc/error.h>

#include "device.h"
#include "device_memory.h"
#include "message.h"

namespace torchcc::detail {
namespace {

[[noreturn]] void fail(const Library::Source& source, const std::string& expected, const std::string& got,
                       const std::string& fix) {
  throw PackageError(message(source.origin + ": the compiled code of '" + source.name + "' cannot be loaded",
                             {{"expected", expected}, {"got", got}, {"fix", fix}}));
}

[[noreturn]] void fail_code(const Library::Source& source, const std::string& got) {
  fail(source, "a shared library made by AOTInductor for this torch", got,
       "build the package again with `torchcc build` on a machine like this one");
}

[[noreturn]] void fail_file(const Library::Source& source, const char* call) {
  fail(source, "a file in memory to put it in", call + std::string(": ") + std::strerror(errno),
       "raise the limits of this process (memory, open files)");
}

[[noreturn]] void fail_folder(const Library::Source& source, const std::string& got) {
  fail(source, "a temporary folder to put it in while it is loaded", got,
       "set TMPDIR to a folder where this program may write and map code");
}

/// A message of compiled code, which starts with "function, /path/of/source:line, ", as people should see it.
std::string reason_text(const char* reason) {
  const std::string line = reason == nullptr ? "" : first_line(reason);
  const size_t path = line.find(", /");
  const size_t end = path == std::string::npos ? path : line.find(", ", path + 1);
  if (end != std::string::npos) return line.substr(end + 2);
  return line.empty() ? "it gave none" : line;
}

/// The operator that libtorch did not find, if that is its reason.
std::string missing_operator(const std::string& reason) {
  constexpr std::string_view kStart = "Could not find schema for ";
  const size_t start = reason.find(kStart);
  if (start == std::string::npos) return "";
  const std::string name = reason.substr(start + kStart.size());
  return name.substr(0, name.find_first_of(". "));
}

// Kernels that divide integers report a zero divisor through one pointer that all AOTInductor libraries of the process
// share (inductor_cpu_integer_div_error_flag in torch's cpp_prefix.h, a STB_GNU_UNIQUE symbol). Beside other kernels
// the error would reach the wrong call or none, so such code runs alone. While no such library is loaded, which is the
// usual case, nobody takes the lock; a call that began before the first one was loaded is not waited for.
std::atomic<int> exclusive_libraries{0};
std::shared_mutex exclusion;

/// A path to an open file that no other library of this process has had. The loader knows a library by its path and
/// never forgets one with STB_GNU_UNIQUE symbols, but the number of a closed descriptor is used again. So each path is
/// the same place in another spelling: a count, written in "//" for 0 and "/." for 1.
std::string descriptor_path(int descriptor) {
  static std::atomic<uint64_t> count{0};
  std::string path = "/proc/self/fd";
  for (uint64_t left = ++count; left != 0; left /= 2) path += left % 2 == 0 ? "//" : "/.";
  return path + "/" + std::to_string(descriptor);
}

}  // namespace

/// The code as a file that the dynamic loader can open and nobody else can see: in memory; or, when the code brings a
/// JSON file that libtorch looks for beside it, in a private folder that is removed at once.
class Library::Files {
 public:
  explicit Files(const Source& source) {
    if (!source.extern_ops.empty()) {
      write_folder(source);
      return;
    }
    descriptor_ = memfd_create("torchcc", MFD_CLOEXEC);
    if (descriptor_ < 0) fail_file(source, "memfd_create");
    path_ = descriptor_path(descriptor_);
    for (size_t written = 0; written < source.code.size();) {
      const ssize_t count = ::write(descriptor_, source.code.data() + written, source.code.size() - written);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        const int reason = errno;
        ::close(descriptor_);
        errno = reason;
        fail_file(source, "write");
      }
      written += static_cast<size_t>(count);
    }
  }

  ~Files() { remove(); }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  const std::string& path() const { return path_; }

  /// To be called once the library is mapped, which needs the files no more.
  void remove() noexcept {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
    if (folder_.empty()) return;
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
    folder_.clear();
  }

 private:
  void write_folder(const Source& source) {
    std::error_code missing;
    const std::filesystem::path parent = std::filesystem::temp_directory_path(missing);
    if (missing) fail_folder(source, "TMPDIR, or /tmp, is no folder: " + missing.message());
    std::string name = (parent / "torchcc-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) fail_folder(source, name + ": " + std::strerror(errno));
    folder_ = name;
    path_ = (folder_ / "model.so").string();
    std::ofstream code(path_, std::ios::binary);
    std::ofstream json(folder_ / "model.json", std::ios::binary);
    code << source.code;
    json << source.extern_ops;
    code.close();
    json.close();
    if (!code || !json) {
      remove();
      fail_folder(source, name + ": it cannot be written");
    }
  }

  int descriptor_ = -1;
  std::filesystem::path folder_;
  std::string path_;
};

/// libtorch's own owner of a model container. It also makes the executor of operators without a C entry point, whose
/// class libtorch does not export; calls do not go through it.
class Library::Runner : public torch::inductor::AOTIModelContainerRunner {
 public:
  // Not the class for CUDA, whose header needs CUDA's own: it differs only in run(), which is not used.
  Runner(const std::string& path, c10::Device device)
      : AOTIModelContainerRunner(path, /*num_models=*/1, device.str(), /*cubin_dir=*/"",
                                 /*run_single_threaded=*/false) {}
  AOTInductorModelContainerHandle container() const { return container_handle_; }
  AOTIProxyExecutorHandle extern_ops() const { return proxy_executor_handle_; }
};

Library::Library(const Source& source, size_t inputs, size_t outputs)
    : name_(source.name), inputs_(inputs), outputs_(outputs), exclusive_(source.exclusive), device_(source.device) {
  Files files(source);
  std::unique_ptr<c10::DeviceGuard> guard;  // AOTInductor's code makes its GPU the current one
  if (device_.is_cuda()) guard = std::make_unique<c10::DeviceGuard>(device_);
  try {
    runner_ = std::make_unique<Runner>(files.path(), device_);
  } catch (const std::exception& error) {
    const std::string reason = first_line(error.what());
    if (const std::string name = missing_operator(reason); !name.empty()) {
      fail(source, "an operator that this program has", name,
           "link the library that registers it, or load it with torchcc::load_operators() first; an operator that is "
           "written in Python cannot run here");
    }
    const size_t path = reason.find(files.path() + ": ");
    fail_code(source, path == std::string::npos ? reason : reason.substr(path + files.path().size() + 2));
  }
  container_ = runner_->container();
  extern_ops_ = runner_->extern_ops();
  void* handle = dlopen(files.path().c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) fail_code(source, dlerror());
  run_ = reinterpret_cast<decltype(run_)>(dlsym(handle, "AOTInductorModelContainerRunSingleThreaded"));
  last_error_ = reinterpret_cast<decltype(last_error_)>(dlsym(handle, "AOTInductorGetLastError"));
  const auto num_inputs = reinterpret_cast<decltype(&AOTInductorModelContainerGetNumInputs)>(
      dlsym(handle, "AOTInductorModelContainerGetNumInputs"));
  const auto num_outputs = reinterpret_cast<decltype(&AOTInductorModelContainerGetNumOutputs)>(
      dlsym(handle, "AOTInductorModelContainerGetNumOutputs"));
  dlclose(handle);  // the runner keeps the library open
  files.remove();
  size_t has_inputs = 0;
  size_t has_outputs = 0;
  if (run_ == nullptr || num_inputs == nullptr || num_outputs == nullptr || num_inputs(container_, &has_inputs) != 0 ||
      num_outputs(container_, &has_outputs) != 0) {
    fail_code(source, "a library without AOTInductor's C interface");
  }
  if (has_inputs != inputs || has_outputs != outputs) {
    fail_code(source, std::to_string(has_inputs) + " inputs and " + std::to_string(has_outputs) +
                          " outputs where the manifest states " + std::to_string(inputs) + " and " +
                          std::to_string(outputs));
  }
  if (exclusive_) ++exclusive_libraries;
}

Library::~Library() {
  if (exclusive_) --exclusive_libraries;
  if (!failed_) {
    runner_.reset();
    return;
  }
  // The code keeps the text of its last error in a thread-local string, and clears it in each of its entries, the one
  // that deletes the container among them. At the end of the process that string of the main thread is gone, and the
  // clearing would write into freed memory; a new thread has a string of its own.
  try {
    std::thread([this] { runner_.reset(); }).join();
  } catch (const std::system_error&) {
    runner_.release();  // no thread to be had: rather lose the memory than corrupt it
  }
}

void Library::run(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const {
  // What is compiled has its casts in it, and no gradients: PyTorch's operators in it do neither.
  static constexpr c10::DispatchKeySet kDone =
      c10::autograd_dispatch_keyset_with_ADInplaceOrView |
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA});
  const c10::impl::ExcludeDispatchKeyGuard below(kDone);
  if (exclusive_) {
    const std::unique_lock lock(exclusion);
    run_ready(inputs, outputs);
  } else if (exclusive_libraries.load(std::memory_order_acquire) != 0) [[unlikely]] {
    const std::shared_lock lock(exclusion);
    run_ready(inputs, outputs);
  } else {
    run_ready(inputs, outputs);
  }
}

// The container folds its constants and loads its kernels in its first call. After that its single-threaded entry only
// reads, which makes it safe from many threads; so the first call is alone, and all others need no lock.
void Library::run_ready(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const {
  if (ready_.load(std::memory_order_acquire)) [[likely]] {
    run_now(inputs, outputs);
    return;
  }
  const std::lock_guard lock(first_call_);
  struct Done {
    std::atomic<bool>& flag;
    ~Done() { flag.store(true, std::memory_order_release); }
  } done{ready_};
  run_now(inputs, outputs);
}

void Library::run_now(AtenTensorHandle* inputs, AtenTensorHandle* outputs) const {
  if (device_.is_cuda()) {
    const c10::DeviceGuard guard(device_);
    const auto stream = reinterpret_cast<AOTInductorStreamHandle>(current_stream(device_));
    const int64_t failures = memory_failures();
    if (run_(container_, inputs, inputs_, outputs, outputs_, stream, extern_ops_) == 0) [[likely]]
      return;
    if (memory_failures() != failures) fail_memory();
  } else if (run_(container_, inputs, inputs_, outputs, outputs_, nullptr, extern_ops_) == 0) [[likely]] {
    return;
  }
  fail_run();
}

// The artifact does not hand on PyTorch's own exception.
void Library::fail_memory() const {
  failed_ = true;
  const std::string text = message(name_ + ": the GPU has too little memory left for the compiled code",
                                   {{"expected", "memory for its results and for what is between, on " + device_.str()},
                                    {"got", "an allocation that failed"},
                                    {"fix", "free some, or pass less at once"}});
  TORCH_CHECK_WITH(OutOfMemoryError, false, text);
}

void Library::fail_run() const {
  failed_ = true;
  const char* text = nullptr;
  if (last_error_ != nullptr) last_error_(&text);
  const std::string reason = reason_text(text);
  std::string fix = "check the values of the arguments (an index out of range, a division by zero)";
  // Nothing but a lack of memory makes an allocation fail. Not every allocator tells us.
  if (device_.is_cuda() && (text == nullptr || reason.find("aoti_torch_empty_strided") != std::string::npos)) {
    fix = "if the GPU has no memory left, free some or pass less at once; else " + fix;
  }
  throw Error(message(name_ + ": the compiled code failed while it ran", {{"reason", reason}, {"fix", fix}}));
}

}  // namespace torchcc::detail
