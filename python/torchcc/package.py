"""Writes and reads packages: ``.pt2`` archives for PyTorch's own loaders, with a manifest for the C++ runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.export import ExportedProgram

from torchcc import _torch
from torchcc._version import __version__
from torchcc.errors import ArgumentError, CaptureError, Error, PackageError, message, reason
from torchcc.signature import Signature

#: The manifest's format; the runtime reads exactly one (kFormatVersion in cpp/src/runtime/manifest.h).
FORMAT_VERSION = 2

MANIFEST = "torchcc.json"

#: Of packages made from traces: the trace, and the text by which the cache knows what it is for.
TRACE = "torchcc_trace.json"
KEY = "torchcc_key.txt"
#: Of packages made from traces that need gradients: what the second function, which computes them, takes and gives.
BACKWARD = "torchcc_backward.json"

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
        target: What it was compiled for, as in :func:`torchcc._torch.target`; empty for this machine's CPU.
        torch: Major and minor version of torch; empty for this one.
        cpu_features: What the code needs, if ``target`` is given.
        uncapturable: Of code for GPUs, why no CUDA graph can be made of it; empty when one can.
    """

    files: Sequence[str]
    files_out: Sequence[str] = ()
    exclusive: bool = False
    weights: Sequence[str] = ()
    target: str = ""
    torch: str = ""
    cpu_features: Sequence[str] = ()
    uncapturable: str = ""


@dataclass(frozen=True)
class Training:
    """Compiled code of a function whose results carry gradients.

    Attributes:
        files: What AOTInductor made of the forward direction. It takes the signature's inputs, then ``weights``; it
            gives the signature's outputs, then what only backward needs.
        files_backward: The same of the backward direction, which takes what was saved, then gradients of outputs.
        description: What goes where, in the form that ``parse_backward`` in ``cpp/src/runtime/backward.h`` reads:
            ``saved`` (``"input"``, ``"output"`` or ``"extra"``, and the position there), ``tangents`` (outputs, and the
            strides that their gradients have to have; ``None`` for contiguous ones), ``gradients`` (inputs, by the
            results of backward), ``covered`` and ``reached`` (see :class:`torchcc._torch.Differentiated`), ``random``;
            ``uncapturable`` as in :class:`Variant`, of both directions, where it is not empty.
        exclusive: Whether the code must run alone (integer division).
        weights: Names of the weights, all of which the code takes as inputs.
        target, torch, cpu_features: As in :class:`Variant`.
    """

    files: Sequence[str]
    files_backward: Sequence[str]
    description: Mapping[str, Any]
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
        training: Compiled forms whose results carry gradients, the best first; of one target, the ones that give less
            gradients, and do less work, before the others.
    """

    signature: Signature
    program: ExportedProgram | None
    variants: Sequence[Variant]
    group: str = ""
    training: Sequence[Training] = ()


def library(files: Sequence[str]) -> str:
    """The shared library among the files that AOTInductor made."""
    (found,) = [file for file in files if file.endswith(".so")]
    return found


_Form = TypeVar("_Form", Variant, Training)


def joined(old: Sequence[_Form], new: Sequence[_Form]) -> list[_Form]:
    """Old and new variants, without the old ones that new ones replace, in the order in which a machine tries them.

    A variant replaces one for the same target and torch that burns in the same weights, or gives the same gradients.
    Code that uses most of a CPU comes first, as the first that fits is run.
    """

    def key(one: Variant | Training) -> tuple[Any, ...]:
        gradients = one.description["gradients"] if isinstance(one, Training) else ()
        return one.target, one.torch or _torch.tree_version(), tuple(one.weights), tuple(gradients)

    taken = {key(one) for one in new}
    joint = list(new)
    joint.extend(one for one in old if key(one) not in taken)
    return sorted(joint, key=lambda one: "avx512" not in one.target)


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
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f"{TEMPORARY}{os.getpid()}-") as folder:
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
        publish(second, file, private)


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


@dataclass(frozen=True)
class Graph:
    """What a graph of a package says about its weights.

    Attributes:
        used: Names of the parameters, buffers and constants that it uses.
        records: The records that hold these.
    """

    used: frozenset[str]
    records: frozenset[str]


def read_graphs(file: Path, models: Sequence[str]) -> dict[str, Graph]:
    """What some graphs of a package say about their weights, by the name of the model; nothing is loaded.

    Raises:
        PackageError: The file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = _records(archive)
            graphs = {}
            for model in models:
                used = _used_weights(json.loads(archive.read(records[f"models/{model}.json"])))
                places = _weight_records(archive, records, model)
                graphs[model] = Graph(used, frozenset(places[name] for name in used if name in places))
            return graphs
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _used_weights(program: Mapping[str, Any]) -> frozenset[str]:
    held = {}
    for spec in program["graph_module"]["signature"]["input_specs"]:
        ((kind, content),) = spec.items()
        names = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind in names:
            held[content["arg"]["name"]] = content[names[kind]]
    used = set(_names_in([node["inputs"] for node in program["graph_module"]["graph"]["nodes"]]))
    return frozenset(weight for name, weight in held.items() if name in used)


def _names_in(tree: Any) -> Iterator[str]:
    """Names of the values that arguments of a graph refer to."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("as_tensor"), Mapping):
            yield tree["as_tensor"]["name"]
        for one in tree.values():
            yield from _names_in(one)
    elif isinstance(tree, list):
        for one in tree:
            if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                yield one["name"]
            yield from _names_in(one)


def _weight_records(archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], model: str) -> dict[str, str]:
    """The record of each weight of a graph."""
    places = {}
    for folder in ("weights", "constants"):
        config = records.get(f"data/{folder}/{model}_{folder}_config.json")
        if config is not None:
            for name, entry in json.loads(archive.read(config))["config"].items():
                places[name] = f"data/{folder}/{entry['path_name']}"
    return places


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
    records = _record_names(file)
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


def _record_names(file: Path) -> set[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return set(_records(archive))
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _read_foreign(file: Path, records: set[str]) -> list[Function]:
    """The functions of an archive that PyTorch wrote."""
    from torchcc import exporter

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
        raise _damaged(file, "an archive without a manifest and without an exported program")
    programs = _load_programs(file)
    names = {key: "forward" if key == "model" else key for key in programs}
    return [
        Function(exporter.signature_of(program, names[key]), program, (), group=key)
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
    for name, info in _records(archive).items():
        if name.rpartition("/")[0] == beside:
            place = folder / Path(name).name
            with archive.open(info) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target)
            files.append(str(place))
    return tuple(files)


def merge(packages: Sequence[Sequence[Function]]) -> list[Function]:
    """The functions of several packages as those of one; only functions of the same package share weights.

    A function that several packages have, with the same graph and weights, becomes one with the compiled code of all:
    each machine compiles for itself.

    Raises:
        ArgumentError: Two functions have the same name, and are not the same.
    """
    merged: dict[str, Function] = {}
    taken: set[str] = set()
    for functions in packages:
        groups: dict[str, str] = {}
        for position, function in enumerate(functions):
            name = function.signature.name
            if name in merged:
                merged[name] = _join(merged[name], function)
                continue
            group = function.group or f"{name}_{position}"
            if group not in groups:
                unique = group
                count = 1
                while unique in taken:
                    count += 1
                    unique = f"{group}_{count}"
                groups[group] = unique
                taken.add(unique)
            merged[name] = dataclasses.replace(function, group=groups[group])
    return list(merged.values())


def _join(one: Function, other: Function) -> Function:
    name = one.signature.name
    same = (
        one.program is not None
        and other.program is not None
        and one.signature == other.signature
        and _torch.same_program(one.program, other.program)
    )
    if not same:
        raise ArgumentError(
            message(
                f"two functions are named '{name}'",
                expected="each name once, or the same graph and weights in each package",
                got=f"'{name}' in several packages, with other signatures, graphs or weights",
                fix=f"rename one: torchcc merge a.pt2 b.pt2:{name}=other_{name} -o out.pt2",
            )
        )
    return dataclasses.replace(
        one,
        variants=joined(one.variants, other.variants),
        training=joined(one.training, other.training),
    )


def misfit(variant: Variant | Training) -> str:
    """Why compiled code cannot run here, in the words of the C++ runtime; empty when it can."""
    if variant.torch and variant.torch != _torch.tree_version():
        return f"compiled with torch {variant.torch}, this is torch {_torch.tree_version()}"
    for feature in variant.cpu_features:
        if feature.translate(_WITHOUT_MARKS) not in _cpu_flags():
            return f"this CPU lacks {feature}"
    if wanted := _architecture(variant):
        if not torch.cuda.is_available():
            return f"compiled for GPUs of {wanted}, and there is no GPU"
        here = "sm{}{}".format(*torch.cuda.get_device_capability())
        is_later = wanted.endswith("+") and int(here[2:]) >= int(wanted[2:-1])
        if here != wanted and not is_later:
            return f"compiled for GPUs of {wanted}, this one is {here}"
    return ""


def _architecture(variant: Variant | Training) -> str:
    """Of the GPU that compiled code is for, ``"sm90"``, or ``"sm80+"``, that and later; empty for the CPU."""
    return variant.target.removeprefix("cuda-") if variant.target.startswith("cuda-") else ""


def _is_on_gpu(function: Function) -> bool:
    if function.program is not None:
        return _torch.device_of(function.program) == "cuda"
    values = (*function.signature.inputs, *function.signature.outputs)
    return any(value.device == "cuda" for value in values) or any(map(_architecture, function.variants))


_WITHOUT_MARKS = str.maketrans("", "", "-_")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Linux's names of the features of this CPU without marks between words, and BMI by GCC's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    found = {flag.translate(_WITHOUT_MARKS) for flag in flags.split()}
    return frozenset(found | ({"bmi"} if "bmi1" in found else set()))


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Records by name without the archive's root folder."""
    return {info.filename.partition("/")[2]: info for info in archive.infolist()}


def _damaged(file: Path, got: str) -> PackageError:
    return PackageError(
        message(
            f"{file}: it cannot be read",
            expected=f"a package made by torchcc, of format version {FORMAT_VERSION}",
            got=got,
            fix="make or copy it again, with this version of torchcc; `torchcc compile` makes one of PyTorch's files",
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
        **({"architecture": _architecture(variant)} if _architecture(variant) else {}),
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
