"""What a function takes and gives; the single source for checks, messages, the header and the manifest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchcc import sizes

#: C++ types of numbers, by dtype.
NUMBER_TYPES = {"float64": "double", "int64": "int64_t", "bool": "bool"}

#: What a guard may state, and how it is computed.
RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Symbol:
    """A named size. ``minimum`` and ``maximum`` are allowed values; ``maximum`` is ``None`` when there is no limit."""

    name: str
    minimum: int = 0
    maximum: int | None = None

    def clamp(self, value: int) -> int:
        """The allowed value that is nearest."""
        value = max(value, self.minimum)
        return value if self.maximum is None else min(value, self.maximum)

    def text(self) -> str:
        """``"1 <= n <= 4096"``."""
        upper = "" if self.maximum is None else f" <= {self.maximum}"
        return f"{self.minimum} <= {self.name}{upper}"


@dataclass(frozen=True)
class Value:
    """One input or output.

    Attributes:
        name: The argument's name, or ``"out"``, ``"out0"``, ... for outputs without one.
        dtype: PyTorch's name of the dtype, e.g. ``"float32"``.
        sizes: One entry per dimension, see :mod:`torchcc.sizes`.
        number: Whether C++ passes a ``double``, ``int64_t`` or ``bool`` instead of a tensor.
        minimum, maximum: Allowed range of a number of dtype ``int64``; ``None`` for no limit.
        mutated: Whether the function writes into this input.
        device: Device type.
    """

    name: str
    dtype: str
    sizes: tuple[sizes.Size, ...] = ()
    number: bool = False
    minimum: int | None = None
    maximum: int | None = None
    mutated: bool = False
    device: str = "cpu"

    def type(self) -> str:
        """``"float32[n, 768]"``, or the C++ type of a number."""
        if self.number:
            return NUMBER_TYPES[self.dtype]
        place = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.dtype}[{', '.join(map(sizes.text, self.sizes))}]{place}"

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "device": self.device,
            "sizes": [{"text": sizes.text(size), "value": size} for size in self.sizes],
            "number": self.number,
            "min": self.minimum,
            "max": self.maximum,
            "mutated": self.mutated,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Value:
        """Reads what :meth:`to_json` gives."""
        return Value(
            content["name"],
            content["dtype"],
            tuple(size["value"] for size in content["sizes"]),
            number=content["number"],
            minimum=content["min"],
            maximum=content["max"],
            mutated=content["mutated"],
            device=content["device"],
        )


@dataclass(frozen=True)
class Guard:
    """What code relies on beside ranges: ``left relation right``, with a relation ``==``, ``!=``, ``<`` or ``<=``."""

    relation: str
    left: sizes.Size
    right: sizes.Size

    def text(self) -> str:
        """``"n % 4 == 0"``."""
        return f"{sizes.text(self.left)} {self.relation} {sizes.text(self.right)}"

    def holds(self, values: Mapping[str, int]) -> bool:
        """Whether it is so for these values of the symbols."""
        left, right = sizes.evaluate(self.left, values), sizes.evaluate(self.right, values)
        return RELATIONS[self.relation](left, right)

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        return {"text": self.text(), "relation": self.relation, "left": self.left, "right": self.right}


@dataclass(frozen=True)
class Signature:
    """Name, inputs, outputs, symbols of a function, and what it relies on beside their ranges.

    ``str()`` gives the same text as C++'s ``Signature::str()``.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    symbols: tuple[Symbol, ...] = field(default=())
    guards: tuple[Guard, ...] = ()

    def __str__(self) -> str:
        inputs = ", ".join(f"{value.name}: {value.type()}" for value in self.inputs)
        outputs = ", ".join(value.type() for value in self.outputs)
        if len(self.outputs) != 1:
            outputs = f"({outputs})"
        ranges = ", ".join([*(one.text() for one in self.symbols), *(one.text() for one in self.guards)])
        return f"{self.name}({inputs}) -> {outputs}" + (f" with {ranges}" if ranges else "")

    def to_json(self) -> dict[str, Any]:
        """The manifest's form."""
        return {
            "name": self.name,
            "inputs": [value.to_json() for value in self.inputs],
            "outputs": [value.to_json() for value in self.outputs],
            "symbols": [{"name": s.name, "min": s.minimum, "max": s.maximum} for s in self.symbols],
            **({"guards": [guard.to_json() for guard in self.guards]} if self.guards else {}),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Signature:
        """Reads what :meth:`to_json` gives."""
        return Signature(
            content["name"],
            tuple(map(Value.from_json, content["inputs"])),
            tuple(map(Value.from_json, content["outputs"])),
            tuple(Symbol(one["name"], one["min"], one["max"]) for one in content["symbols"]),
            tuple(Guard(one["relation"], one["left"], one["right"]) for one in content.get("guards", ())),
        )
