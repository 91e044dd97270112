"""AdaRank: learn which singular components of every delta the merged one takes.

Shapes: T tasks, M x N a matrix, R its rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simo_build.learned.registry import Mixture, learned
from simo_build.learned.scaled import rounded, sum_of
from simo_build.merge import Delta
from simo_build.merge.matrices import Parts, svd
from simo_build.merge.parameters import number
from simo_build.statedict import StateDict

# A component is taken while its score is above zero, which is where its soft mask is above a half.
SCORE = 0.1  # of the components that are taken at the start; the others have minus that
TEMPERATURE = 10.0  # by which scores are divided in the soft mask


@dataclass(frozen=True)
class Factors:
    """A matrix as strong left vectors (M, R) and right ones (R, N)."""

    left_MR: Tensor
    right_RN: Tensor


class Ranked(Mixture):
    """The sum over tasks of coefficient times masked delta; a mask bit for every component.

    The masks are binary; gradients pass through as if they were soft (straight-through). What is
    no matrix has a coefficient alone. Deltas of matrices are kept decomposed.
    """

    def __init__(self, deltas: Sequence[Delta], parts: Parts, *, start: float, rank: float) -> None:
        super().__init__()
        self.names = list(deltas[0])
        self.factors = [
            {name: decomposed(parts, name, delta[name]) for name in self.names} for delta in deltas
        ]
        self.whole = [
            {name: delta[name] for name in self.names if not factors[name]}
            for delta, factors in zip(deltas, self.factors, strict=True)
        ]
        self.shapes = {name: delta.shape for name, delta in deltas[0].items()}
        self.weights = nn.Parameter(torch.full((len(deltas), len(self.names)), start))
        self.scores = nn.ParameterList(
            nn.Parameter(scores(len(one.right_RN), smaller_side(one), rank))
            for task in self.factors
            for found in task.values()
            for one in found
        )

    def forward(self) -> StateDict:
        masks = iter([straight_through(score_R) for score_R in self.scores])
        deltas = [
            {
                name: self.masked(task, name, [next(masks) for _ in found])
                for name, found in factors.items()
            }
            for task, factors in enumerate(self.factors)
        ]
        return {
            name: sum_of(
                weight * delta[name]
                for weight, delta in zip(column_T.unbind(), deltas, strict=True)
            )
            for name, column_T in zip(self.names, self.weights.unbind(dim=1), strict=True)
        }

    def masked(self, task: int, name: str, masks: Sequence[Tensor]) -> Tensor:
        """Give a task's tensor without the components that are not taken."""
        found = self.factors[task][name]
        if not found:
            return self.whole[task][name]
        matrices = [
            one.left_MR * mask_R @ one.right_RN for one, mask_R in zip(found, masks, strict=True)
        ]
        return torch.cat(matrices).view(self.shapes[name])

    def told(self) -> list[dict[str, Any]]:
        taken, lists = iter([int((one > 0).sum()) for one in self.scores]), []
        for row, factors in zip(self.weights.detach().cpu().tolist(), self.factors, strict=True):
            kept = {n: sum(next(taken) for _ in found) for n, found in factors.items() if found}
            coefficients = dict(zip(self.names, rounded(row), strict=True))
            lists.append({"coefficients": coefficients, "components": kept})
        return lists


def decomposed(parts: Parts, name: str, delta: Tensor) -> list[Factors]:
    """Decompose a tensor that is a matrix, or several above one another; nothing if it is none."""
    found = []
    for part_1MN in parts.of(name, delta.unsqueeze(0)):
        u_MR, s_R, v_RN = svd(part_1MN[0])
        found.append(Factors((u_MR * s_R).float().contiguous(), v_RN.float().contiguous()))
    return found


def smaller_side(factors: Factors) -> int:
    """Give the smaller side of the matrix."""
    return min(factors.left_MR.shape[0], factors.right_RN.shape[1])


def scores(rank: int, side: int, share: float) -> Tensor:
    """Score a matrix's components so that the strongest are taken: a share of its smaller side."""
    taken = torch.arange(rank) < int(share * side)
    return torch.where(taken, SCORE, -SCORE)


def straight_through(score_R: Tensor) -> Tensor:
    """Give a binary mask whose gradient is that of the soft one."""
    soft_R = torch.sigmoid(score_R / TEMPERATURE)
    return soft_R + ((score_R > 0).float() - soft_R).detach()


@learned(paper="https://arxiv.org/abs/2503.22178", loss="outputs")
def adarank(
    deltas: Sequence[Delta],
    *,
    start: float = 0.3,
    rank: float = 0.16,
    conv: str = "rest",
    split_qkv: bool = False,
) -> Mixture:
    """Learn which singular components of every delta to take, and a coefficient for every tensor.

    At the start each task gives the strongest components of its matrices, a share `rank` of them.
    """
    return Ranked(
        deltas,
        Parts(conv, split_qkv),
        start=number("start", start),
        rank=number("rank", rank, above=0, most=1),
    )
