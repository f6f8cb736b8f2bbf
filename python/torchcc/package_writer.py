"""Writes packages: ``.pt2`` archives for PyTorch's own loaders, with a manifest for the C++ runtime."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchcc import _torch, paths
from torchcc._version import __version__
from torchcc.errors import ArgumentError, CaptureError, Error, message, reason
from torchcc.package import FORMAT_VERSION, MANIFEST, Function, Training, Variant, architecture, records_of


def write(
    file: Path, functions: Sequence[Function], extras: Mapping[str, str] | None = None, private: bool = False
) -> None:
    """Writes a package. The file appears whole or not at all.

    The first function is stored under the name ``model``, so that ``torch.export.load`` and ``aoti_load_package`` find
    it without being told a name; the others under their own.

    Args:
        file: Where to, with the ending ``.pt2``; an older file is replaced.
        functions: What it holds.
        extras: Further texts to store, by name.
        private: Nobody else may read the file.

    Raises:
        ArgumentError: The file has another ending, by which PyTorch's loaders would not know it.
        CaptureError: PyTorch cannot store a graph.
        OSError: It cannot be written.
    """
    check_name(file)
    keys = _keys(functions)
    programs = {key: one.program for key, one in zip(keys, functions, strict=True) if one.program is not None}
    libraries: dict[str, Sequence[str]] = {}
    for key, function in zip(keys, functions, strict=True):
        for folder, variant in zip(_folders(key, function), function.variants, strict=True):
            libraries[folder] = variant.files
            if variant.files_out:
                libraries[f"{folder}__out"] = variant.files_out
        for folder, training in zip(_training_folders(key, function), function.training, strict=True):
            libraries[folder] = training.files
            libraries[f"{folder}__backward"] = training.files_backward
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{paths.TEMPORARY}{os.getpid()}-") as folder:
        # Twice: the manifest states checksums of what is beside it, and the archive's root folder is the file's name.
        first = Path(folder) / "first" / file.name
        first.parent.mkdir()
        with storing(function.signature.name for function in functions):
            _torch.write_archive(first, programs, libraries, {})
        manifest = _manifest(first, keys, functions)
        first.unlink()
        second = Path(folder) / file.name
        checksum = {MANIFEST: manifest, f"{MANIFEST}.crc32": str(zlib.crc32(manifest.encode()))}
        _torch.write_archive(second, programs, libraries, {**(extras or {}), **checksum})
        paths.publish(second, file, private)


@contextlib.contextmanager
def storing(names: Iterable[str]) -> Iterator[None]:
    """Says what is wrong where PyTorch cannot store the graphs of these functions.

    Raises:
        CaptureError: In place of what PyTorch raises.
    """
    try:
        yield
    except (OSError, Error):
        raise
    except Exception as error:
        raise CaptureError(
            message(
                f"PyTorch cannot store the graph of {', '.join(names)}",
                expected="a graph that torch.export.save takes",
                got=reason(error),
                fix="change what it takes or gives: a comparison of sizes, for instance, cannot be a result",
            )
        ) from error


def check_name(file: Path) -> None:
    """Raises ArgumentError when a package cannot have this name."""
    if file.suffix != ".pt2":
        raise ArgumentError(
            message(f"{file}: not the name of a package", expected="a name that ends with .pt2", fix="add .pt2 to it")
        )


def _keys(functions: Sequence[Function]) -> list[str]:
    """Names of the functions in the archive: unique, also with what :func:`_folders` adds to them."""
    keys: list[str] = []
    taken: set[str] = set()
    for function in functions:
        key = function.signature.name if keys else "model"
        while True:
            folders = [key, *_folders(key, function)]
            training = _training_folders(key, function)
            own = {
                *(name for folder in folders for name in (folder, f"{folder}__out")),
                *(name for folder in training for name in (folder, f"{folder}__backward")),
            }
            if not own & taken:
                break
            key += "_"
        taken |= own
        keys.append(key)
    return keys


def _is_on_gpu(function: Function) -> bool:
    if function.program is not None:
        return _torch.device_of(function.program) == "cuda"
    values = (*function.signature.inputs, *function.signature.outputs)
    return any(value.device == "cuda" for value in values) or any(map(architecture, function.variants))


def _manifest(archive: Path, keys: Sequence[str], functions: Sequence[Function]) -> str:
    with zipfile.ZipFile(archive) as opened:
        records = {
            name: {"size": info.file_size, "crc32": info.CRC}
            for name, info in records_of(opened).items()
            if name.startswith(("data/", "models/"))
        }
    content = {
        "format": "torchcc",
        "format_version": FORMAT_VERSION,
        "producer": f"torchcc {__version__}",
        "functions": [
            {
                "signature": function.signature.to_json(),
                "graph": f"models/{key}.json" if function.program else "",
                "model": key,
                "group": function.group or key,
                **({"device": "cuda"} if _is_on_gpu(function) else {}),
                "variants": [
                    _variant(folder, variant)
                    for folder, variant in zip(_folders(key, function), function.variants, strict=True)
                ],
                **({"training": _training_forms(key, function)} if function.training else {}),
            }
            for key, function in zip(keys, functions, strict=True)
        ],
        "records": records,
    }
    return json.dumps(content, indent=1)


def _folders(key: str, function: Function) -> list[str]:
    """Where the variants of a function are; the first one is where PyTorch's own loader looks."""
    return [key if not position else f"{key}__{position}" for position in range(len(function.variants))]


def _training_folders(key: str, function: Function) -> list[str]:
    return [f"{key}__training{position}" for position in range(len(function.training))]


def _training_forms(key: str, function: Function) -> list[dict[str, Any]]:
    folders = _training_folders(key, function)
    return [_training(folder, one) for folder, one in zip(folders, function.training, strict=True)]


def _needs(variant: Variant | Training) -> dict[str, Any]:
    """What compiled code needs of a machine."""
    target, _, features = _torch.cpu_target()
    return {
        "target": variant.target or target,
        "torch": variant.torch or _torch.tree_version(),
        "cpu_features": list(variant.cpu_features if variant.target else features),
        **({"architecture": architecture(variant)} if architecture(variant) else {}),
    }


def _training(folder: str, training: Training) -> dict[str, Any]:
    code = _code(folder, training, "backward", training.files_backward)
    return {**code, "backward": dict(training.description)}


def _variant(folder: str, variant: Variant) -> dict[str, Any]:
    code = _code(folder, variant, "out", variant.files_out)
    return {**code, **({"uncapturable": variant.uncapturable} if variant.uncapturable else {})}


def _code(folder: str, variant: Variant | Training, form: str, files: Sequence[str]) -> dict[str, Any]:
    """What both kinds state; ``files`` are those of the second form."""
    return {
        **_needs(variant),
        "library": _record(folder, variant.files, ".so"),
        f"library_{form}": _record(f"{folder}__{form}", files, ".so"),
        "extern_ops": _record(folder, variant.files, ".json"),
        f"extern_ops_{form}": _record(f"{folder}__{form}", files, ".json"),
        "exclusive": variant.exclusive,
        "weights": list(variant.weights),
    }


def _record(key: str, files: Sequence[str], suffix: str) -> str:
    """The record of the file with this ending; empty without one. AOTInductor's metadata is JSON too, but not meant."""
    for file in files:
        if file.endswith(suffix) and not file.endswith("_metadata.json"):
            return f"{_torch.LIBRARY_FOLDER}{key}/{Path(file).name}"
    return ""
