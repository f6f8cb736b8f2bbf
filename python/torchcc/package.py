"""Writes packages: a ``.pt2`` archive that PyTorch's own loaders read, with a manifest for the C++ runtime."""

from __future__ import annotations

import json
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from torchcc import _torch
from torchcc._version import __version__
from torchcc.signature import Signature

#: The manifest's format; the runtime reads exactly one (kFormatVersion in cpp/src/runtime/manifest.h).
FORMAT_VERSION = 1

MANIFEST = "torchcc.json"


@dataclass(frozen=True)
class Function:
    """One function of a package: its signature, graph, and the files that AOTInductor made for it.

    ``files_out`` is empty when there is no form that writes into given outputs.
    """

    signature: Signature
    program: ExportedProgram
    files: Sequence[str]
    files_out: Sequence[str]
    exclusive: bool


def write(file: Path, functions: Sequence[Function]) -> None:
    """Writes a package. The file appears whole or not at all.

    The first function is stored under the name ``model``, so that ``torch.export.load`` and ``aoti_load_package`` find
    it without being told a name; the others under their own.
    """
    keys = ["model", *(function.signature.name for function in functions[1:])]
    programs = {key: function.program for key, function in zip(keys, functions, strict=True)}
    libraries: dict[str, Sequence[str]] = {}
    for key, function in zip(keys, functions, strict=True):
        libraries[key] = function.files
        if function.files_out:
            libraries[f"{key}__out"] = function.files_out
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".torchcc-") as folder:
        # Twice: the manifest states checksums of what is beside it, and the archive's root folder is the file's name.
        first = Path(folder) / "first" / file.name
        first.parent.mkdir()
        _torch.write_archive(first, programs, libraries, {})
        manifest = _manifest(first, keys, functions)
        second = Path(folder) / file.name
        extras = {MANIFEST: manifest, f"{MANIFEST}.crc32": str(zlib.crc32(manifest.encode()))}
        _torch.write_archive(second, programs, libraries, extras)
        second.replace(file)


def _manifest(archive: Path, keys: Sequence[str], functions: Sequence[Function]) -> str:
    records = {}
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.filename.partition("/")[2]
            if name.startswith(("data/", "models/")):
                records[name] = {"size": info.file_size, "crc32": info.CRC}
    content = {
        "format": "torchcc",
        "format_version": FORMAT_VERSION,
        "producer": f"torchcc {__version__}",
        "functions": [
            {
                "signature": function.signature.to_json(),
                "graph": f"models/{key}.json",
                "variants": [_variant(key, function)],
            }
            for key, function in zip(keys, functions, strict=True)
        ],
        "records": records,
    }
    return json.dumps(content, indent=1)


def _variant(key: str, function: Function) -> dict[str, Any]:
    target, _, features = _torch.cpu_target()
    return {
        "target": target,
        "torch": _torch.tree_version(),
        "cpu_features": list(features),
        "library": _record(key, function.files, ".so"),
        "library_out": _record(f"{key}__out", function.files_out, ".so"),
        "extern_ops": _record(key, function.files, ".json"),
        "extern_ops_out": _record(f"{key}__out", function.files_out, ".json"),
        "exclusive": function.exclusive,
    }


def _record(key: str, files: Sequence[str], suffix: str) -> str:
    """The record of the file with this ending; empty without one. AOTInductor's metadata is JSON too, but not meant."""
    for file in files:
        if file.endswith(suffix) and not file.endswith("_metadata.json"):
            return f"{_torch.LIBRARY_FOLDER}{key}/{Path(file).name}"
    return ""
