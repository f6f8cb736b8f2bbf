#include "compiler.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "log.h"

extern char** environ;

namespace torchcc::detail {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

std::string last_line(const fs::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::string last;
  while (std::getline(stream, line)) {
    if (line.find_first_not_of(" \t") != std::string::npos) last = line;
  }
  return last;
}

/// The child: a Python process that reads requests and writes answers, one line of JSON each.
class Process {
 public:
  /// Empty error on success.
  std::string start(const std::string& python, const fs::path& errors) {
    std::array<int, 2> in{-1, -1};
    std::array<int, 2> out{-1, -1};
    // A socket, because writing to one whose other end is gone can be had without a signal.
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in.data()) != 0) return std::strerror(errno);
    if (::pipe2(out.data(), O_CLOEXEC) != 0) {
      const std::string reason = std::strerror(errno);
      ::close(in[0]);
      ::close(in[1]);
      return reason;
    }
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in[1], 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    posix_spawn_file_actions_addopen(&files, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    // A group of its own: it is ended with the C++ compilers that it has started.
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    std::array<char*, 4> arguments{const_cast<char*>(python.c_str()), const_cast<char*>("-m"),
                                   const_cast<char*>("torchcc.compiler"), nullptr};
    // Modules are not taken from the program's working folder (Python 3.11; others do not know the variable).
    std::string safe_path = "PYTHONSAFEPATH=1";
    std::vector<char*> environment{safe_path.data()};
    for (char** variable = environ; *variable != nullptr; ++variable) environment.push_back(*variable);
    environment.push_back(nullptr);
    const int failed = ::posix_spawnp(&pid_, python.c_str(), &files, &attributes, arguments.data(), environment.data());
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    ::close(in[1]);
    ::close(out[1]);
    if (failed != 0) {
      ::close(in[0]);
      ::close(out[0]);
      pid_ = -1;
      return std::strerror(failed);
    }
    in_ = in[0];
    out_ = out[0];
    errors_ = errors;
    rest_.clear();
    return "";
  }

  bool runs() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }

  bool send(const std::string& line) const {
    size_t sent = 0;
    while (sent < line.size()) {
      const ssize_t count = ::send(in_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      sent += static_cast<size_t>(count);
    }
    return true;
  }

  enum class Read { line, ended, late };
  Read read(std::string& line, Clock::time_point deadline) {
    for (;;) {
      if (const size_t end = rest_.find('\n'); end != std::string::npos) {
        line = rest_.substr(0, end);
        rest_.erase(0, end + 1);
        return Read::line;
      }
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
      if (left <= 0) return Read::late;
      pollfd waiting{out_, POLLIN, 0};
      const int ready = ::poll(&waiting, 1, static_cast<int>(std::min<int64_t>(left, 60000)));
      if (ready < 0 && errno != EINTR) return Read::ended;
      if (ready <= 0) continue;
      std::array<char, 4096> buffer;
      const ssize_t count = ::read(out_, buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return Read::ended;
      rest_.append(buffer.data(), static_cast<size_t>(count));
    }
  }

  /// Ends it, and says how it ended and the last line that it printed.
  std::string stop() {
    if (pid_ <= 0) return "";
    ::kill(-pid_, SIGKILL);
    return reap();
  }

  std::string reap() {
    ::close(in_);
    ::close(out_);
    int status = 0;
    const pid_t waited = ::waitpid(pid_, &status, 0);
    ::kill(-pid_, SIGKILL);  // C++ compilers that a dead one left behind
    pid_ = -1;
    std::string text = "it ended";
    if (waited > 0 && WIFSIGNALED(status)) text = "it was killed by signal " + std::to_string(WTERMSIG(status));
    if (waited > 0 && WIFEXITED(status)) text = "it ended with status " + std::to_string(WEXITSTATUS(status));
    const std::string last = last_line(errors_);
    std::error_code ignored;
    fs::remove(errors_, ignored);
    return text + (last.empty() ? "" : " (" + last + ")");
  }

 private:
  pid_t pid_ = -1;
  int in_ = -1;
  int out_ = -1;
  fs::path errors_;
  std::string rest_;
};

/// Interpreters to try, the best first.
std::vector<std::string> interpreters() {
  const char* chosen = std::getenv("TORCHCC_PYTHON");
  if (chosen != nullptr && *chosen != '\0') return {chosen};
  std::vector<std::string> all;
  if (std::string(TORCHCC_BUILD_PYTHON) != "") all.emplace_back(TORCHCC_BUILD_PYTHON);
  all.emplace_back("python3");
  return all;
}

class Compiler {
 public:
  ~Compiler() { stop(); }

  CompileAnswer compile(const CompileRequest& request) {
    const std::lock_guard lock(mutex_);
    // Another thread or process may have compiled the same meanwhile.
    std::error_code error;
    if (request.exports.empty() && fs::exists(request.package, error)) return {};
    if (process_.runs() && !stopped_) return ask(request, false);
    std::string reasons;
    for (const std::string& python : interpreters()) {
      if (stopped_) return {"the program is ending"};
      const fs::path errors = fs::path(request.log).parent_path() / ("compiler-" + std::to_string(::getpid()) + ".log");
      if (const std::string error = process_.start(python, errors); !error.empty()) {
        reasons += (reasons.empty() ? "" : "; ") + python + ": " + error;
        continue;
      }
      child_.store(process_.pid());
      log(Topic::compile, request.function,
          "started " + python + " -m torchcc.compiler, process " + std::to_string(process_.pid()));
      CompileAnswer answer = ask(request, true);
      if (answer.kind != "start") return answer;
      reasons += (reasons.empty() ? "" : "; ") + python + ": " + answer.error;
    }
    return {"no Python with torchcc was found (" + reasons + "): set TORCHCC_PYTHON to one, or TORCHCC_COMPILER=off"};
  }

  void stop() {
    stopped_ = true;
    const pid_t child = child_.exchange(-1);
    if (child > 0) ::kill(-child, SIGKILL);  // a request that waits for it then lets go of the lock
    const std::lock_guard lock(mutex_);
    process_.stop();
  }

 private:
  CompileAnswer ask(const CompileRequest& request, bool is_first) {
    Json message{{"id", ++id_},
                 {"trace", trace_file(request)},
                 {"tensors", tensors_file(request)},
                 {"package", request.package},
                 {"key", request.key},
                 {"freeze", request.freeze},
                 {"against", request.against},
                 {"log", request.log}};
    message["threads"] = request.threads;
    message["options"] = Json::parse(request.options);
    if (request.device.is_cuda()) message["gpu"] = request.device.index();
    if (!request.exports.empty()) message["export"] = Json::parse(request.exports);
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(std::min(request.timeout, 1e8)));
    if (!process_.send(message.dump() + "\n")) return ended(is_first);
    bool answered = false;
    for (;;) {
      std::string line;
      switch (process_.read(line, deadline)) {
        case Process::Read::late:
          child_.store(-1);
          process_.stop();
          return {"the compiler took longer than " + seconds_text(request.timeout) + " s (CompileOptions::timeout)"};
        case Process::Read::ended: return ended(is_first && !answered);
        case Process::Read::line: break;
      }
      answered = true;
      const Json answer = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!answer.is_object() || answer.value("id", -1) != id_) continue;
      if (answer.contains("progress")) {
        const std::string text = answer.value("progress", "");
        log(Topic::compile, request.function, text);
        if (request.progress) request.progress(text);
        continue;
      }
      return {answer.value("error", ""), answer.value("kind", ""), answer.value("seconds", 0.0),
              answer.value("slower", "")};
    }
  }

  CompileAnswer ended(bool at_start) {
    child_.store(-1);
    const std::string how = process_.stop();
    if (at_start) return {how, "start"};
    return {"the compiler process is gone: " + how};
  }

  static std::string seconds_text(double seconds) {
    std::string text = std::to_string(seconds);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  }
  static std::string trace_file(const CompileRequest& request) { return request.log + ".json"; }
  static std::string tensors_file(const CompileRequest& request) { return request.log + ".pt"; }

  std::mutex mutex_;
  Process process_;
  std::atomic<pid_t> child_{-1};
  std::atomic<bool> stopped_{false};
  int id_ = 0;
};

Compiler& compiler() {
  static Compiler instance;
  return instance;
}

/// A file for the compiler, removed at the end.
class Temporary {
 public:
  Temporary(fs::path file, const char* data, size_t size) : file_(std::move(file)) {
    const int descriptor = ::open(file_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (descriptor < 0) {
      error_ = std::strerror(errno);
      return;
    }
    size_t written = 0;
    while (written < size && error_.empty()) {
      const ssize_t count = ::write(descriptor, data + written, size - written);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) error_ = std::strerror(errno);
      if (count > 0) written += static_cast<size_t>(count);
    }
    ::close(descriptor);
  }
  ~Temporary() {
    std::error_code ignored;
    fs::remove(file_, ignored);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  std::string error() const { return error_.empty() ? "" : file_.string() + ": " + error_; }

 private:
  fs::path file_;
  std::string error_;
};

}  // namespace

CompileAnswer compile_trace(const CompileRequest& request) {
  const Temporary trace(request.log + ".json", request.trace.data(), request.trace.size());
  const Temporary tensors(request.log + ".pt", request.tensors.data(), request.tensors.size());
  for (const std::string& error : {trace.error(), tensors.error()}) {
    if (!error.empty()) return {"the recording cannot be written for the compiler: " + error, "write"};
  }
  return compiler().compile(request);
}

void prepare_compiler() { compiler(); }

void stop_compiler() { compiler().stop(); }

}  // namespace torchcc::detail
