#pragma once

#include <torchcc/error.h>
#include <torchcc/function.h>
#include <torchcc/package.h>
#include <torchcc/signature.h>
