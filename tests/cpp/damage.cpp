// Damaged packages: a PackageError, or, where a byte is changed that nobody reads, results that are exactly right.
#include <algorithm>
#include <array>
#include <cstring>
#include <random>

#include "compare.h"

namespace {

using Bytes = std::vector<std::byte>;

/// What became of all the packages of one kind of damage.
struct Tally {
  int refused = 0;
  int right = 0;
};

/// Loads a package that was twin.pt2 once. Any other exception than PackageError, or a wrong result, fails the test.
void attempt(const Bytes& bytes, Tally& tally) {
  torchcc::Package package;
  try {
    package = torchcc::load(bytes);
  } catch (const torchcc::PackageError&) {
    ++tally.refused;
    return;
  }
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  BOOST_TEST_REQUIRE(test::same(package["add_relu"](x, y), at::relu(x + y) + 1));
  at::Tensor out = at::empty({16});
  package["add_relu"].call_out({&out, 1}, std::vector<torchcc::Argument>{x, y});
  BOOST_TEST_REQUIRE(test::same(out, at::relu(x + y) + 1));
  ++tally.right;
}

void runs_its_graph(const torchcc::Function& function) {
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  BOOST_TEST(test::same(function(x, y), at::relu(x + y) + 1));
  BOOST_TEST(function.stats().backend == "portable");
  BOOST_TEST(function.stats().portable_calls == 1);
}

void report(const char* kind, const Tally& tally) {
  BOOST_TEST_MESSAGE(kind << ": " << tally.refused << " refused, " << tally.right << " loaded with right results");
}

struct Original {
  Bytes bytes = test::read(test::file("twin.pt2"));
  std::mt19937_64 random{7};

  size_t below(size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random); }

  /// Where the zip's directory begins: the record at the end says so, 16 bytes after its mark.
  size_t directory() const {
    constexpr std::array mark{std::byte{'P'}, std::byte{'K'}, std::byte{5}, std::byte{6}};
    const auto end_record = std::find_end(bytes.begin(), bytes.end(), mark.begin(), mark.end());
    uint32_t offset = 0;
    std::memcpy(&offset, &*(end_record + 16), sizeof(offset));
    return offset;
  }

  /// Flips one random bit of each of `count` random bytes from `begin` on, one at a time.
  Tally flip(size_t begin, int count) {
    Tally tally;
    for (int i = 0; i < count; ++i) {
      Bytes damaged = bytes;
      const size_t position = begin + below(bytes.size() - begin);
      damaged[position] ^= std::byte{1} << below(8);
      BOOST_TEST_CONTEXT("byte " << position) { attempt(damaged, tally); }
    }
    return tally;
  }
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(damage, Original)

BOOST_AUTO_TEST_CASE(none) {
  Tally tally;
  attempt(bytes, tally);
  BOOST_TEST(tally.right == 1);
}

BOOST_AUTO_TEST_CASE(truncation) {
  Tally tally;
  for (size_t length = 0; length < 40; ++length) attempt({bytes.begin(), bytes.begin() + length}, tally);
  for (size_t missing = 1; missing <= 100; ++missing) attempt({bytes.begin(), bytes.end() - missing}, tally);
  for (int i = 0; i < 60; ++i) attempt({bytes.begin(), bytes.begin() + below(bytes.size())}, tally);
  report("truncated", tally);
  BOOST_TEST(tally.right == 0);
}

BOOST_AUTO_TEST_CASE(bit_flips) {
  const Tally anywhere = flip(0, 300);
  report("bit flips anywhere", anywhere);
  BOOST_TEST(anywhere.refused > 250);
  report("bit flips in the directory", flip(directory(), 200));
}

BOOST_AUTO_TEST_CASE(several_bit_flips) {
  Tally tally;
  for (int i = 0; i < 60; ++i) {
    Bytes damaged = bytes;
    for (int k = 0; k < 20; ++k) damaged[below(bytes.size())] ^= std::byte{1} << below(8);
    attempt(damaged, tally);
  }
  report("twenty bit flips", tally);
}

BOOST_AUTO_TEST_CASE(ranges) {
  Tally zeroed;
  Tally swapped;
  Tally repeated;
  for (int i = 0; i < 60; ++i) {
    const auto length = static_cast<std::ptrdiff_t>(1 + below(4096));
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size() - 2 * 4096));
    const auto second = first + length + static_cast<std::ptrdiff_t>(below(bytes.end() - first - 2 * length + 1));
    Bytes damaged = bytes;
    const auto begin = damaged.begin() + (first - bytes.begin());
    std::fill(begin, begin + length, std::byte{0});
    attempt(damaged, zeroed);
    damaged = bytes;
    std::swap_ranges(begin, begin + length, damaged.begin() + (second - bytes.begin()));
    attempt(damaged, swapped);
    damaged = bytes;
    damaged.insert(damaged.begin() + (second - bytes.begin()), first, first + length);
    attempt(damaged, repeated);
  }
  report("zeroed ranges", zeroed);
  report("swapped ranges", swapped);
  report("repeated ranges", repeated);
}

BOOST_AUTO_TEST_CASE(what_is_not_a_package) {
  Tally tally;
  attempt({}, tally);
  attempt(Bytes(1), tally);
  attempt(Bytes(100'000), tally);
  Bytes noise(100'000);
  std::generate(noise.begin(), noise.end(), [&] { return static_cast<std::byte>(below(256)); });
  attempt(noise, tally);
  Bytes doubled = bytes;
  doubled.insert(doubled.end(), bytes.begin(), bytes.begin() + 1000);
  attempt(doubled, tally);
  BOOST_TEST(tally.refused + tally.right == 5);
  report("other bytes", tally);
}

// Files that tests/conftest.py made of twin.pt2: those named good-... load, those named bad-... do not.
BOOST_AUTO_TEST_CASE(rewritten) {
  Tally tally;
  for (const auto& entry : std::filesystem::directory_iterator(test::file("rewritten"))) {
    const std::string name = entry.path().filename().string();
    const int right = tally.right;
    BOOST_TEST_CONTEXT(name) {
      if (name.starts_with("portable-")) {
        runs_its_graph(torchcc::load(test::read(entry.path()))["add_relu"]);
        continue;
      }
      attempt(test::read(entry.path()), tally);
      BOOST_TEST((tally.right != right) == name.starts_with("good-"));
    }
  }
  report("rewritten", tally);
  BOOST_TEST(tally.refused > 50);
}

BOOST_AUTO_TEST_SUITE_END()
