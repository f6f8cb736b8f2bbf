"""Those regions of regions.py that can do without libtorch, for the mistakes of errors/mistakes.h."""

from regions import accumulate, add_relu, blend, divide, interleave, lookup

__all__ = ["accumulate", "add_relu", "blend", "divide", "interleave", "lookup"]
