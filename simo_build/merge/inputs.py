"""Methods that look at what goes into every layer: closed forms from the inputs' second moments.

The evidence is `grams` (`simo_build.moments`): for a matrix the mean of x x' over the tokens of
unlabelled images, x being the inputs of its layer in that expert and a 1 at their end. Everything
is merged when it is read, in float64. What has no Gram matrix (tokens, positions) takes the mean.

Shapes: T tasks, M x N a matrix, A = N + 1 with the bias as the last column.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import ByLayer, by_layer
from simo_build.merge.parameters import number, one_of
from simo_build.merge.reading import Delta, Lazily, stacked
from simo_build.merge.registry import Evidence, method
from simo_build.merge.spectral import mean
from simo_runtime.errors import RecipeError

# A channel of which less than this share is its own, not told by other channels, is none of its
# own: Gram matrices are kept in float32.
OWN = 1e-6


@method(paper="https://arxiv.org/abs/2212.09849", needs="grams", heavy=True)
def regmean(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer = 1.0,
    off_diagonal: float = 0.9,
    bias: str = "mean",
) -> Delta:
    """Merge every matrix so that its outputs are nearest, in squares, to those of all experts.

    The sum over tasks of |(M - delta_t) x|^2 is smallest at M = (sum of delta_t G_t) (sum of
    G_t)^-1. Off-diagonal elements of the Gram matrices are scaled first, as the source does.
    Biases take the mean, as there, or are solved for too (`bias: joint`).
    """
    return by_regression(deltas, evidence, alpha=alpha, off_diagonal=off_diagonal, bias=bias)


@method(paper="https://arxiv.org/abs/2508.03121", needs="grams", heavy=True, walks=True)
def regmean_plusplus(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer = 1.0,
    off_diagonal: float = 0.9,
    bias: str = "mean",
) -> Delta:
    """Merge as `regmean` does, block after block: each gets what the merged ones before it give."""
    return by_regression(deltas, evidence, alpha=alpha, off_diagonal=off_diagonal, bias=bias)


def by_regression(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer,
    off_diagonal: float,
    bias: str,
) -> Delta:
    """Merge by least squares on what the evidence says of the inputs."""
    scale = by_layer("alpha", alpha, deltas[0])
    share = number("off_diagonal", off_diagonal, least=0, most=1)
    joint = one_of("bias", bias, ("mean", "joint")) == "joint"

    def matrix(name: str, columns_TMN: Tensor, grams_TNN: Tensor) -> Tensor:
        own_TNN = torch.diag_embed(grams_TNN.diagonal(dim1=1, dim2=2))
        return nearest(columns_TMN, torch.lerp(own_TNN, grams_TNN, share), name)

    merged = by_layer_inputs(deltas, evidence, joint=joint, matrix=matrix)
    return Lazily(deltas[0], lambda name: scale[name] * merged[name])


@method(paper="https://arxiv.org/abs/2505.23859", needs="grams", heavy=True)
def lot(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer = 1.0,
    rcond: float = 1e-6,
) -> Delta:
    """Give every layer the delta whose outputs drift least, in squares, from all experts' outputs.

    A matrix is (sum of delta_t G_t) (sum of G_t)^+, where the pseudoinverse leaves out what is at
    most `rcond` of the largest eigenvalue: along what no input has, the base stays. A norm's weight
    or a layer scale is the mean weighted by its channel's mean square, biases take the mean.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    least = number("rcond", rcond, above=0, below=1)

    def matrix(name: str, columns_TMN: Tensor, grams_TNN: Tensor) -> Tensor:
        return drifting_least(columns_TMN, grams_TNN, rcond=least)

    merged = by_layer_inputs(deltas, evidence, joint=False, matrix=matrix, channels=by_size)
    return Lazily(deltas[0], lambda name: scale[name] * merged[name])


def drifting_least(columns_TMN: Tensor, grams_TNN: Tensor, *, rcond: float) -> Tensor:
    """Give the smallest solution of M * sum of G_t = sum of delta_t G_t."""
    squares_N, vectors_NN = torch.linalg.eigh(grams_TNN.sum(dim=0))
    kept_N = squares_N > rcond * squares_N[-1]
    vectors_NK = vectors_NN[:, kept_N]
    inverse_NN: Tensor = vectors_NK / squares_N[kept_N] @ vectors_NK.T
    return (columns_TMN @ grams_TNN).sum(dim=0) @ inverse_NN


def by_size(stack_TN: Tensor, squares_TN: Tensor) -> Tensor:
    """Average every channel by its mean square in every expert; one that is zero takes the mean."""
    total_N = squares_TN.sum(dim=0)
    weighed_N = (squares_TN * stack_TN).sum(dim=0) / total_N
    return torch.where(total_N > 0, weighed_N, stack_TN.double().mean(dim=0))


def by_layer_inputs(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    joint: bool,
    matrix: Callable[[str, Tensor, Tensor], Tensor],
    channels: Callable[[Tensor, Tensor], Tensor] = lambda stack_TN, _: mean(stack_TN),
) -> Delta:
    """Merge what has Gram matrices with a function, (T, M, N) and (T, N, N) to (M, N).

    If joint, N counts one more: the bias is the last column. `channels` merges what multiplies
    every channel by itself, (T, N) and mean squares (T, N) to (N,). The rest takes the mean.
    """

    def layer(name: str) -> Tensor:
        stack, bias = stacked(deltas, name), partner(name, "weight", "bias", deltas[0])
        grams_TNN = torch.stack([one[name].double() for one in evidence])
        columns_TMN = stack.flatten(2).double()
        if not joint or bias is None:
            return matrix(name, columns_TMN, grams_TNN[:, :-1, :-1])
        bias_TM1 = stacked(deltas, bias).double().unsqueeze(2)
        return matrix(name, torch.cat((columns_TMN, bias_TM1), dim=2), grams_TNN)

    def merged(name: str) -> Tensor:
        stack = stacked(deltas, name)
        weight = partner(name, "bias", "weight", evidence[0])
        if joint and weight is not None:
            return layer(weight)[:, -1].float()
        seen = [one[name].double() for one in evidence if name in one]
        if not seen:
            return mean(stack).float()
        if seen[0].dim() == 1:
            return channels(stack, torch.stack(seen)).float()
        width = stack[0].flatten(1).shape[1]
        return layer(name)[:, :width].float().reshape(stack.shape[1:])

    return Lazily(deltas[0], merged)


def partner(name: str, ending: str, other: str, there: Delta) -> str | None:
    """Find the bias of a weight, or the weight of a bias, if it is a matrix and is there."""
    found = f"{name.removesuffix(ending)}{other}"
    if not name.endswith(f".{ending}") or found not in there:
        return None
    return found if other == "bias" or has_gram(there, found) else None


def has_gram(evidence: Evidence, name: str) -> bool:
    """Tell a matrix with a Gram matrix from all else; scales have a vector."""
    return name in evidence and evidence[name].dim() == 2


def nearest(columns_TMN: Tensor, grams_TNN: Tensor, name: str) -> Tensor:
    """Solve M * sum of G_t = sum of delta_t G_t; RecipeError if it has no single solution.

    Channels that are zero in all experts say nothing: their columns take the mean.
    """
    total_NN, pull_MN = grams_TNN.sum(dim=0), (columns_TMN @ grams_TNN).sum(dim=0)
    alive_N = total_NN.diagonal() > 0
    size_K = total_NN.diagonal()[alive_N].sqrt()
    # with a diagonal of ones a pivot is the share of a channel that no earlier channel tells
    even_KK = total_NN[alive_N][:, alive_N] / torch.outer(size_K, size_K)
    factor_KK, failed = torch.linalg.cholesky_ex(even_KK)
    if failed or bool((factor_KK.diagonal().square() < OWN).any()):
        raise RecipeError(
            f"merge: on these images the inputs of {name} do not tell its {len(alive_N)} channels "
            "apart; set off_diagonal below 1, or give more `images`"
        )
    merged_MN = columns_TMN.mean(dim=0)
    solved_KM = torch.cholesky_solve((pull_MN[:, alive_N] / size_K).T, factor_KK)
    merged_MN[:, alive_N] = solved_KM.T / size_K
    return merged_MN
