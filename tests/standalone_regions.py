"""Those regions of regions.py that can do without libtorch, for the same mistakes."""

from regions import accumulate, add_relu, blend, divide, interleave, lookup

__all__ = ["accumulate", "add_relu", "blend", "divide", "interleave", "lookup"]
