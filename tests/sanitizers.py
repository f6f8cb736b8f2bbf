"""How programs that were built with a sanitizer are run; by the name of the preset."""

from __future__ import annotations

import ctypes
from pathlib import Path

HERE = Path(__file__).resolve().parent

_ADDR_NO_RANDOMIZE = 0x0040000

SETTINGS: dict[str, dict[str, str]] = {
    "release": {},
    "asan-ubsan": {
        # Sizes in damaged packages ask for more memory than there is; that has to be an exception, not an abort.
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": f"suppressions={HERE / 'cpp' / 'lsan.supp'}:use_tls=0:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "tsan": {"TSAN_OPTIONS": f"halt_on_error=1:suppressions={HERE / 'cpp' / 'tsan.supp'}"},
}


def fix_addresses() -> None:
    """ThreadSanitizer of GCC 12 has no room for its shadow memory where the kernel scatters addresses widely."""
    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)
