#pragma once

#include <torchcc/compile.h>
#include <torchcc/compile_options.h>
#include <torchcc/dynamic.h>
#include <torchcc/error.h>
#include <torchcc/export.h>
#include <torchcc/function.h>
#include <torchcc/package.h>
#include <torchcc/scope.h>
#include <torchcc/signature.h>
