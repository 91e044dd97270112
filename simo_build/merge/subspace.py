"""Essential subspaces: the directions in which a task moves the outputs of a layer.

The evidence is `grams` (`simo_build.moments`): with G the mean of x x' over an expert's own inputs,
the outputs' shifts delta x have the second moments delta G delta', whose eigenvectors are the
principal directions of the shifts. Computed in float64.

Shapes: T tasks, M x N a matrix, K directions kept of one task, J of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simo_build.merge.depth import BLOCK, ByLayer, by_layer
from simo_build.merge.inputs import has_gram
from simo_build.merge.matrices import Parts, by_matrix, polar, svd
from simo_build.merge.parameters import number
from simo_build.merge.reading import Delta
from simo_build.merge.registry import Evidence, method
from simo_build.merge.spectral import mean
from simo_build.statedict import StateDict


@method(paper="https://arxiv.org/abs/2602.20208", needs="grams", heavy=True)
def esm(
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence],
    *,
    alpha: ByLayer,
    power: float = 2.0,
    conv: str = "rest",
    split_qkv: bool = False,
) -> StateDict:
    """Keep each task's top int(M / T) directions of shifted outputs, make all orthogonal, add up.

    Polarised scaling multiplies by a norm's share of the mean norm, to a power: each task's part of
    a matrix, each input of all parts, and each merged matrix among those of the other blocks. A
    power of 0 is none. What is no matrix takes the mean.
    """
    scale = by_layer("alpha", alpha, deltas[0])
    strength, parts = number("power", power, least=0, most=8), Parts(conv, split_qkv)

    def matrix(name: str, stack_TMN: Tensor) -> Tensor:
        if not has_gram(evidence[0], name):
            return mean(stack_TMN)
        grams_TNN = [one[name][:-1, :-1].double() for one in evidence]
        return essential(stack_TMN.double(), grams_TNN, power=strength)

    merged = by_matrix(deltas, parts, matrix=matrix, rest=lambda _, stack: mean(stack))
    matrices = [n for n in merged if has_gram(evidence[0], n) and parts.of(n, merged[n][None])]
    merged |= polarised_layers({name: merged[name] for name in matrices}, power=strength)
    return {name: scale[name] * tensor for name, tensor in merged.items()}


def essential(stack_TMN: Tensor, grams_TNN: Sequence[Tensor], *, power: float) -> Tensor:
    """Merge a matrix within the tasks' essential subspaces, all of them made orthogonal."""
    keep = stack_TMN.shape[1] // len(stack_TMN)
    pairs = zip(stack_TMN, grams_TNN, strict=True)
    bases = [shifted(delta_MN, gram_NN)[:, :keep] for delta_MN, gram_NN in pairs]
    parts = [b_MK.T @ delta_MN for b_MK, delta_MN in zip(bases, stack_TMN, strict=True)]
    sizes_T = torch.stack([part_KN.norm() for part_KN in parts])
    weights_T = share_of_mean(sizes_T, power=power)
    parts_JN = torch.cat([w * part_KN for w, part_KN in zip(weights_T, parts, strict=True)])
    parts_JN = parts_JN * share_of_mean(parts_JN.norm(dim=0), power=power)
    if parts_JN.numel() == 0 or not bool(parts_JN.any()):
        return torch.zeros_like(stack_TMN[0])
    sigma = svd(parts_JN)[1].sum() / min(parts_JN.shape)
    return sigma * polar(torch.cat(bases, dim=1)) @ polar(parts_JN.T).T


def shifted(delta_MN: Tensor, gram_NN: Tensor) -> Tensor:
    """Give the principal directions (M, R) of the outputs' shifts; those of no shift are none."""
    squares_N, vectors_NN = torch.linalg.eigh(gram_NN)
    root_NN = vectors_NN * squares_N.clamp(min=0).sqrt()
    return svd(delta_MN @ root_NN)[0]


def share_of_mean(norms: Tensor, *, power: float) -> Tensor:
    """Give each norm's share of their mean, to a power; norms that are all zero give ones."""
    level = norms.mean()
    return (norms / level) ** power if level > 0 else torch.ones_like(norms)


def polarised_layers(merged: StateDict, *, power: float) -> StateDict:
    """Scale each matrix by its norm's share of the mean over the same layer of all blocks."""
    kinds: dict[str, list[str]] = {}
    for name in merged:
        kinds.setdefault(BLOCK.sub(".", name), []).append(name)
    scaled: StateDict = {}
    for names in kinds.values():
        norms = torch.stack([merged[name].double().norm() for name in names])
        shares = share_of_mean(norms, power=power).float()
        scaled |= {n: share * merged[n] for n, share in zip(names, shares, strict=True)}
    return scaled
