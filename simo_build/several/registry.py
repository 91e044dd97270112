"""SEVERAL: the several-pass methods by name, what each gives, and why a build refuses it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from simo_build.encoder import Encoder
from simo_build.merge import Delta
from simo_build.merge.reading import ordering
from simo_build.merge.registry import check_names
from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError

STUDY = "python -m simo_bench.study --methods benchmarks/recipes/methods-several.yaml"
FLOAT32 = 4  # bytes


def weights(delta: Delta) -> int:
    """Count the weights of an encoder."""
    return sum(delta[name].numel() for name in delta)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a method gets that looks at images: they have no truths, and the encoder is not kept.

    A method loads other weights into the encoder as it likes.
    """

    encoder: Encoder
    base: StateDict
    images: NDArray[np.uint8]  # (n, H, W, 3), RGB


def unchanged(task: int, encoder: Encoder) -> AbstractContextManager[None]:
    """Put nothing on top of a task's encoder."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class SeveralPass:
    """What a several-pass method gives: encoders that are one a task, and what they cost.

    deltas  one a task, computed when they are read; base + delta are the task's encoder
    bytes   what all the encoders together need stored, weights in float32, the base included
            where an encoder is made from it
    passes  operations for all tasks, in passes of one encoder: T if nothing is shared
    on      what must be on top of a task's encoder while it computes features
    """

    deltas: Sequence[Delta]
    bytes: int
    passes: float
    on: Callable[[int, Encoder], AbstractContextManager[None]] = unchanged

    def placed(self, order: Sequence[int]) -> "SeveralPass":
        """Give what belongs to the i-th of these tasks the place `order[i]`."""
        places = sorted(range(len(order)), key=order.__getitem__)
        return replace(
            self,
            deltas=[self.deltas[place] for place in places],
            on=lambda task, encoder: self.on(places[task], encoder),
        )


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
    sees: bool = False  # whether it looks at images

    def check(self, names: Sequence[str]) -> None:
        """Refuse parameters that the method does not have, and miss none that it needs."""
        check_names(self.name, self.function, names)

    def rehearse(self, sight: Sight, *, tasks: int, **params: Any) -> None:
        """Take empty tensors of the base's names: all checks of the parameters, none of the work.

        Methods look at the images only when a task's encoder is read or used.
        """
        empty = {name: torch.empty(0) for name in sight.base}
        self([empty] * tasks, sight, **params)

    def __call__(
        self, deltas: Sequence[Delta], sight: Sight | None = None, **params: Any
    ) -> SeveralPass:
        """Give the encoders of all tasks, in the order of the deltas."""
        self.check(list(params))
        if self.sees and sight is None:
            raise ValueError(f"{self.name} looks at images, but there is no sight")
        order = ordering(deltas)
        seen = [sight] if self.sees else []
        return self.function([deltas[i] for i in order], *seen, **params).placed(order)


SEVERAL: dict[str, SeveralMethod] = {}

Function = TypeVar("Function", bound=Callable[..., SeveralPass])


def several(
    *, paper: str, keeps: str, instead: str, sees: bool = False
) -> Callable[[Function], Function]:
    """Register a function as the several-pass method of its own name."""

    def register(function: Function) -> Function:
        name = function.__name__
        SEVERAL[name] = SeveralMethod(name, function, paper, keeps, instead, sees)
        return function

    return register


def refuse_several(name: str) -> None:
    """Refuse a several-pass method where one encoder is wanted; let any other name through."""
    if name in SEVERAL:
        method = SEVERAL[name]
        raise RecipeError(
            f"merge.method {name} keeps {method.keeps} for every task, but a bundle runs one "
            f"encoder once for all of them; use {method.instead} (to measure {name} beside the "
            f"methods of one encoder: `{STUDY}`)"
        )
