"""Methods that merge matrices by their singular vectors; everything else takes the mean.

Computed in float64. `conv: flatten` merges the patch embedding as a matrix too, and `split_qkv`
takes the rows of q, k and v of a fused attention weight for matrices of their own.

Shapes: T tasks, M x N a matrix, r = min(M, N), K directions kept of one task, J of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.matrices import ROUNDING, Parts, by_matrix, polar, svd
from simo_build.merge.reading import Delta
from simo_build.merge.registry import method
from simo_build.statedict import StateDict


def mean(stack: Tensor) -> Tensor:
    """Average (T, ...) over the tasks."""
    return stack.mean(dim=0, dtype=torch.float64)


@method(paper="https://arxiv.org/abs/2412.00081", heavy=True)
def tsv_m(
    deltas: Sequence[Delta], *, alpha: ByLayer = 1.0, conv: str = "rest", split_qkv: bool = False
) -> StateDict:
    """Keep each task's top int(r / T) singular directions, make all of them orthogonal, add up.

    Left and right vectors of all tasks are each replaced by the nearest orthogonal ones.
    """
    scale = by_layer("alpha", alpha, deltas[0])

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        keep = min(stack_TMN.shape[1:]) // len(stack_TMN)
        kept = [top(delta_MN, keep) for delta_MN in stack_TMN]
        return scale[name] * orthogonal_sum(kept)

    return by_matrix(
        deltas,
        Parts(conv, split_qkv),
        matrix=matrix,
        rest=lambda name, stack: scale[name] * mean(stack),
    )


Directions = tuple[Tensor, Tensor, Tensor]  # (M, K), (K,), (K, N)


def top(matrix_MN: Tensor, keep: int, *, floor: float = 0.0) -> Directions:
    """Give a matrix's directions of largest singular values, if they are above the floor."""
    return svd(matrix_MN, floor=floor, keep=keep)


def orthogonal_sum(kept: Sequence[Directions], *, sigma: float | None = None) -> Tensor:
    """Add directions up after making their vectors orthogonal; `sigma` replaces all strengths."""
    u_MJ = torch.cat([u for u, _, _ in kept], dim=1)
    s_J = torch.cat([s for _, s, _ in kept])
    v_JN = torch.cat([v for _, _, v in kept])
    strengths_J = s_J if sigma is None else torch.full_like(s_J, sigma)
    return polar(u_MJ) * strengths_J @ polar(v_JN.T).T


@method(paper="https://arxiv.org/abs/2502.04959", heavy=True)
def iso_c(
    deltas: Sequence[Delta], *, alpha: ByLayer, conv: str = "rest", split_qkv: bool = False
) -> StateDict:
    """Add the deltas up and replace all singular values of the sum by their mean."""
    scale = by_layer("alpha", alpha, deltas[0])

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        u_MR, s_R, v_RN = svd(stack_TMN.sum(dim=0, dtype=torch.float64))
        return scale[name] * s_R.sum() / min(stack_TMN.shape[1:]) * (u_MR @ v_RN)

    return by_matrix(
        deltas,
        Parts(conv, split_qkv),
        matrix=matrix,
        rest=lambda name, stack: scale[name] * mean(stack),
    )


@method(paper="https://arxiv.org/abs/2502.04959", heavy=True)
def iso_cts(
    deltas: Sequence[Delta],
    *,
    alpha: ByLayer,
    common: ByLayer = 0.8,
    conv: str = "rest",
    split_qkv: bool = False,
) -> StateDict:
    """Keep the sum's top directions, add each task's own, make all orthogonal and equally strong.

    About `common` of the r directions are the sum's; the others are shared out among the tasks
    evenly, and are the top ones of what the sum's left vectors leave of a delta. Their strength is
    the mean of all.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    shares = by_layer("common", common, deltas[0], least=0, most=1)

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        tasks, rank = len(stack_TMN), min(stack_TMN.shape[1:])
        own = min(round((rank - int(rank * shares[name])) / tasks), rank // tasks)
        shared = top(stack_TMN.sum(dim=0, dtype=torch.float64), rank - own * tasks)
        kept = [own_directions(delta_MN.double(), shared[0], own) for delta_MN in stack_TMN]
        kept.append(shared)
        sigma = sum(float(s.sum()) for _, s, _ in kept) / rank
        return scale[name] * orthogonal_sum(kept, sigma=sigma)

    return by_matrix(
        deltas,
        Parts(conv, split_qkv),
        matrix=matrix,
        rest=lambda name, stack: scale[name] * mean(stack),
    )


def own_directions(matrix_MN: Tensor, u_MK: Tensor, keep: int) -> Directions:
    """Give the top directions of what is left of a matrix without a space of columns."""
    rest_MN = matrix_MN - u_MK @ (u_MK.T @ matrix_MN)
    return top(rest_MN, keep, floor=ROUNDING * float(matrix_MN.norm()))
