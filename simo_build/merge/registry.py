"""METHODS: the merging methods by name, with their papers and the check of their parameters."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from simo_build.merge.reading import Delta, ordering
from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError, unknown

# What a method may need beside the deltas: one mapping a task, from a tensor's name on.
# grams   second moments of the inputs of every layer, on unlabelled images (`simo_build.moments`)
# fisher, fisher_labels   diagonal Fisher information of every weight (`simo_build.fisher`), of the
#         expert's own predictions or, with labels, of its loss
EVIDENCE = ("", "grams", "fisher", "fisher_labels")
Evidence = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """A merging method, its paper, what it needs, and the check of its parameters.

    A method gets the deltas in an order of their own (`reading.ordered`), so that nothing it does
    depends on the order in which a recipe names its tasks. A method that needs evidence gets that
    of every task beside them, in the same order. One that walks must give a delta that is computed
    when it is read, and look at evidence only then: that of a block is there when its turn comes.
    """

    name: str
    function: Callable[..., Delta]
    paper: str
    needs: str = ""
    heavy: bool = False  # whether a GPU saves more time than bringing the deltas there takes
    # Whether every weight is merged by itself, when it is read; it may depend on the parameters.
    elementwise: bool | Callable[..., bool] = False
    walks: bool = False  # whether its evidence is that of merged blocks (`simo_build.walk`)

    def check(self, names: Sequence[str]) -> None:
        """Refuse parameters that the method does not have, and miss none that it needs."""
        check_names(self.name, self.function, names)

    def rehearse(self, names: Iterable[str], *, tasks: int, **params: Any) -> None:
        """Merge empty tensors of these names: all the checks of the parameters, none of the work.

        Raises what merging `tasks` experts of such tensors with these parameters would raise.
        """
        empty = {name: torch.empty(0) for name in names}
        self([empty] * tasks, [{}] * tasks if self.needs else None, **params)

    def __call__(
        self, deltas: Sequence[Delta], evidence: Sequence[Evidence] | None = None, **params: Any
    ) -> StateDict:
        with torch.inference_mode():
            merged = self.lazily(deltas, evidence, **params)
            return {name: merged[name] for name in merged}

    def lazily(
        self, deltas: Sequence[Delta], evidence: Sequence[Evidence] | None = None, **params: Any
    ) -> Delta:
        """Give the merged delta as the method does: one that is elementwise computes when read.

        The deltas of an elementwise method may be pieces of tensors, and other pieces each time.
        """
        self.check(list(params))
        if (evidence is None) == bool(self.needs):
            raise ValueError(f"{self.name} needs {self.needs or 'no'} evidence")
        order = ordering(deltas, None if self.walks else evidence)
        given = [[deltas[i] for i in order]]
        if evidence is not None:
            given.append([evidence[i] for i in order])
        with torch.inference_mode():
            return self.function(*given, **params)


METHODS: dict[str, MergeMethod] = {}


Function = TypeVar("Function", bound=Callable[..., Delta])


def method(
    *,
    paper: str,
    needs: str = "",
    heavy: bool = False,
    elementwise: bool | Callable[..., bool] = False,
    walks: bool = False,
) -> Callable[[Function], Function]:
    """Register a function as the merging method of its own name."""
    assert needs in EVIDENCE
    assert needs or not walks

    def register(function: Function) -> Function:
        name = function.__name__
        METHODS[name] = MergeMethod(name, function, paper, needs, heavy, elementwise, walks)
        return function

    return register


def check_names(method: str, function: Callable[..., Any], names: Sequence[str]) -> None:
    """Compare the names of parameters with the keyword arguments of a method's function."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in names:
        if name not in known:
            raise unknown(f"parameter of merge.method {method}", name, known)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in names:
            raise RecipeError(
                f"merge: {method} needs {name}; give it in `params`, or candidates in `choose`"
            )


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
