"""Weights as matrices: which tensors are ones, in which parts, and their singular vectors.

A matrix is a 2-D weight of a layer with more than one row and more than one column. Biases, norms,
layer scales, embeddings of positions (1, N, D) and tokens are none, and a method says what becomes
of them. A patch embedding (out, in, h, w) is one only if the recipe says `conv: flatten`.

Shapes: T tasks, M x N a matrix, r = min(M, N), R its rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_build.merge.parameters import flag, one_of
from simo_build.merge.reading import Delta, stacked
from simo_build.statedict import StateDict

CONDITION = 1e4  # up to this, singular vectors from the float64 Gram matrix are exact to 1e-8
ROUNDING = 1e-6  # what is smaller than this share of a float32 matrix is no part of it


@dataclass(frozen=True)
class Parts:
    """How tensors are seen as matrices."""

    conv: str
    split_qkv: bool

    def __post_init__(self) -> None:
        one_of("conv", self.conv, ("rest", "flatten"))
        flag("split_qkv", self.split_qkv)

    def of(self, name: str, stack: Tensor) -> Sequence[Tensor]:
        """See a (T, ...) tensor as matrices (T, M, N), one above the other; none if it is none."""
        if stack.dim() == 5 and self.conv == "flatten":
            stack = stack.flatten(2)
        if stack.dim() != 3 or min(stack.shape[1:]) < 2:
            return ()
        fused = name.endswith("qkv.weight") and stack.shape[1] % 3 == 0
        return stack.chunk(3, dim=1) if self.split_qkv and fused else (stack,)


def by_matrix(
    deltas: Sequence[Delta],
    parts: Parts,
    *,
    matrix: Callable[[str, Tensor], Tensor],
    rest: Callable[[str, Tensor], Tensor],
) -> StateDict:
    """Merge the matrices with one function, (T, M, N) to (M, N), and what is none with another.

    Both get the tensor's name too.
    """
    merged: StateDict = {}
    for name in deltas[0]:
        stack = stacked(deltas, name)
        found = parts.of(name, stack)
        new = torch.cat([matrix(name, part) for part in found]) if found else rest(name, stack)
        merged[name] = new.float().reshape(stack.shape[1:])
    return merged


def every_matrix(deltas: Sequence[Delta], parts: Parts) -> Iterator[Tensor]:
    """Read the matrices of all names, (T, M, N)."""
    for name in deltas[0]:
        yield from parts.of(name, stacked(deltas, name))


def svd(
    matrix_MN: Tensor, *, floor: float = 0.0, keep: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose in float64 into U (M, R), S (R,) and V (R, N), without the null directions.

    Directions whose singular value is at most `floor`, or rounding beside the largest, are left
    out: they are arbitrary, so nothing may depend on them. So are those after the first `keep`.
    Mostly the eigenvectors of the smaller Gram matrix are exact enough, and cost less.
    """
    if matrix_MN.shape[0] < matrix_MN.shape[1]:
        v_NR, s_R, u_RM = svd(matrix_MN.T, floor=floor, keep=keep)
        return u_RM.T, s_R, v_NR.T
    matrix_MN = matrix_MN.double()
    squares_N, v_NN = torch.linalg.eigh(matrix_MN.T @ matrix_MN)
    squares_N, v_NN = squares_N.flip(0), v_NN.flip(1)
    count = len(squares_N) if keep is None else min(keep, len(squares_N))
    if count == 0 or squares_N[count - 1] * CONDITION**2 > squares_N[0]:
        s_R, v_NR = squares_N[:count].sqrt(), v_NN[:, :count]
        u_MR, v_RN = matrix_MN @ v_NR / s_R, v_NR.T
    else:
        u_MN, s_N, v_NN = torch.linalg.svd(matrix_MN, full_matrices=False)
        u_MR, s_R, v_RN = u_MN[:, :count], s_N[:count], v_NN[:count]
    rank = int((s_R > (ROUNDING * s_R[:1]).clamp(min=floor)).sum())
    return u_MR[:, :rank], s_R[:rank], v_RN[:rank]


def polar(vectors_MJ: Tensor) -> Tensor:
    """Give the nearest orthogonal vectors to J unit vectors; those alike to 1e-6 count as one."""
    if 0 in vectors_MJ.shape:
        return vectors_MJ.double()
    u_MR, _, v_RJ = svd(vectors_MJ)
    return u_MR @ v_RJ
