"""The generated C++, against golden files; ``TORCHCC_UPDATE=1 pytest tests/python/test_header.py`` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchcc import _version, header
from torchcc.errors import ArgumentError
from torchcc.signature import Signature, Symbol, Value

GOLDEN = Path(__file__).resolve().parent / "golden"

FUNCTIONS = [
    {
        "signature": Signature(
            "bias_gelu",
            (Value("x", "float32", ("n", 768)), Value("bias", "float32", (768,))),
            (Value("out", "float32", ("n", 768)),),
            (Symbol("n", 1, 4096),),
        ),
        "doc": "Adds a bias,\nthen GELU.",
        "out": True,
        "gradients": ["x", "bias"],
    },
    {
        "signature": Signature(
            "moments",
            (
                Value("default", "bfloat16", (["*", 2, "n"], "m"), mutated=True),
                Value("out0", "int64", ("n",)),
                Value("alpha", "float64", number=True),
                Value("k", "int64", number=True, minimum=0, maximum=7),
                Value("flag", "bool", number=True),
            ),
            (Value("out0", "float64", ()), Value("out1", "int64", (["+", "n", 1],))),
            (Symbol("n"), Symbol("m", 2)),
        ),
        "doc": "",
        "out": True,
        "gradients": [],
    },
    {
        "signature": Signature("found", (Value("at", "bool", (3,)),), (Value("out", "int64", (None, 1)),)),
        "doc": 'Says "where" and C:\\',
        "out": False,
        "gradients": [],
    },
]


@pytest.mark.parametrize("suffix", ["h", "cpp"])
def test_golden(suffix: str, tmp_path: Path) -> None:
    written = header.write(tmp_path, "kernels", "app::math", ["kernels.py", "more.py"], FUNCTIONS)
    text = written[suffix == "cpp"].read_text()
    text = text.replace(str(tmp_path), "FOLDER").replace(f"torchcc {_version.__version__}", "torchcc VERSION")
    golden = GOLDEN / f"kernels.{suffix}"
    if os.environ.get("TORCHCC_UPDATE"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", ["class", "2x", "a-b", "", "a::b"])
def test_names_that_cpp_refuses(name: str) -> None:
    with pytest.raises(ArgumentError, match="C\\+\\+ identifier"):
        header.check_identifier(name, "region")


def test_nested_namespaces() -> None:
    header.check_identifier("a::b", "namespace")
    with pytest.raises(ArgumentError):
        header.check_identifier("a::class", "namespace")
