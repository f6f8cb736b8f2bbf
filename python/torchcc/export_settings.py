"""What is made of a model: what ``torchcc.export``, ``torchcc export`` and ``torchcc compile`` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExportSettings:
    """Keyword arguments of :func:`torchcc.export`, under the same names.

    Attributes:
        targets: What to compile for; see :data:`torchcc.targets.TARGETS`.
        updatable: Whether the weights of compiled code can be replaced, as it takes them as inputs.
        train: Whether to compile forward and backward for training too.
        options: Options of Inductor.
        imports: Python files, names of modules, and shared libraries that define custom operators and dataclasses of
            the graphs.
        weights: Where a standalone program has its weights: ``"embedded"``, or in a ``"file"``.
        libraries: What a standalone program may link for operators that Inductor does not generate: ``"onednn"``.
        march: The compiler's ``-march`` for standalone sources; empty for the least that they need.
    """

    targets: Sequence[str] = ("native",)
    updatable: bool = False
    train: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    imports: Sequence[Path | str] = ()
    weights: str = "embedded"
    libraries: Sequence[str] = ()
    march: str = ""
