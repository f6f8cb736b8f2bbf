"""Sizes: reading, writing and evaluating expressions."""

from __future__ import annotations

import random

import pytest

from torchcc import sizes


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("768", 768),
        ("n", "n"),
        ("2*n", ["*", 2, "n"]),
        ("n+1", ["+", "n", 1]),
        ("n-1", ["+", "n", -1]),
        ("(n+1)*m", ["*", ["+", "n", 1], "m"]),
        ("n//2", ["//", "n", 2]),
    ],
)
def test_parse(source: str, value: sizes.Size) -> None:
    assert sizes.parse(source) == value
    assert sizes.text(value) == source


@pytest.mark.parametrize("source", ["n.x", "f(n)", "1.5", "n/2", "", "n n", "'n'", "True"])
def test_parse_refuses(source: str) -> None:
    with pytest.raises(ValueError, match="is not a number|uses more than"):
        sizes.parse(source)


def test_text_of_unknown() -> None:
    assert sizes.text(None) == "?"
    assert sizes.text(["max", "n", ["*", 2, "m"]]) == "max(n, 2*m)"


def random_size(generator: random.Random, depth: int) -> sizes.Size:
    """A random expression of the symbols n and m."""
    if depth == 0 or generator.random() < 0.2:
        return generator.choice(["n", "m", generator.randint(1, 9)])
    operator = generator.choice(["+", "*", "//", "%"])
    return [operator, random_size(generator, depth - 1), random_size(generator, depth - 1)]


def test_text_means_the_same() -> None:
    """What is printed evaluates, as Python, to what the expression evaluates to."""
    generator = random.Random(7)
    for _ in range(500):
        size = random_size(generator, 4)
        values = {"n": generator.randint(1, 50), "m": generator.randint(1, 50)}
        try:
            expected = sizes.evaluate(size, values)
        except ZeroDivisionError:
            continue
        assert eval(sizes.text(size), {}, values) == expected, sizes.text(size)
        assert sizes.evaluate(sizes.parse(sizes.text(size)), values) == expected


def test_symbols() -> None:
    assert sizes.symbols(["+", ["*", 2, "n"], "m"]) == {"n", "m"}
    assert sizes.symbols(5) == set()
