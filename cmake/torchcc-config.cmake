# find_package(torchcc): builds torchcc's C++ libraries inside this project, against this project's LibTorch.
#
# Targets
#   torchcc::runtime    load packages and call their functions
#   torchcc::capture    torchcc::compile: record C++ code as it runs, compile it, replay it; includes torchcc::runtime
#   torchcc::standalone call functions that were generated as sources; needs no LibTorch
# Functions
#   torchcc_add_region(<target> SOURCES <file.py>... NAMESPACE <namespace> [PARAMS <key=value>...] [NO_OUT] [STANDALONE ...])
#   torchcc_add_standalone(<target> [FOLDER <folder>] [MARCH <march>] [OPENMP] [ONEDNN])
#
# find_package(torchcc COMPONENTS standalone) looks for no LibTorch, and gives torchcc::standalone alone.
#
# LibTorch is the project's target `torch` if it exists, else find_package(Torch) if Torch_DIR is set, else the torch of the
# Python interpreter. Set TORCHCC_PYTHON to choose the interpreter, which also compiles the regions.
#
# Set TORCHCC_LIBRARIES to the folder that `torchcc --library-dir` prints to link libraries that were built before, with
# this interpreter's torch and its compiler, in place of building them in each project.

cmake_minimum_required(VERSION 3.18)

include("${CMAKE_CURRENT_LIST_DIR}/torchcc-functions.cmake")

_torchcc_find_python()
get_filename_component(_torchcc_cpp "${CMAKE_CURRENT_LIST_DIR}/../cpp" ABSOLUTE)
if(NOT TARGET torchcc::standalone)
  add_subdirectory("${_torchcc_cpp}/src/standalone" "${CMAKE_BINARY_DIR}/torchcc-standalone" EXCLUDE_FROM_ALL)
endif()
if(torchcc_FIND_COMPONENTS STREQUAL "standalone")
  unset(_torchcc_cpp)
  return()
endif()
_torchcc_find_torch()
_torchcc_find_json()
_torchcc_find_cuda()

if(NOT TARGET torchcc::runtime)
  if(TORCHCC_LIBRARIES)
    _torchcc_import_libraries("${TORCHCC_LIBRARIES}" "${_torchcc_cpp}")
  else()
    add_subdirectory("${_torchcc_cpp}" "${CMAKE_BINARY_DIR}/torchcc" EXCLUDE_FROM_ALL)
  endif()
endif()
unset(_torchcc_cpp)
