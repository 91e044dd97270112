"""Mixtures that scale: the merged delta is a sum of the deltas with learned coefficients.

Shapes: T tasks, G groups of tensors that share a coefficient, K parts of one tensor.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simo_build.learned.registry import Mixture, learned
from simo_build.merge import Delta
from simo_build.merge.depth import AFTER, block_of
from simo_build.merge.parameters import flag, number, one_of, whole
from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError

GRANULARITIES = ("task", "layer", "tensor")
MOST_PARTS = 256  # whose numbers fit into a byte


class Scaled(Mixture):
    """The sum over tasks of coefficient times delta; a coefficient for every task and group."""

    def __init__(
        self,
        deltas: Sequence[Delta],
        groups: Sequence[str],
        *,
        start: float,
        squash: Callable[[Tensor], Tensor] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.deltas, self.squash, self.bounds = list(deltas), squash, bounds
        self.labels = list(dict.fromkeys(groups))
        places = {label: place for place, label in enumerate(self.labels)}
        self.places = {name: places[label] for name, label in zip(deltas[0], groups, strict=True)}
        self.weights = nn.Parameter(torch.full((len(deltas), len(self.labels)), start))

    def coefficients(self) -> Tensor:
        """Give the coefficients, (T, G)."""
        weights: Tensor = self.weights
        return self.squash(weights) if self.squash else weights

    def forward(self) -> StateDict:
        rows = self.coefficients().unbind()
        return {
            name: sum_of(
                row[place] * delta[name] for row, delta in zip(rows, self.deltas, strict=True)
            )
            for name, place in self.places.items()
        }

    @torch.no_grad()
    def project(self) -> None:
        if self.bounds is not None:
            self.weights.clamp_(*self.bounds)

    def told(self) -> list[dict[str, Any]]:
        rows = self.coefficients().detach().cpu().tolist()
        return [dict(zip(self.labels, rounded(row), strict=True)) for row in rows]


class Partitioned(Mixture):
    """As `Scaled` by tensor, but every tensor's weights are shared out among K coefficients.

    Which weights go together is drawn from the tensor's name, so that it is the same for all tasks.
    """

    def __init__(self, deltas: Sequence[Delta], parts: int, *, start: float) -> None:
        super().__init__()
        self.deltas = list(deltas)
        self.names = list(deltas[0])
        self.members = {name: members(name, deltas[0][name], parts) for name in self.names}
        self.weights = nn.Parameter(torch.full((len(deltas), len(self.names), parts), start))

    def forward(self) -> StateDict:
        return {name: self.mixed(name, row) for row, name in enumerate(self.names)}

    def mixed(self, name: str, row: int) -> Tensor:
        """Mix one tensor, whose coefficients stand in this row."""
        index = self.members[name].long()
        return sum_of(
            own_GK[row].index_select(0, index).view_as(delta[name]) * delta[name]
            for own_GK, delta in zip(self.weights.unbind(), self.deltas, strict=True)
        )

    def told(self) -> list[dict[str, Any]]:
        return [
            {name: rounded(own) for name, own in zip(self.names, task, strict=True)}
            for task in self.weights.detach().cpu().tolist()
        ]


def members(name: str, like: Tensor, parts: int) -> Tensor:
    """Say for every weight of a tensor, in a row, to which of its parts it belongs."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
    order = torch.randperm(like.numel(), generator=torch.Generator().manual_seed(key))
    return (order % parts).to(torch.uint8).to(like.device)


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """Add tensors up, the first one first."""
    rest = iter(terms)
    total = next(rest)
    for term in rest:
        total = total + term
    return total


def rounded(values: Sequence[float]) -> list[float]:
    """Round for a log."""
    return [round(value, 6) for value in values]


def grouped(names: Sequence[str], granularity: str) -> list[str]:
    """Name the group of every tensor: all of a task, those of one block, or each by itself.

    What lies before the blocks is one layer, what lies after them another.
    """
    one_of("granularity", granularity, GRANULARITIES)
    if granularity == "task":
        return ["all" for _ in names]
    return [layer_of(name) if granularity == "layer" else name for name in names]


def layer_of(name: str) -> str:
    """Name the layer of a tensor: the number of its block, or what lies before or after blocks."""
    block = block_of(name)
    if block is not None:
        return f"block {block}"
    return "after" if AFTER.search(name) else "before"


@learned(paper="https://arxiv.org/abs/2310.02575", loss="outputs", lr=3e-2)
def adamerging(
    deltas: Sequence[Delta],
    *,
    granularity: str = "tensor",
    start: float = 0.3,
    clamp: bool = True,
) -> Mixture:
    """Learn a coefficient for every task and tensor, layer, or for the task as a whole.

    The source takes the entropy of the predictions on test images for its loss, which depth and
    normals do not have. `clamp` keeps the coefficients in [0, 1].
    """
    bounds = (0.0, 1.0) if flag("clamp", clamp) else None
    first = number("start", start, least=0, most=1) if bounds else number("start", start)
    return Scaled(deltas, grouped(list(deltas[0]), granularity), start=first, bounds=bounds)


@learned(paper="https://arxiv.org/abs/2412.19098", loss="pseudo", batch=32)
def tint(
    deltas: Sequence[Delta],
    *,
    granularity: str = "tensor",
    start: float = 0.3,
    clamp: bool = True,
) -> Mixture:
    """Learn coefficients as `adamerging` does, from what the experts predict, where it is trusted.

    These are Model Tinting's coefficients alone: the layer of every task that it learns with them
    is a head's, and belongs to re-alignment.
    """
    return adamerging(deltas, granularity=granularity, start=start, clamp=clamp)


@learned(paper="https://arxiv.org/abs/2407.02880", loss="labels", lr=3e-2, weight_decay=0.1)
def atlas(deltas: Sequence[Delta], *, start: float = 0.0, parts: float = 1) -> Mixture:
    """Learn a coefficient for every task and tensor, without bounds, from the base on.

    With `parts` above 1 a tensor's weights are shared out at random among that many coefficients.
    """
    first, count = number("start", start), whole("parts", parts, least=1)
    if count > MOST_PARTS:
        raise RecipeError(f"merge.parts is {count}; it must be at most {MOST_PARTS}")
    if count > 1:
        return Partitioned(deltas, count, start=first)
    return Scaled(deltas, list(deltas[0]), start=first)


@learned(paper="https://arxiv.org/abs/2412.10416", loss="labels")
def supermerge(
    deltas: Sequence[Delta], *, granularity: str = "layer", start: float = 0.3
) -> Mixture:
    """Learn coefficients tanh(w) for every task and layer from a few labelled images."""
    first = number("start", start, above=-1, below=1)
    groups = grouped(list(deltas[0]), granularity)
    return Scaled(deltas, groups, start=math.atanh(first), squash=torch.tanh)
