"""Measurements of torchcc. ``python -m benchmarks`` lists them; README.md says how to read what they print."""
