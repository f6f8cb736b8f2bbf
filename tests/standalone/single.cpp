// `single <calls> <results>`: makes the calls of a file with one model, whose name the build gives.
#include <exception>
#include <iostream>
#include <string>

#include "calls.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define JOIN_OF(a, b) a##b
#define JOIN(a, b) JOIN_OF(a, b)

// clang-format off: it would part what the preprocessor joins
#include TEXT(MODEL.h)
// clang-format on

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    calls::make(argv[1], argv[2], [](const std::string& name) -> const torchcc::Function& {
      return MODEL::JOIN(MODEL, _package)()[name.substr(name.find('.') + 1)];
    });
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
