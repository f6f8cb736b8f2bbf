"""Reads packages, and archives that PyTorch wrote by itself."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from torchcc import _torch
from torchcc.errors import PackageError, message, reason
from torchcc.package import FORMAT_VERSION, MANIFEST, Function, Training, Variant, library, records_of
from torchcc.program_signature import signature_of
from torchcc.signature import Signature


@contextlib.contextmanager
def opened(file: Path, *others: type[Exception]) -> Iterator[zipfile.ZipFile]:
    """A package's archive.

    Args:
        file: The package.
        *others: What else is raised within where a file is damaged.

    Raises:
        PackageError: In place of these and of what the zip reader raises.
    """
    kinds: tuple[type[Exception], ...] = (OSError, zipfile.BadZipFile, zlib.error, *others)
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except kinds as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from error


def damaged(file: Path, got: str) -> PackageError:
    """The error for a file that is no whole package of this version."""
    return PackageError(
        message(
            f"{file}: it cannot be read",
            expected=f"a package made by torchcc, of format version {FORMAT_VERSION}",
            got=got,
            fix="make or copy it again, with this version of torchcc; `torchcc compile` makes one of PyTorch's files",
        )
    )


def read_manifest(file: Path) -> dict[str, Any]:
    """The manifest of a package.

    Raises:
        PackageError: The file is missing or damaged, or no package of this version.
    """
    name = _torch.EXTRA_FOLDER + MANIFEST
    with opened(file) as archive:
        records = records_of(archive)
        if not {name, f"{name}.crc32"} <= records.keys():
            raise damaged(file, "an archive without its manifest")
        text = archive.read(records[name])
        stated = archive.read(records[f"{name}.crc32"])
    if stated != str(zlib.crc32(text)).encode():
        raise damaged(file, "another checksum of the manifest than it states")
    content: dict[str, Any] = json.loads(text)
    if content.get("format_version") != FORMAT_VERSION:
        raise damaged(file, f"format version {content.get('format_version')}, by {content.get('producer')}")
    return content


def read_extra(file: Path, name: str) -> str | None:
    """A text that :func:`torchcc.package_writer.write` was given; ``None`` if the package has none of this name.

    Raises:
        PackageError: The file is missing or damaged.
    """
    with opened(file, ValueError) as archive:
        record = records_of(archive).get(_torch.EXTRA_FOLDER + name)
        text = None if record is None else archive.read(record).decode()
    return text


def check(file: Path) -> None:
    """Reads a whole package and compares it with the sizes and checksums that its manifest states.

    Raises:
        PackageError: It is damaged.
    """
    stated = read_manifest(file)["records"]
    with opened(file) as archive:
        records = records_of(archive)
        for name, record in stated.items():
            info = records.get(name)
            if info is None or (info.file_size, info.CRC) != (record["size"], record["crc32"]):
                raise damaged(file, f"{name}: missing, or not as the manifest states")
        if broken := archive.testzip():
            raise damaged(file, f"{broken}: another checksum than the archive states")


def extract_library(file: Path, folder: Path) -> str:
    """Unpacks the compiled code of a package's first function, and what it needs beside it.

    Raises:
        PackageError: There is none.
    """
    variant = read_manifest(file)["functions"][0]["variants"][0]
    with zipfile.ZipFile(file) as archive:
        return library(_extract(archive, variant["library"], folder / "library"))


def read(file: Path, folder: Path) -> list[Function]:
    """Reads a whole package, so that it can be extended, merged or run.

    Also takes a file by ``torch.export.save``, or any archive with exported programs: compiled code that others put
    beside them is left out, since nothing says which machines it fits.

    Args:
        file: The package.
        folder: Where to put the compiled code; it must stay as long as the functions are used.

    Raises:
        PackageError: It is missing or damaged, holds no graph and no manifest, or its graph cannot be read.
    """
    with opened(file) as archive:
        records = set(records_of(archive))
    if _torch.EXTRA_FOLDER + MANIFEST not in records:
        return _read_foreign(file, records)
    check(file)
    entries = read_manifest(file)["functions"]
    programs = _load_programs(file) if any(entry["graph"] for entry in entries) else {}
    functions = []
    with zipfile.ZipFile(file) as archive:
        for position, entry in enumerate(entries):
            variants = []
            for number, variant in enumerate(entry["variants"]):
                place = folder / f"{position}-{number}"
                variants.append(
                    Variant(
                        files=_extract(archive, variant["library"], place),
                        files_out=_extract(archive, variant["library_out"], place / "out"),
                        exclusive=variant["exclusive"],
                        weights=tuple(variant["weights"]),
                        target=variant["target"],
                        torch=variant["torch"],
                        cpu_features=tuple(variant["cpu_features"]),
                        uncapturable=variant.get("uncapturable", ""),
                    )
                )
            training = [
                _read_training(archive, one, folder / f"{position}-training-{number}")
                for number, one in enumerate(entry.get("training", ()))
            ]
            program = programs[entry["model"]] if entry["graph"] else None
            signature = Signature.from_json(entry["signature"])
            functions.append(Function(signature, program, variants, entry["group"], training))
    return functions


def _read_training(archive: zipfile.ZipFile, content: Mapping[str, Any], folder: Path) -> Training:
    return Training(
        files=_extract(archive, content["library"], folder),
        files_backward=_extract(archive, content["library_backward"], folder / "backward"),
        description=content["backward"],
        exclusive=content["exclusive"],
        weights=tuple(content["weights"]),
        target=content["target"],
        torch=content["torch"],
        cpu_features=tuple(content["cpu_features"]),
    )


def _read_foreign(file: Path, records: set[str]) -> list[Function]:
    """The functions of an archive that PyTorch wrote."""
    if not any(record.startswith("models/") for record in records):
        if any(record.startswith(_torch.LIBRARY_FOLDER) for record in records):
            raise PackageError(
                message(
                    f"{file}: it holds compiled code alone",
                    expected="the exported program that the code was made from, which says what it takes and gives",
                    got="an AOTInductor package without one",
                    fix="export the model again: torchcc.export, or torch.export.save and then `torchcc compile`",
                )
            )
        raise damaged(file, "an archive without a manifest and without an exported program")
    programs = _load_programs(file)
    names = {key: "forward" if key == "model" else key for key in programs}
    return [
        Function(signature_of(program, names[key]), program, (), group=key)
        for key, program in sorted(programs.items(), key=lambda one: one[0] != "model")
    ]


def _load_programs(file: Path) -> dict[str, ExportedProgram]:
    try:
        return _torch.load_programs(file)
    except Exception as error:
        raise PackageError(
            message(
                f"{file}: its graphs cannot be read",
                expected="graphs by this version of PyTorch, of operators and dataclasses that this process knows",
                got=reason(error),
                fix="load what defines them first (--import FILE or MODULE, --operators LIBRARY), or export the model "
                "again",
            )
        ) from error


def _extract(archive: zipfile.ZipFile, library: str, folder: Path) -> tuple[str, ...]:
    """Unpacks a library and all that is beside it; gives the files, none without a library."""
    if not library:
        return ()
    beside = library.rpartition("/")[0]
    folder.mkdir(parents=True)
    files = []
    for name, info in records_of(archive).items():
        if name.rpartition("/")[0] == beside:
            place = folder / Path(name).name
            with archive.open(info) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target)
            files.append(str(place))
    return tuple(files)
