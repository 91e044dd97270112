"""Checks of a method's parameters: a value of the recipe in, a value that can be trusted out."""

import operator
from collections.abc import Sequence

from simo_runtime.errors import RecipeError


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Check that a parameter is a finite number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecipeError(f"merge.{name} is {value!r}; it must be a number")
    if not -1e6 < value < 1e6:
        raise RecipeError(f"merge.{name} is {value}; it must be a finite number, below 1e6 in size")
    bounds = (
        ("above", above, operator.gt),
        ("at least", least, operator.ge),
        ("below", below, operator.lt),
        ("at most", most, operator.le),
    )
    given = [(word, bound, holds) for word, bound, holds in bounds if bound is not None]
    if not all(holds(value, bound) for _, bound, holds in given):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound, _ in given)
        raise RecipeError(f"merge.{name} is {value}; it must be {wanted}")
    return float(value)


def whole(name: str, value: object, *, least: int) -> int:
    """Check that a parameter is a whole number; 2.0 is one, since `choose` holds floats."""
    found = number(name, value, least=least)
    if found != int(found):
        raise RecipeError(f"merge.{name} is {value}; it must be a whole number")
    return int(found)


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """Check that a parameter is one of some words."""
    if value not in allowed:
        raise RecipeError(f"merge.{name} is {value!r}; it must be one of: {', '.join(allowed)}")
    return str(value)


def flag(name: str, value: object) -> bool:
    """Check that a parameter is true or false."""
    if not isinstance(value, bool):
        raise RecipeError(f"merge.{name} is {value!r}; it must be true or false")
    return value
