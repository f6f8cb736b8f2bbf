"""Whole models as PyTorch users write them: the families that ``torchcc.export`` is tested on.

Each is small, because what counts is which operators, control flow, containers and sizes it has. ``FAMILIES`` holds a
function per family that makes a :class:`Family`; all numbers come from torch's global generator.
"""

from models import arguments, control_flow, memory, numerics, perceptrons, sequences, vision  # these fill FAMILIES
from models.family import FAMILIES, Family, trained

__all__ = [
    "FAMILIES",
    "Family",
    "arguments",
    "control_flow",
    "memory",
    "numerics",
    "perceptrons",
    "sequences",
    "trained",
    "vision",
]
