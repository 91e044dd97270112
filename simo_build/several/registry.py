"""SEVERAL: the several-pass methods by name, what each gives, and why a build refuses it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from simo_build.merge import Delta
from simo_build.merge.reading import ordering
from simo_build.merge.registry import check_names
from simo_runtime.errors import RecipeError

STUDY = "python -m simo_bench.study --methods benchmarks/recipes/methods-several.yaml"
FLOAT32 = 4  # bytes


def weights(delta: Delta) -> int:
    """Count the weights of an encoder."""
    return sum(delta[name].numel() for name in delta)


@dataclass(frozen=True, kw_only=True)
class SeveralPass:
    """What a several-pass method gives: encoders that are one a task, and what they cost.

    deltas  one a task, computed when they are read; base + delta are the task's encoder
    bytes   what all the encoders together need stored, weights in float32, the base included
            where an encoder is made from it
    passes  operations for all tasks, in passes of one encoder: T if nothing is shared
    """

    deltas: Sequence[Delta]
    bytes: int
    passes: float

    def placed(self, order: Sequence[int]) -> "SeveralPass":
        """Give what belongs to the i-th of these tasks the place `order[i]`."""
        places = sorted(range(len(order)), key=order.__getitem__)
        return replace(self, deltas=[self.deltas[place] for place in places])


@dataclass(frozen=True)
class SeveralMethod:
    """A several-pass method, its paper, and what a build can use in its place.

    As with the methods of one encoder, nothing depends on the order in which tasks are named.
    """

    name: str
    function: Callable[..., SeveralPass]
    paper: str
    keeps: str  # for every task: the reason why one pass does not do
    instead: str

    def check(self, names: Sequence[str]) -> None:
        """Refuse parameters that the method does not have, and miss none that it needs."""
        check_names(self.name, self.function, names)

    def rehearse(self, names: Iterable[str], *, tasks: int, **params: Any) -> None:
        """Take empty tensors of these names: all the checks of the parameters, none of the work."""
        self([{name: torch.empty(0) for name in names}] * tasks, **params)

    def __call__(self, deltas: Sequence[Delta], **params: Any) -> SeveralPass:
        """Give the encoders of all tasks, in the order of the deltas."""
        self.check(list(params))
        order = ordering(deltas)
        return self.function([deltas[i] for i in order], **params).placed(order)


SEVERAL: dict[str, SeveralMethod] = {}

Function = TypeVar("Function", bound=Callable[..., SeveralPass])


def several(*, paper: str, keeps: str, instead: str) -> Callable[[Function], Function]:
    """Register a function as the several-pass method of its own name."""

    def register(function: Function) -> Function:
        name = function.__name__
        SEVERAL[name] = SeveralMethod(name, function, paper, keeps, instead)
        return function

    return register


def refuse_several(name: str) -> None:
    """Refuse a several-pass method where one encoder is wanted; let any other name through."""
    if name in SEVERAL:
        method = SEVERAL[name]
        raise RecipeError(
            f"merge.method {name} keeps {method.keeps} for every task, but a bundle runs its "
            f"encoder once for all of them; use {method.instead} (to measure {name} beside the "
            f"methods of one encoder: `{STUDY}`)"
        )
