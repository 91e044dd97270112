"""Mixtures that scale: the merged delta is a sum of the deltas with learned coefficients.

Shapes: T tasks, G groups of tensors that share a coefficient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simo_build.learned.registry import Mixture, learned
from simo_build.merge import Delta
from simo_build.merge.depth import AFTER, block_of
from simo_build.merge.parameters import flag, number, one_of
from simo_build.statedict import StateDict

GRANULARITIES = ("task", "layer", "tensor")


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


def sum_of(terms: Any) -> Tensor:
    """Add tensors up, the first one first."""
    rest = iter(terms)
    total: Tensor = next(rest)
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


@learned(paper="https://arxiv.org/abs/2310.02575", loss="outputs")
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
