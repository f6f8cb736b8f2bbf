"""``torchcc.load``: packages in Python, for tests and notebooks. The runtime for programs is the one in C++."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from torchcc import _torch, agreement, package, package_reader, sizes
from torchcc.errors import ArgumentError, PackageError, message, no_such
from torchcc.signature import Signature, Value


class Outputs(tuple[torch.Tensor, ...]):
    """The results of a call in the signature's order, which can also be asked for by name: ``outputs["scores"]``."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Outputs:
        """Results with their names."""
        made = cls(tensors)
        made.names = tuple(names)
        return made

    def __getitem__(self, key: Any) -> Any:
        """A result by name or by position.

        Raises:
            ArgumentError: There is none of this name.
        """
        if not isinstance(key, str):
            return super().__getitem__(key)
        if key not in self.names:
            raise ArgumentError(no_such(f"there is no result '{key}'", key, self.names))
        return super().__getitem__(self.names.index(key))


class LoadedFunction:
    """A function of a package. Buffers that it writes into keep their contents from call to call.

    Attributes:
        signature: What it takes and gives.
        backend: ``"compiled"``, or ``"portable"``: the graph, run by Python.
        target: What the compiled code was made for; empty for the graph.
        reasons: Why compiled code was passed over, one line per variant.
    """

    def __init__(self, function: package.Function, compiled: bool) -> None:
        self.signature: Signature = function.signature
        self.backend = "portable"
        self.target = ""
        self.reasons: list[str] = []
        self._function = function
        for variant in function.variants:
            reason = package.misfit(variant) if compiled else "compiled=False"
            if variant.weights and function.program is None:
                reason = reason or "it takes weights, and there is no graph that has them"
            if reason:
                self.reasons.append(f"{variant.target}: {reason}")
            elif self.backend == "portable":
                self.backend, self.target = "compiled", variant.target
                self._library = _torch.load_library(package.library(variant.files))
                held = _torch.weights(function.program) if function.program is not None else {}
                self._weights = [held[name].detach() for name in variant.weights]
        if self.backend == "portable" and function.program is None:
            raise PackageError(
                message(
                    f"function '{function.signature.name}' cannot run here",
                    expected="compiled code for this machine and this torch, or a graph",
                    got="; ".join(self.reasons) or "a package without either",
                    fix="make the package again on a machine like this one, with this version of torch",
                )
            )
        if self.backend == "portable":
            assert function.program is not None
            self._graph = _torch.as_function(function.program)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function, without gradients.

        Args:
            *args: Tensors and numbers, in the signature's order.
            **kwargs: The others by name; nested ones as ``**{"state.0": tensor}``.

        Returns:
            The tensor where there is one output, else :class:`Outputs`.

        Raises:
            ArgumentError: An argument does not fit the signature.
        """
        given = _bind(self.signature, args, kwargs)
        _check(self.signature, given)
        results = self._run_compiled(given) if self.backend == "compiled" else self._run_graph(given)
        if len(results) == 1:
            return results[0]
        return Outputs.of([value.name for value in self.signature.outputs], results)

    def __repr__(self) -> str:
        return f"<{self.signature}, {self.target or self.backend}>"

    def _run_compiled(self, given: Sequence[Any]) -> list[torch.Tensor]:
        tensors = [
            one.detach() if isinstance(one, torch.Tensor) else torch.tensor(one, dtype=getattr(torch, value.dtype))
            for value, one in zip(self.signature.inputs, given, strict=True)
        ]
        dense = [tensor.contiguous() for tensor in tensors]
        results = self._library([*dense, *self._weights])
        for value, tensor, copy in zip(self.signature.inputs, tensors, dense, strict=True):
            if value.mutated and copy is not tensor:
                tensor.copy_(copy)
        return results

    def _run_graph(self, given: Sequence[Any]) -> list[torch.Tensor]:
        program = self._function.program
        assert program is not None
        by_name = dict(zip((value.name for value in self.signature.inputs), given, strict=True))
        leaves = []
        for name, leaf in zip(_torch.leaf_names(program)[0], _torch.input_leaves(program), strict=True):
            value = by_name.get(name, leaf)
            if isinstance(leaf, torch.Tensor) and not isinstance(value, torch.Tensor):
                value = torch.tensor(value, dtype=leaf.dtype)
            elif isinstance(value, torch.Tensor) and not isinstance(leaf, torch.Tensor):
                value = value.item()
            leaves.append(value)
        return agreement.as_tensors(self._graph(leaves))


class LoadedPackage:
    """The functions of a package by name: ``package["forward"](x)``."""

    def __init__(self, file: Path, functions: Mapping[str, LoadedFunction]) -> None:
        self.file = file
        self._functions = dict(functions)

    @property
    def names(self) -> list[str]:
        """Names of the functions, in the package's order."""
        return list(self._functions)

    def __getitem__(self, name: str) -> LoadedFunction:
        """The function of this name.

        Raises:
            ArgumentError: There is none.
        """
        if name not in self._functions:
            raise ArgumentError(no_such(f"{self.file}: there is no function '{name}'", name, self.names))
        return self._functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


def load(file: Path | str, *, compiled: bool = True) -> LoadedPackage:
    """Loads a package into Python, for tests and notebooks; programs load it in C++, with ``torchcc::load``.

    Of each function the first compiled variant is taken that fits this machine and this torch, else its graph. Also
    loads a file by ``torch.export.save``.

    Args:
        file: The package.
        compiled: Whether to use compiled code where it fits; else the graphs run.

    Raises:
        PackageError: The file is missing or damaged, or a function has nothing that can run here.
    """
    with tempfile.TemporaryDirectory(prefix="torchcc-") as folder:
        functions = package_reader.read(Path(file), Path(folder))
        groups: dict[str, list[package.Function]] = {}
        for function in functions:
            groups.setdefault(function.group, []).append(function)
        for members in groups.values():
            _torch.share_weights([one.program for one in members if one.program is not None])
        return LoadedPackage(Path(file), {one.signature.name: LoadedFunction(one, compiled) for one in functions})


def _bind(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Arguments in the signature's order."""
    names = [value.name for value in signature.inputs]
    given = dict(zip(names, args, strict=False))
    problem = ""
    if len(args) > len(names):
        problem = f"{len(args)} arguments"
    elif twice := given.keys() & kwargs.keys():
        problem = f"'{min(twice)}' twice"
    elif unknown := kwargs.keys() - set(names):
        problem = f"'{min(unknown)}', which it does not take"
    elif missing := [name for name in names if name not in given and name not in kwargs]:
        problem = f"nothing for '{missing[0]}'"
    if problem:
        raise ArgumentError(
            message(
                f"{signature.name}: wrong arguments",
                signature=str(signature),
                expected=", ".join(names) or "none",
                got=problem,
                fix="give each argument once, by position or by name",
            )
        )
    given.update(kwargs)
    return [given[name] for name in names]


def _check(signature: Signature, given: Sequence[Any]) -> None:
    """Compares arguments with the signature, as C++ does."""
    symbols: dict[str, int] = {}
    for value, one in zip(signature.inputs, given, strict=True):
        _check_kind(signature, value, one)
        if isinstance(one, torch.Tensor):
            for size, n in zip(value.sizes, one.shape, strict=True):
                if isinstance(size, str):
                    symbols.setdefault(size, n)
    for value, one in zip(signature.inputs, given, strict=True):
        if isinstance(one, torch.Tensor) and not value.number:
            wanted = [sizes.evaluate(size, symbols) for size in value.sizes]
            if list(one.shape) != wanted:
                _refuse(signature, value, str(wanted), f"sizes {list(one.shape)}")
    for symbol in signature.symbols:
        size = symbols.get(symbol.name, symbol.minimum)
        if size < symbol.minimum or (symbol.maximum is not None and size > symbol.maximum):
            holder = next(value for value in signature.inputs if symbol.name in value.sizes)
            _refuse(signature, holder, symbol.text(), f"{symbol.name} = {size}")


# What may be given for a number, by dtype.
_NUMBERS: Mapping[str, tuple[type, ...]] = {"float64": (float, int), "int64": (int,), "bool": (bool,)}


def _check_kind(signature: Signature, value: Value, one: Any) -> None:
    if isinstance(one, torch.Tensor):
        if one.device.type != value.device:
            place = "the CPU" if value.device == "cpu" else "a GPU"
            _refuse(signature, value, f"a tensor on {place}", f"one on {one.device}")
        dtype = str(one.dtype).removeprefix("torch.")
        if dtype != value.dtype or one.dim() != len(value.sizes):
            _refuse(signature, value, value.type(), f"{dtype}{list(one.shape)}")
    elif not value.number or type(one) not in _NUMBERS[value.dtype]:
        _refuse(signature, value, value.type(), f"a {type(one).__name__}")
    if value.number and value.dtype == "int64":
        number = int(one)
        low, high = value.minimum, value.maximum
        if (low is not None and number < low) or (high is not None and number > high):
            _refuse(signature, value, f"a number from {low} to {high}", str(number))


def _refuse(signature: Signature, value: Value, expected: str, got: str) -> None:
    raise ArgumentError(
        message(
            f"{signature.name}: argument '{value.name}' does not fit",
            signature=str(signature),
            expected=expected,
            got=got,
            fix="pass what the signature says",
        )
    )
