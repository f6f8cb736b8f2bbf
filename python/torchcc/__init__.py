"""torchcc: torch.compile for C++.

This package is the compiler side: it captures PyTorch code, compiles it with Inductor, and writes packages and headers
that C++ programs use without Python.
"""

from torchcc._version import __version__
from torchcc.builder import Built, build
from torchcc.errors import ArgumentError, CaptureError, CompileError, Error, PackageError
from torchcc.exporter import Exported, export
from torchcc.loading import load
from torchcc.method import Method
from torchcc.region import Region, region

__all__ = [
    "ArgumentError",
    "Built",
    "CaptureError",
    "CompileError",
    "Error",
    "Exported",
    "Method",
    "PackageError",
    "Region",
    "__version__",
    "build",
    "export",
    "load",
    "region",
]
