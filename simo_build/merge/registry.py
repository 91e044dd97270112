"""Merging methods: METHODS holds one short function each, deltas in, one delta out.

A delta is tuned - base, name to tensor, of one task; the merged encoder is base + delta. A
function's keyword arguments are the recipe's `merge.params`. Functions compute in float32, may
pass over the deltas several times, and never write to them.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError, unknown

Delta = Mapping[str, Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """A merging method, its paper, and the check of its parameters."""

    name: str
    function: Callable[..., StateDict]
    paper: str

    def check(self, names: Sequence[str]) -> None:
        """Refuse parameters that the method does not have, and miss none that it needs."""
        known = {
            name: parameter
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for name in names:
            if name not in known:
                raise unknown(f"parameter of merge.method {self.name}", name, known)
        for name, parameter in known.items():
            if parameter.default is parameter.empty and name not in names:
                raise RecipeError(
                    f"merge: {self.name} needs {name}; give it in `params`, or candidates in "
                    "`choose`"
                )

    def __call__(self, deltas: Sequence[Delta], **params: Any) -> StateDict:
        self.check(list(params))
        with torch.inference_mode():
            return self.function(deltas, **params)


METHODS: dict[str, MergeMethod] = {}


def method(*, paper: str) -> Callable[[Callable[..., StateDict]], Callable[..., StateDict]]:
    """Register a function as the merging method of its own name."""

    def register(function: Callable[..., StateDict]) -> Callable[..., StateDict]:
        METHODS[function.__name__] = MergeMethod(function.__name__, function, paper)
        return function

    return register


def method_named(name: str) -> MergeMethod:
    """Look a merging method up, or say which ones there are."""
    if name not in METHODS:
        raise unknown("merge.method", name, METHODS)
    return METHODS[name]


def number(name: str, value: object) -> float:
    """Check that a parameter is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecipeError(f"merge.{name} is {value!r}; it must be a number")
    if not -1e6 < value < 1e6:
        raise RecipeError(f"merge.{name} is {value}; it must be a finite number")
    return float(value)


@method(paper="https://arxiv.org/abs/2212.04089")
def task_arithmetic(deltas: Sequence[Delta], *, alpha: float) -> StateDict:
    """Add the deltas up and scale the sum: alpha * (delta_1 + ... + delta_T)."""
    scale = number("alpha", alpha)
    return {name: scale * total(deltas, name) for name in deltas[0]}


@method(paper="https://arxiv.org/abs/2203.05482")
def average(deltas: Sequence[Delta]) -> StateDict:
    """Take the mean of the deltas, which is task arithmetic with alpha = 1 / T."""
    return {name: total(deltas, name) / len(deltas) for name in deltas[0]}


def total(deltas: Sequence[Delta], name: str) -> Tensor:
    """Add one tensor up over the tasks, in float64, so that the order of tasks changes nothing."""
    summed = torch.zeros_like(deltas[0][name], dtype=torch.float64)
    for delta in deltas:
        summed += delta[name].double()
    return summed.float()


def candidates(
    params: Mapping[str, Any], choose: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Give every combination of the parameters that are to be chosen."""
    grid = itertools.product(*choose.values())
    return [{**params, **dict(zip(choose, values, strict=True))} for values in grid]
