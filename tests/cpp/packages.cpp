// Loading: from files and memory, many times, and in the face of a dynamic loader that knows libraries by their paths.
#include <cstdlib>
#include <fstream>
#include <optional>

#include "compare.h"

namespace {

using test::same;

at::Tensor expected(const at::Tensor& x, const at::Tensor& y, bool twin) {
  return twin ? at::relu(x + y) + 1 : at::relu(x + y);
}

void check(const torchcc::Package& package, bool twin) {
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  BOOST_TEST(same(package["add_relu"](x, y), expected(x, y, twin)));
  at::Tensor out = at::empty({16});
  package["add_relu"].call_out({&out, 1}, std::vector<torchcc::Argument>{x, y});
  BOOST_TEST(same(out, expected(x, y, twin)));
}

/// Sets an environment variable for a scope.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  ~Variable() {
    if (old_) {
      setenv(name_, old_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> old_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(packages)

BOOST_AUTO_TEST_CASE(names_and_handles) {
  const torchcc::Package package = test::regions();
  BOOST_TEST(package.names().size() == 10U);
  BOOST_TEST(package.names()[0] == "add_relu");
  BOOST_CHECK_THROW(package["absent"], torchcc::PackageError);
  BOOST_CHECK_THROW(torchcc::Package()["add_relu"], torchcc::PackageError);
  BOOST_TEST(torchcc::Package().names().empty());
  BOOST_TEST(!torchcc::Function().defined());
  BOOST_TEST(package["add_relu"].defined());
}

BOOST_AUTO_TEST_CASE(functions_outlive_their_package) {
  std::optional<torchcc::Package> package = torchcc::load(test::file("twin.pt2"));
  torchcc::Function first = (*package)["add_relu"];
  package.reset();
  const torchcc::Function second = first;
  first = torchcc::Function();
  const at::Tensor x = at::randn({16});
  BOOST_TEST(same(second(x, x), expected(x, x, true)));
  torchcc::Function copy(second);
  const torchcc::Function third = std::move(copy);
  BOOST_TEST(same(third(x, x), expected(x, x, true)));
}

BOOST_AUTO_TEST_CASE(results_outlive_the_code) {
  const at::Tensor x = at::randn({5, 24});
  at::Tensor result;
  {
    const torchcc::Package package = torchcc::load(test::file("regions.pt2"));
    result = package["encoder"](x);
  }
  BOOST_TEST(same(result, test::regions()["encoder"](x)));
}

BOOST_AUTO_TEST_CASE(memory_may_be_freed) {
  std::optional<std::vector<std::byte>> bytes = test::read(test::file("twin.pt2"));
  const torchcc::Package package = torchcc::load(std::span<const std::byte>(*bytes));
  std::fill(bytes->begin(), bytes->end(), std::byte{0xAA});
  bytes.reset();
  check(package, true);
}

BOOST_AUTO_TEST_CASE(file_may_be_removed_or_replaced) {
  const test::Folder folder;
  const std::filesystem::path file = folder.path() / "package.pt2";
  std::filesystem::copy_file(test::file("twin.pt2"), file);
  const torchcc::Package twin = torchcc::load(file);
  std::filesystem::remove(file);
  std::filesystem::copy_file(test::file("regions.pt2"), file);
  const torchcc::Package regions = torchcc::load(file);
  std::ofstream(file) << "not a package";
  BOOST_CHECK_THROW(torchcc::load(file), torchcc::PackageError);
  std::filesystem::remove(file);
  check(twin, true);
  check(regions, false);
}

BOOST_AUTO_TEST_CASE(names_of_files_do_not_matter) {
  const test::Folder folder;
  const std::filesystem::path file = folder.path() / "a name with spaces, ünicode and no ending";
  std::filesystem::copy_file(test::file("twin.pt2"), file);
  check(torchcc::load(file), true);
}

BOOST_AUTO_TEST_CASE(the_same_fifty_times) {
  const std::vector<std::byte> bytes = test::read(test::file("twin.pt2"));
  check(torchcc::load(bytes), true);
  const int64_t descriptors = test::descriptors();
  const int64_t alive = test::alive();
  for (int i = 0; i < 50; ++i) check(torchcc::load(bytes), true);
  BOOST_TEST(test::descriptors() == descriptors);
  BOOST_TEST(test::alive() == alive);
}

BOOST_AUTO_TEST_CASE(two_in_turn) {
  const std::vector<std::byte> regions = test::read(test::file("regions.pt2"));
  const std::vector<std::byte> twin = test::read(test::file("twin.pt2"));
  for (int i = 0; i < 4; ++i) {
    check(torchcc::load(regions), false);
    check(torchcc::load(twin), true);
  }
  const torchcc::Package first = torchcc::load(regions);
  const torchcc::Package second = torchcc::load(twin);
  check(first, false);
  check(second, true);
}

BOOST_AUTO_TEST_CASE(nothing_is_left_in_the_temporary_folder) {
  const test::Folder folder;
  const Variable variable("TMPDIR", folder.path().string());
  const torchcc::Package package = torchcc::load(test::file("regions.pt2"));
  BOOST_TEST(std::filesystem::is_empty(folder.path()));
  const at::Tensor x = at::randn({2, 3, 3}, at::kDouble);
  BOOST_TEST(same(package["log_determinant"].call({x})[1], std::get<1>(at::linalg_slogdet(x))));
}

BOOST_AUTO_TEST_CASE(a_temporary_folder_that_cannot_be_used) {
  const int64_t descriptors = test::descriptors();
  const Variable variable("TMPDIR", "/nonexistent");
  BOOST_CHECK_THROW(torchcc::load(test::file("regions.pt2")), torchcc::PackageError);
  BOOST_TEST(test::descriptors() == descriptors);
  check(torchcc::load(test::file("twin.pt2")), true);  // needs none
}

BOOST_AUTO_TEST_CASE(things_that_are_not_files) {
  const test::Folder folder;
  BOOST_CHECK_THROW(torchcc::load(folder.path()), torchcc::PackageError);
  BOOST_CHECK_THROW(torchcc::load(folder.path() / "missing"), torchcc::PackageError);
  BOOST_CHECK_THROW(torchcc::load(std::filesystem::path("/dev/null")), torchcc::PackageError);
  BOOST_CHECK_THROW(torchcc::load(std::filesystem::path()), torchcc::PackageError);
  BOOST_CHECK_THROW(torchcc::load(std::span<const std::byte>()), torchcc::PackageError);
}

BOOST_AUTO_TEST_SUITE_END()
