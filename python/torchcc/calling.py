"""Calls functions of packages in C++, through the program ``torchcc-run``: ``torchcc run``."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchcc import mobile, native, package_reader, paths
from torchcc.errors import ArgumentError, CompileError, PackageError, message
from torchcc.signature import Signature


@dataclass(frozen=True)
class Ran:
    """What came of a call in C++: results by name, and what the runtime says about itself."""

    signature: Signature
    outputs: Mapping[str, torch.Tensor]
    report: Mapping[str, Any]


def call_cpp(
    file: Path,
    function: str,
    calls: Sequence[Sequence[torch.Tensor]],
    *flags: str,
    portable: bool = False,
    operators: Sequence[Path] = (),
) -> tuple[list[list[torch.Tensor]], dict[str, Any]]:
    """Calls a function in C++, several times in one process.

    Args:
        file: The package.
        function: Name of the function.
        calls: Per call one tensor for each input.
        flags: Further arguments of the program ``torchcc-run``.
        portable: Leave compiled code alone.
        operators: Shared libraries with operators that the graphs use.

    Returns:
        Per call one tensor for each output; and what the program reports.

    Raises:
        ArgumentError: The function refuses an argument.
        PackageError: The package cannot be loaded.
        CompileError: The program cannot be built, or ended without an answer.
    """
    program = native.runner()
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        given, made = Path(folder) / "inputs.pt", Path(folder) / "outputs.pt"
        torch.save(tuple(tuple(one.detach().cpu() for one in call) for call in calls), given)
        command = [str(program), str(file), function, str(given), str(made), *flags]
        command += ["--portable"] if portable else []
        for library in operators:
            command += ["--operators", str(library.resolve())]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode == 1 and ran.stderr.strip():
            # What is wrong with the package starts with its name, what is wrong with a call with the function's.
            kind = PackageError if ran.stderr.startswith(str(file)) else ArgumentError
            raise kind(ran.stderr.strip())
        if ran.returncode != 0:
            raise CompileError(
                message(
                    f"{file}: the program that calls '{function}' ended with status {ran.returncode}",
                    got=ran.stderr.strip()[-2000:] or "no message",
                    fix="report it, with the package",
                )
            )
        results = torch.load(made, weights_only=True)
    return [list(result) for result in results], json.loads(ran.stdout)


def signatures(file: Path) -> dict[str, Signature]:
    """Signatures of a package's functions by name.

    Raises:
        PackageError: The file is missing or damaged, or no package by torchcc.
    """
    entries = package_reader.read_manifest(file)["functions"]
    return {entry["signature"]["name"]: Signature.from_json(entry["signature"]) for entry in entries}


def choose(file: Path, known: Sequence[str], name: str | None) -> str:
    """The function that is meant: the named one, or the only one.

    Raises:
        ArgumentError: There is none of this name, or there are several and none is named.
    """
    if name is None and len(known) == 1:
        return known[0]
    if name is None or name not in known:
        raise ArgumentError(
            message(
                f"{file}: there is no function '{name}'" if name else f"{file}: it has several functions",
                expected=f"one of: {', '.join(known)}",
                got=name or "no name",
                fix=f"--function {known[0]}",
            )
        )
    return name


def run(
    file: Path,
    function: str | None,
    inputs: Sequence[str],
    *,
    portable: bool = False,
    operators: Sequence[Path] = (),
) -> Ran:
    """Calls a function in C++ on inputs from files; one of a ``.pte`` file in ExecuTorch's runtime.

    Args:
        file: The package, or a ``.pte`` file.
        function: Name of the function; may be left out where there is one.
        inputs: Per input a file, ``.npy`` or ``.pt``, in the signature's order, or ``name=file``; for a number also the
            number itself.
        portable: Leave compiled code alone.
        operators: Shared libraries with operators that the graph uses.

    Raises:
        ArgumentError: An input is missing, unknown, cannot be read, or does not fit.
        PackageError: The file cannot be loaded.
        CompileError: The program cannot be built, or ExecuTorch is missing.
    """
    is_mobile = file.suffix == ".pte"
    known = mobile.signatures(file) if is_mobile else signatures(file)
    signature = known[choose(file, list(known), function)]
    if is_mobile:
        _refuse_options(file, portable, operators)
    tensors = _read_inputs(signature, inputs)
    if is_mobile:
        results, report = mobile.run(file, signature, tensors)
    else:
        (results,), report = call_cpp(file, signature.name, [tensors], portable=portable, operators=operators)
    names = [value.name for value in signature.outputs]
    return Ran(signature, dict(zip(names, results, strict=True)), report)


def _refuse_options(file: Path, portable: bool, operators: Sequence[Path]) -> None:
    if portable or operators:
        raise ArgumentError(
            message(
                f"{file}: ExecuTorch runs it, and takes no such option",
                expected="--input, --function, --output, --json",
                got="--portable" if portable else "--operators",
                fix="leave it out, or run a package (.pt2)",
            )
        )


def _read_inputs(signature: Signature, inputs: Sequence[str]) -> list[torch.Tensor]:
    names = [value.name for value in signature.inputs]
    by_name: dict[str, str] = {}
    positional = iter(names)
    problem = ""
    for text in inputs:
        name, equals, source = text.partition("=")
        if not equals or (name not in names and Path(text).exists()):
            name, source = next(positional, ""), text
            problem = problem or ("" if name else f"{len(inputs)} inputs")
        problem = problem or ("" if name in names else f"one named '{name}'")
        problem = problem or (f"'{name}' twice" if name in by_name else "")
        by_name[name] = source
    missing = [name for name in names if name not in by_name]
    if problem or missing:
        raise ArgumentError(
            message(
                f"{signature.name}: wrong inputs",
                signature=str(signature),
                expected=", ".join(names) or "none",
                got=problem or f"nothing for '{missing[0]}'",
                fix="give each once, in this order or by name: --input x.npy --input mask=mask.npy",
            )
        )
    return [
        _read_number(by_name[value.name], value.dtype)
        if value.number and not Path(by_name[value.name]).exists()
        else _read_tensor(value.name, Path(by_name[value.name]))
        for value in signature.inputs
    ]


def _read_number(text: str, dtype: str) -> torch.Tensor:
    try:
        number = {"true": True, "false": False}[text.lower()] if dtype == "bool" else float(text)
        if dtype == "int64":
            number = int(text)
    except (ValueError, KeyError) as error:
        raise ArgumentError(
            message(
                f"--input {text}: not understood", expected=f"a number, {dtype}, or a file", got=text, fix="correct it"
            )
        ) from error
    return torch.tensor(number, dtype=getattr(torch, dtype))


def _read_tensor(name: str, file: Path) -> torch.Tensor:
    import numpy

    try:
        if file.suffix == ".npy":
            loaded: Any = torch.from_numpy(numpy.load(file, allow_pickle=False))
        elif file.suffix == ".pt":
            loaded = torch.load(file, weights_only=True)
        else:
            raise ValueError("neither .npy nor .pt")
        if not isinstance(loaded, torch.Tensor):
            raise ValueError(f"a {type(loaded).__name__}, no tensor")
    except Exception as error:
        raise ArgumentError(
            message(
                f"--input {name}={file}: it cannot be read",
                expected="an array by numpy.save (.npy), or a tensor by torch.save (.pt)",
                got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                fix="check the path and the file",
            )
        ) from error
    return loaded


def save_outputs(outputs: Mapping[str, torch.Tensor], folder: Path) -> list[Path]:
    """Saves results by name: as ``.npy``, or as ``.pt`` where NumPy does not have the dtype.

    Raises:
        OSError: A file cannot be written.
    """
    import numpy

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=paths.TEMPORARY) as work:
        for name, tensor in outputs.items():
            has_numpy = tensor.dtype != torch.bfloat16
            file = folder / f"{name.replace('/', '_')}{'.npy' if has_numpy else '.pt'}"
            temporary = Path(work) / file.name
            if has_numpy:
                numpy.save(temporary, tensor.numpy())
            else:
                torch.save(tensor, temporary)
            temporary.replace(file)
            files.append(file)
    return files
