"""Writes packages: a ``.pt2`` archive that PyTorch's own loaders read, with a manifest for the C++ runtime."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from torchcc import _torch
from torchcc._version import __version__
from torchcc.errors import PackageError, message
from torchcc.signature import Signature

#: The manifest's format; the runtime reads exactly one (kFormatVersion in cpp/src/runtime/manifest.h).
FORMAT_VERSION = 2

MANIFEST = "torchcc.json"

#: Of packages made from traces: the trace, and the text by which the cache knows what it is for.
TRACE = "torchcc_trace.json"
KEY = "torchcc_key.txt"

#: Prefix of temporary folders beside a package, before the number of the process that writes it.
TEMPORARY = ".torchcc-"


@dataclass(frozen=True)
class Variant:
    """One compiled form of a function.

    Attributes:
        files: What AOTInductor made.
        files_out: The same for the form that writes into given outputs; empty when there is none.
        exclusive: Whether the code must run alone (integer division).
        weights: Names of the weights that the code takes as inputs; all others are burnt in.
        target: What it was compiled for, as in :func:`torchcc._torch.cpu_target`; empty for this machine.
        torch: Major and minor version of torch; empty for this one.
        cpu_features: What the code needs, if ``target`` is given.
    """

    files: Sequence[str]
    files_out: Sequence[str] = ()
    exclusive: bool = False
    weights: Sequence[str] = ()
    target: str = ""
    torch: str = ""
    cpu_features: Sequence[str] = ()


@dataclass(frozen=True)
class Function:
    """One function of a package.

    Attributes:
        signature: What it takes and gives.
        program: Its graph; ``None`` when only compiled code is shipped.
        variants: Compiled forms, the best first.
        group: Functions of one group share their weights; by default each has its own.
    """

    signature: Signature
    program: ExportedProgram | None
    variants: Sequence[Variant]
    group: str = ""


def others(variants: Sequence[Variant], new: Sequence[Variant]) -> list[Variant]:
    """The variants of which ``new`` has none for the same target and torch that burns in the same weights."""
    taken = {(one.target, one.torch or _torch.tree_version(), tuple(one.weights)) for one in new}
    return [one for one in variants if (one.target, one.torch, tuple(one.weights)) not in taken]


def write(
    file: Path, functions: Sequence[Function], extras: Mapping[str, str] | None = None, private: bool = False
) -> None:
    """Writes a package. The file appears whole or not at all.

    The first function is stored under the name ``model``, so that ``torch.export.load`` and ``aoti_load_package`` find
    it without being told a name; the others under their own.

    Args:
        file: Where to; an older file is replaced.
        functions: What it holds.
        extras: Further texts to store, by name.
        private: Nobody else may read the file.

    Raises:
        OSError: It cannot be written.
    """
    keys = ["model", *(function.signature.name for function in functions[1:])]
    programs = {key: one.program for key, one in zip(keys, functions, strict=True) if one.program is not None}
    libraries: dict[str, Sequence[str]] = {}
    for key, function in zip(keys, functions, strict=True):
        for folder, variant in zip(_folders(key, function), function.variants, strict=True):
            libraries[folder] = variant.files
            if variant.files_out:
                libraries[f"{folder}__out"] = variant.files_out
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{TEMPORARY}{os.getpid()}-") as folder:
        # Twice: the manifest states checksums of what is beside it, and the archive's root folder is the file's name.
        first = Path(folder) / "first" / file.name
        first.parent.mkdir()
        _torch.write_archive(first, programs, libraries, {})
        manifest = _manifest(first, keys, functions)
        first.unlink()
        second = Path(folder) / file.name
        checksum = {MANIFEST: manifest, f"{MANIFEST}.crc32": str(zlib.crc32(manifest.encode()))}
        _torch.write_archive(second, programs, libraries, {**(extras or {}), **checksum})
        publish(second, file, private)


def publish(temporary: Path, file: Path, private: bool) -> None:
    """Moves a finished file to its place, so that it survives a crash of the machine whole or not at all."""
    if private:
        temporary.chmod(0o600)
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)


def read_manifest(file: Path) -> dict[str, Any]:
    """The manifest of a package.

    Raises:
        PackageError: The file is missing or damaged, or no package of this version.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_manifest(file, archive)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _read_manifest(file: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    records = _records(archive)
    name = _torch.EXTRA_FOLDER + MANIFEST
    if not {name, f"{name}.crc32"} <= records.keys():
        raise _damaged(file, "an archive without its manifest")
    text = archive.read(records[name])
    if archive.read(records[f"{name}.crc32"]) != str(zlib.crc32(text)).encode():
        raise _damaged(file, "another checksum of the manifest than it states")
    content: dict[str, Any] = json.loads(text)
    if content.get("format_version") != FORMAT_VERSION:
        raise _damaged(file, f"format version {content.get('format_version')}, by {content.get('producer')}")
    return content


def read_extra(file: Path, name: str) -> str | None:
    """A text that :func:`write` was given; ``None`` if the package has none of this name.

    Raises:
        PackageError: The file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            record = _records(archive).get(_torch.EXTRA_FOLDER + name)
            return None if record is None else archive.read(record).decode()
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def check(file: Path) -> None:
    """Reads a whole package and compares it with the sizes and checksums that its manifest states.

    Raises:
        PackageError: It is damaged.
    """
    stated = read_manifest(file)["records"]
    try:
        with zipfile.ZipFile(file) as archive:
            records = _records(archive)
            for name, record in stated.items():
                info = records.get(name)
                if info is None or (info.file_size, info.CRC) != (record["size"], record["crc32"]):
                    raise _damaged(file, f"{name}: missing, or not as the manifest states")
            if broken := archive.testzip():
                raise _damaged(file, f"{broken}: another checksum than the archive states")
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def extract_library(file: Path, folder: Path) -> str:
    """Unpacks the compiled code of a package's first function, and what it needs beside it.

    Raises:
        PackageError: There is none.
    """
    variant = read_manifest(file)["functions"][0]["variants"][0]
    with zipfile.ZipFile(file) as archive:
        records = _records(archive)
        for record in filter(None, (variant["library"], variant["extern_ops"])):
            (folder / Path(record).name).write_bytes(archive.read(records[record]))
    return str(folder / Path(variant["library"]).name)


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Records by name without the archive's root folder."""
    return {info.filename.partition("/")[2]: info for info in archive.infolist()}


def _damaged(file: Path, got: str) -> PackageError:
    return PackageError(
        message(
            f"{file}: it cannot be read",
            expected=f"a package made by torchcc, of format version {FORMAT_VERSION}",
            got=got,
            fix="make or copy it again, with this version of torchcc",
        )
    )


def _manifest(archive: Path, keys: Sequence[str], functions: Sequence[Function]) -> str:
    with zipfile.ZipFile(archive) as opened:
        records = {
            name: {"size": info.file_size, "crc32": info.CRC}
            for name, info in _records(opened).items()
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
                "variants": [
                    _variant(folder, variant)
                    for folder, variant in zip(_folders(key, function), function.variants, strict=True)
                ],
            }
            for key, function in zip(keys, functions, strict=True)
        ],
        "records": records,
    }
    return json.dumps(content, indent=1)


def _folders(key: str, function: Function) -> list[str]:
    """Where the variants of a function are; the first one is where PyTorch's own loader looks."""
    return [key if not position else f"{key}__{position}" for position in range(len(function.variants))]


def _variant(folder: str, variant: Variant) -> dict[str, Any]:
    target, _, features = _torch.cpu_target()
    return {
        "target": variant.target or target,
        "torch": variant.torch or _torch.tree_version(),
        "cpu_features": list(variant.cpu_features if variant.target else features),
        "library": _record(folder, variant.files, ".so"),
        "library_out": _record(f"{folder}__out", variant.files_out, ".so"),
        "extern_ops": _record(folder, variant.files, ".json"),
        "extern_ops_out": _record(f"{folder}__out", variant.files_out, ".json"),
        "exclusive": variant.exclusive,
        "weights": list(variant.weights),
    }


def _record(key: str, files: Sequence[str], suffix: str) -> str:
    """The record of the file with this ending; empty without one. AOTInductor's metadata is JSON too, but not meant."""
    for file in files:
        if file.endswith(suffix) and not file.endswith("_metadata.json"):
            return f"{_torch.LIBRARY_FOLDER}{key}/{Path(file).name}"
    return ""
