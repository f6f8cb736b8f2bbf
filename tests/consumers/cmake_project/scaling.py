"""A module of the consumer's own: a change here rebuilds the regions."""

SCALE = 3.0
