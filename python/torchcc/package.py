"""What a package holds: functions, and their compiled forms.

:mod:`torchcc.package_writer` and :mod:`torchcc.package_reader` write and read the files.
"""

from __future__ import annotations

import dataclasses
import functools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.export import ExportedProgram

from torchcc import _torch
from torchcc.errors import ArgumentError, message
from torchcc.signature import Signature

#: The manifest's format; the runtime reads exactly one (kFormatVersion in cpp/src/runtime/manifest.h).
FORMAT_VERSION = 2

MANIFEST = "torchcc.json"

#: Of packages made from traces: the trace, and the text by which the cache knows what it is for.
TRACE = "torchcc_trace.json"
KEY = "torchcc_key.txt"
#: Of packages made from traces that need gradients: what the second function, which computes them, takes and gives.
BACKWARD = "torchcc_backward.json"


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


def records_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Records by name without the archive's root folder."""
    return {info.filename.partition("/")[2]: info for info in archive.infolist()}


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
    if wanted := architecture(variant):
        if not torch.cuda.is_available():
            return f"compiled for GPUs of {wanted}, and there is no GPU"
        here = "sm{}{}".format(*torch.cuda.get_device_capability())
        is_later = wanted.endswith("+") and int(here[2:]) >= int(wanted[2:-1])
        if here != wanted and not is_later:
            return f"compiled for GPUs of {wanted}, this one is {here}"
    return ""


def architecture(variant: Variant | Training) -> str:
    """Of the GPU that compiled code is for, ``"sm90"``, or ``"sm80+"``, that and later; empty for the CPU."""
    return variant.target.removeprefix("cuda-") if variant.target.startswith("cuda-") else ""


_WITHOUT_MARKS = str.maketrans("", "", "-_")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Linux's names of the features of this CPU without marks between words, and BMI by GCC's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    found = {flag.translate(_WITHOUT_MARKS) for flag in flags.split()}
    return frozenset(found | ({"bmi"} if "bmi1" in found else set()))
