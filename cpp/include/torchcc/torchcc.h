#pragma once

#ifndef TORCHCC_STANDALONE  // which compiles nothing while it runs
#include <torchcc/compile.h>
#include <torchcc/compile_options.h>
#include <torchcc/dynamic.h>
#include <torchcc/export.h>
#include <torchcc/scope.h>
#include <torchcc/symbolic.h>
#endif
#include <torchcc/error.h>
#include <torchcc/function.h>
#include <torchcc/package.h>
#include <torchcc/signature.h>
#include <torchcc/tensor.h>
