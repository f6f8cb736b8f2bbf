"""What a family of models is, and the list of all families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torchcc import Method


@dataclass(frozen=True)
class Family:
    """A module, how its methods are called, and at which sizes.

    Attributes:
        module: In evaluation mode.
        methods: Per method, a function that makes a call with fresh arguments for some sizes.
        sizes: The sizes of the example, then those of other calls.
        stateful: Whether a call changes buffers, so that the next one gives other results.
        ranges: As ``torchcc.export`` takes them.
    """

    module: nn.Module
    methods: Mapping[str, Callable[..., Method]]
    sizes: Sequence[Mapping[str, int]] = ({}, {}, {})
    stateful: bool = False
    ranges: Mapping[str, tuple[int, int | None]] | None = None


FAMILIES: dict[str, Callable[[], Family]] = {}


def family(make: Callable[[], Family]) -> Callable[[], Family]:
    """Adds a family under the name of its function."""
    FAMILIES[make.__name__] = make
    return make


def trained(module: nn.Module) -> nn.Module:
    """A module in evaluation mode whose parameters and statistics are not those of a new one (zeros and ones)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return module.eval()


def batches(*counts: int) -> list[dict[str, int]]:
    """Sizes of calls that differ in the batch only."""
    return [{"batch": count} for count in counts]
