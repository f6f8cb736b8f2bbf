# The functions behind torchcc-config.cmake; those that start with _torchcc are private.

# Sets the cache variable TORCHCC_PYTHON: the interpreter beside which this file is installed, or one that has torchcc.
function(_torchcc_find_python)
  if(TORCHCC_PYTHON)
    return()
  endif()
  find_package(Python3 COMPONENTS Interpreter QUIET)
  set(candidates "$ENV{TORCHCC_PYTHON}" "$ENV{VIRTUAL_ENV}/bin/python" "${Python3_EXECUTABLE}" python3)
  foreach(candidate IN LISTS candidates)
    if(candidate STREQUAL "")
      continue()
    endif()
    execute_process(COMMAND "${candidate}" -c "import torchcc" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
    if(NOT failed)
      set(TORCHCC_PYTHON "${candidate}" CACHE FILEPATH "Python interpreter with torchcc, used only while building")
      return()
    endif()
  endforeach()
endfunction()

# Asks the interpreter to print an expression; an empty string when it cannot.
function(_torchcc_ask result statement)
  set(answer "")
  if(TORCHCC_PYTHON)
    execute_process(COMMAND "${TORCHCC_PYTHON}" -c "${statement}" OUTPUT_VARIABLE answer
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(${result} "${answer}" PARENT_SCOPE)
endfunction()

# Defines torchcc::libtorch: the project's target `torch` if it has one, else find_package(Torch) where Torch_DIR says, else
# the torch of the Python interpreter. The last is imported by hand: TorchConfig.cmake of a CUDA build stops where there
# is no CUDA toolkit, which running such a build does not need. A macro, so that find_package(Torch) runs in the
# caller's scope and its targets are visible there.
macro(_torchcc_find_torch)
  if(NOT TARGET torchcc::libtorch)
    if(NOT TARGET torch AND Torch_DIR)
      find_package(Torch REQUIRED)
    endif()
    if(TARGET torch)
      add_library(torchcc::libtorch INTERFACE IMPORTED GLOBAL)
      target_link_libraries(torchcc::libtorch INTERFACE torch)
    else()
      _torchcc_import_libtorch()
    endif()
  endif()
endmacro()

function(_torchcc_import_libtorch)
  _torchcc_ask(answer "import os, torch; print(os.path.dirname(torch.__file__), int(torch.compiled_with_cxx11_abi()), sep=';')")
  if(NOT answer)
    message(FATAL_ERROR "torchcc: LibTorch was not found.\n"
      "  expected: a target `torch`, Torch_DIR, or a Python interpreter with torch\n"
      "  got:      none of them; TORCHCC_PYTHON is '${TORCHCC_PYTHON}'\n"
      "  fix:      activate the virtual environment that has torchcc, or pass "
      "-DTORCHCC_PYTHON=/path/to/python or -DTorch_DIR=...")
  endif()
  list(GET answer 0 root)
  list(GET answer 1 abi)
  add_library(torchcc::libtorch INTERFACE IMPORTED GLOBAL)
  target_compile_definitions(torchcc::libtorch INTERFACE "_GLIBCXX_USE_CXX11_ABI=${abi}")
  target_include_directories(torchcc::libtorch SYSTEM INTERFACE
    "${root}/include" "${root}/include/torch/csrc/api/include")
  set(libraries "${root}/lib/libtorch.so" "${root}/lib/libtorch_cpu.so" "${root}/lib/libc10.so")
  if(EXISTS "${root}/lib/libtorch_cuda.so")
    # Nothing names its symbols: it registers the CUDA kernels when it is loaded.
    list(APPEND libraries "-Wl,--push-state,--no-as-needed" "${root}/lib/libtorch_cuda.so" "-Wl,--pop-state"
      "${root}/lib/libc10_cuda.so")
  endif()
  target_link_libraries(torchcc::libtorch INTERFACE ${libraries})
endfunction()

# Sets the cache variable TORCHCC_CUDA_INCLUDE where LibTorch is one for CUDA: the folder of CUDA's headers, beside
# torch in the interpreter's packages, or of the CUDA toolkit. Without, CUDA graphs are left out.
function(_torchcc_find_cuda)
  if(TORCHCC_CUDA_INCLUDE OR TORCHCC_LIBRARIES)
    return()
  endif()
  set(hints ${CUDAToolkit_INCLUDE_DIRS} ${CUDA_INCLUDE_DIRS})
  if(NOT TARGET torch_cuda)
    _torchcc_ask(answer "import os, torch; root = os.path.dirname(torch.__file__); cuda = torch.version.cuda; \
print(os.path.exists(root + '/lib/libtorch_cuda.so'), (cuda or '').split('.')[0], os.path.dirname(root), sep=';')")
    if(NOT answer MATCHES "^True")
      return()
    endif()
    list(GET answer 1 major)
    list(GET answer 2 packages)
    list(APPEND hints "${packages}/nvidia/cu${major}/include" "${packages}/nvidia/cuda_runtime/include")
  endif()
  # Not cuda_runtime_api.h itself: pip has it beside torch, without the headers that it includes.
  find_path(TORCHCC_CUDA_INCLUDE crt/host_defines.h HINTS ${hints}
    PATHS "$ENV{CUDA_HOME}/include" "$ENV{CUDA_PATH}/include" /usr/local/cuda/include
    DOC "Folder of CUDA's headers, for CUDA graphs")
endfunction()

macro(_torchcc_find_json)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json QUIET)
  endif()
  if(NOT TARGET nlohmann_json::nlohmann_json)
    _torchcc_ask(_torchcc_json "import nlohmann_json; print(nlohmann_json.get_include())")
    if(NOT _torchcc_json)
      message(FATAL_ERROR "torchcc: the header library nlohmann_json was not found.\n"
        "  fix: pip install nlohmann_json, or install nlohmann-json3-dev")
    endif()
    add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
    target_include_directories(nlohmann_json::nlohmann_json INTERFACE "${_torchcc_json}")
    unset(_torchcc_json)
  endif()
endmacro()

# Defines torchcc::runtime and torchcc::capture from libraries that were built before.
function(_torchcc_import_libraries folder cpp)
  foreach(name IN ITEMS runtime capture)
    set(file "${folder}/libtorchcc_${name}.a")
    if(NOT EXISTS "${file}")
      message(FATAL_ERROR "torchcc: TORCHCC_LIBRARIES is a folder without libtorchcc_${name}.a.\n"
        "  expected: the folder that `torchcc --library-dir` prints\n"
        "  got:      ${folder}\n"
        "  fix:      pass -DTORCHCC_LIBRARIES=$(torchcc --library-dir), or leave it out")
    endif()
    add_library(torchcc::${name} STATIC IMPORTED GLOBAL)
    set_target_properties(torchcc::${name} PROPERTIES IMPORTED_LOCATION "${file}")
  endforeach()
  set_target_properties(torchcc::runtime PROPERTIES INTERFACE_torchcc_TENSORS libtorch)
  set_property(TARGET torchcc::runtime APPEND PROPERTY COMPATIBLE_INTERFACE_STRING torchcc_TENSORS)
  target_compile_features(torchcc::runtime INTERFACE cxx_std_20)
  target_include_directories(torchcc::runtime INTERFACE "${cpp}/include")
  target_link_libraries(torchcc::runtime INTERFACE torchcc::libtorch ${CMAKE_DL_LIBS})
  target_link_libraries(torchcc::capture INTERFACE torchcc::runtime)
endfunction()

# torchcc_add_region(<target> SOURCES <file.py>... NAMESPACE <namespace> [PARAMS <key=value>...] [NO_OUT]
#                    [STANDALONE [ISA <avx2|avx512|scalar>] [MARCH <march>] [WEIGHTS <embedded|file>] [OPENMP] [ONEDNN]])
#
# Compiles the regions of Python files into the static library <target>. Linking it gives the header "<target>.h" with
# one typed function per region in <namespace>; the compiled code is inside the library, so nothing else needs to be
# shipped. Runs again when a source, or a module that it imports from outside site-packages, changes.
#   PARAMS  constants for arguments of the regions, as `torchcc build --param`
#   NO_OUT  leave out the variants that write into given outputs; builds in half the time
#   STANDALONE  generate sources that need no LibTorch, and link torchcc::standalone
#     ISA      the instruction set to generate for: avx2, avx512, or scalar, for any machine; by default this machine's
#     MARCH    the compiler's -march for them; by default the least that they need
#     WEIGHTS  file: not in the program, which gives them before the first call; see the header
#     OPENMP   let large loops use several threads; by default they use one
#     ONEDNN   take operators that are not generated (convolutions) from oneDNN: its CMake package dnnl, or the one of
#              `pip install torchcc[onednn]`
function(torchcc_add_region target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "NO_OUT;STANDALONE;OPENMP;ONEDNN" "NAMESPACE;ISA;MARCH;WEIGHTS" "SOURCES;PARAMS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "torchcc_add_region(${target}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_SOURCES OR NOT arg_NAMESPACE)
    message(FATAL_ERROR "torchcc_add_region(${target}): SOURCES and NAMESPACE are required")
  endif()
  if(NOT TORCHCC_PYTHON)
    message(FATAL_ERROR "torchcc_add_region(${target}): no Python interpreter with torchcc was found.\n"
      "  fix: activate the virtual environment that has torchcc, or pass -DTORCHCC_PYTHON=/path/to/python")
  endif()
  set(sources "")
  foreach(source IN LISTS arg_SOURCES)
    get_filename_component(source "${source}" ABSOLUTE)
    list(APPEND sources "${source}")
  endforeach()
  set(out "${CMAKE_CURRENT_BINARY_DIR}/${target}.torchcc")
  set(options --name "${target}" --namespace "${arg_NAMESPACE}" -o "${out}" --depfile "${out}/${target}.d")
  foreach(param IN LISTS arg_PARAMS)
    list(APPEND options --param "${param}")
  endforeach()
  if(arg_NO_OUT)
    list(APPEND options --no-out)
  endif()
  if(arg_STANDALONE)
    list(APPEND options --standalone)
    if(arg_ISA)
      list(APPEND options --isa "${arg_ISA}")
    endif()
    if(arg_WEIGHTS)
      list(APPEND options --weights "${arg_WEIGHTS}")
    endif()
    if(arg_ONEDNN)
      list(APPEND options --library onednn)
    endif()
    add_custom_command(
      OUTPUT "${out}/${target}.h" "${out}/${target}.cpp" "${out}/${target}.weights" "${out}/${target}.flags"
      COMMAND "${TORCHCC_PYTHON}" -m torchcc build ${sources} ${options}
      DEPENDS ${sources}
      DEPFILE "${out}/${target}.d"
      COMMENT "torchcc: generating the sources of ${target}"
      VERBATIM)
    _torchcc_standalone_library("${target}" "${out}" "${arg_MARCH}" "${arg_OPENMP}" "${arg_ONEDNN}")
    return()
  elseif(arg_ISA OR arg_MARCH OR arg_WEIGHTS OR arg_OPENMP OR arg_ONEDNN)
    message(FATAL_ERROR "torchcc_add_region(${target}): ISA, MARCH, WEIGHTS, OPENMP and ONEDNN belong to STANDALONE")
  endif()
  add_custom_command(
    OUTPUT "${out}/${target}.pt2" "${out}/${target}.h" "${out}/${target}.cpp"
    COMMAND "${TORCHCC_PYTHON}" -m torchcc build ${sources} ${options}
    DEPENDS ${sources}
    DEPFILE "${out}/${target}.d"
    COMMENT "torchcc: compiling the regions of ${target}"
    VERBATIM)
  add_library(${target} STATIC "${out}/${target}.cpp")
  set_source_files_properties("${out}/${target}.cpp" PROPERTIES OBJECT_DEPENDS "${out}/${target}.pt2")
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${target} PUBLIC "${out}")
  target_link_libraries(${target} PUBLIC torchcc::runtime)
endfunction()

# torchcc_add_standalone(<target> [FOLDER <folder>] [MARCH <march>] [OPENMP] [ONEDNN])
#
# Makes the static library <target> of the sources <target>.cpp, <target>.h ... that `torchcc export --target standalone`
# wrote into <folder>, by default <target>.standalone beside this CMakeLists.txt.
function(torchcc_add_standalone target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "OPENMP;ONEDNN" "FOLDER;MARCH" "")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "torchcc_add_standalone(${target}): unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_FOLDER)
    set(arg_FOLDER "${target}.standalone")
  endif()
  get_filename_component(folder "${arg_FOLDER}" ABSOLUTE)
  if(NOT EXISTS "${folder}/${target}.cpp")
    message(FATAL_ERROR "torchcc_add_standalone(${target}): there are no sources.\n"
      "  expected: ${folder}/${target}.cpp\n"
      "  fix:      torchcc export model.py:build -o ${target}.pt2 --target standalone, or pass FOLDER")
  endif()
  _torchcc_standalone_library("${target}" "${folder}" "${arg_MARCH}" "${arg_OPENMP}" "${arg_ONEDNN}")
endfunction()

# Defines torchcc_vector_math: SLEEF's functions where the project has it, else those of glibc, else the C library's, lane by
# lane.
function(_torchcc_find_vector_math)
  if(TARGET torchcc_vector_math)
    return()
  endif()
  add_library(torchcc_vector_math INTERFACE)
  if(TARGET sleef::sleef)
    target_link_libraries(torchcc_vector_math INTERFACE sleef::sleef)
    target_compile_definitions(torchcc_vector_math INTERFACE TORCHCC_SLEEF)
  else()
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_LIBRARIES mvec m)
    set(CMAKE_REQUIRED_FLAGS -mavx2)
    check_cxx_source_compiles("
      #include <immintrin.h>
      extern \"C\" __m256 _ZGVdN8v_erff(__m256) noexcept;
      int main() { return static_cast<int>(_ZGVdN8v_erff(_mm256_set1_ps(1.0f))[0]); }" TORCHCC_HAS_LIBMVEC)
    unset(CMAKE_REQUIRED_LIBRARIES)
    unset(CMAKE_REQUIRED_FLAGS)
    if(TORCHCC_HAS_LIBMVEC)
      target_link_libraries(torchcc_vector_math INTERFACE mvec m)
      target_compile_definitions(torchcc_vector_math INTERFACE TORCHCC_LIBMVEC)
    endif()
  endif()
endfunction()

# Lets torchcc_onednn link oneDNN, by the project's own package or the one of the Python environment.
function(_torchcc_find_onednn)
  get_target_property(linked torchcc_onednn LINK_LIBRARIES)
  if(linked MATCHES "dnnl|DNNL")
    return()
  endif()
  if(NOT TARGET DNNL::dnnl)
    find_package(dnnl CONFIG QUIET)
  endif()
  if(TARGET DNNL::dnnl)
    target_link_libraries(torchcc_onednn PRIVATE DNNL::dnnl)
    return()
  endif()
  _torchcc_ask(place "from torchcc import toolchain; print(toolchain.onednn())")
  if(NOT place)
    message(FATAL_ERROR "torchcc: oneDNN was not found.\n"
      "  fix: pip install torchcc[onednn], or pass -Ddnnl_DIR=...")
  endif()
  target_include_directories(torchcc_onednn SYSTEM PRIVATE "${place}/include")
  find_library(TORCHCC_ONEDNN dnnl HINTS "${place}/lib" REQUIRED)
  target_link_libraries(torchcc_onednn PRIVATE "${TORCHCC_ONEDNN}")
endfunction()

function(_torchcc_standalone_library target folder march openmp onednn)
  if(EXISTS "${folder}/include/torch")
    set(headers "${folder}/include")  # a copy of those that the kernels include
  else()
    _torchcc_ask(headers "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
    if(NOT headers)
      message(FATAL_ERROR "torchcc: PyTorch's headers were not found, which the kernels of ${target} include.\n"
        "  fix: activate the virtual environment that has torchcc, or pass -DTORCHCC_PYTHON=/path/to/python")
    endif()
    set(headers "${headers}/include")
  endif()
  get_target_property(runtime torchcc_standalone SOURCE_DIR)
  get_filename_component(compat "${runtime}/../../include/torchcc/standalone/compat" ABSOLUTE)
  add_library(${target} STATIC "${folder}/${target}.cpp")
  set(flags "@${folder}/${target}.flags")
  if(march)
    list(APPEND flags "-march=${march}")
  endif()
  set_source_files_properties("${folder}/${target}.cpp" PROPERTIES
    OBJECT_DEPENDS "${folder}/${target}.weights;${folder}/${target}.flags"
    COMPILE_OPTIONS "${flags}"
    COMPILE_DEFINITIONS "TORCHCC_WEIGHTS_FILE=\"${folder}/${target}.weights\"")
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
  target_include_directories(${target} PUBLIC "${folder}")
  # Ours stand in for some of PyTorch's, so they come first.
  target_include_directories(${target} BEFORE PRIVATE "${compat}")
  target_include_directories(${target} PRIVATE "${headers}")
  target_compile_options(${target} PRIVATE -w -ffunction-sections -fdata-sections)
  _torchcc_find_vector_math()
  target_link_libraries(${target} PUBLIC torchcc::standalone PRIVATE torchcc_vector_math)
  if(onednn)
    _torchcc_find_onednn()
    target_link_libraries(${target} PRIVATE torchcc_onednn)
  endif()
  if(openmp)
    find_package(OpenMP REQUIRED COMPONENTS CXX)
    target_link_libraries(${target} PUBLIC OpenMP::OpenMP_CXX)
  endif()
endfunction()
