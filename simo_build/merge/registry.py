"""METHODS: the merging methods by name, with their papers and the check of their parameters."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from simo_build.merge.reading import Delta, ordered
from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError, unknown


@dataclass(frozen=True)
class MergeMethod:
    """A merging method, its paper, and the check of its parameters.

    A method gets the deltas in an order of their own (`reading.ordered`), so that nothing it does
    depends on the order in which a recipe names its tasks.
    """

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
            return self.function(ordered(deltas), **params)


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


def candidates(
    params: Mapping[str, Any], choose: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Give every combination of the parameters that are to be chosen."""
    grid = itertools.product(*choose.values())
    return [{**params, **dict(zip(choose, values, strict=True))} for values in grid]
