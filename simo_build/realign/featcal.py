"""`featcal`: solve layer after layer in closed form, so that each puts out what the experts' do.

From arXiv 2605.13030. Layers are solved in the order in which they run, each by what the solved
layers before it give. With x_s what goes into a layer of the shared encoder, x_e into that of an
expert, and x_t = alpha x_e + (1 - alpha) x_s, the weight W of a linear layer is where

    sum over experts t of |W x_s - W_t x_t|^2 / |C|  +  ridge |W - A|^2

is smallest: C is the mean of x_s x_s', |C| its Frobenius norm, and A = rho W_shared + (1 - rho)
W_base. All experts look at the same images, so that C is the same for all.

Shapes: T experts, M x N a matrix; A = N + 1 with a 1 at the end of a layer's inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.moments import Sums, inputs_of
from simo_build.progress import Progress
from simo_build.realign.sidebyside import Stretch, side_by_side
from simo_build.statedict import StateDict


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The method's parameters; see the module."""

    alpha: float  # 0 to 1: how much of a target's inputs is the expert's
    rho: float  # where the anchor lies: the base at 0, the shared encoder at 1
    ridge: float  # how much the anchor counts


@dataclass(frozen=True)
class Problem:
    """The weights of experts, shared encoder and base by their names, and the parameters.

    Tensors are given in float64, a convolution's weight as a matrix.
    """

    experts: Sequence[StateDict]
    shared: StateDict
    base: StateDict
    settings: Settings

    def of_experts(self, name: str) -> Tensor:
        """Give one tensor of all experts, (T, ...)."""
        return torch.stack([_plain(one[name]) for one in self.experts])

    def anchor(self, name: str) -> Tensor:
        """Give what a tensor is drawn to."""
        rho = self.settings.rho
        return rho * _plain(self.shared[name]) + (1 - rho) * _plain(self.base[name])


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.to(device()).double()
    return tensor.flatten(1) if tensor.dim() == 4 else tensor


@torch.no_grad()
def featcal(
    encoder: Encoder, problem: Problem, samples: Samples, *, progress: Progress
) -> StateDict:
    """Give the shared encoder's weights, calibrated to the experts on some images.

    `encoder` says how weights are passed; those that it has are not looked at.
    """
    vit, shared = encoder.vit, problem.shared
    found = {**shared, **solved_tokens(vit, problem)}
    taps = encoder.part.taps if encoder.part.norm else ()
    seen = Sums({}, {})
    parts = side_by_side(encoder, [found, *problem.experts], samples)
    tracked = progress.track(parts, "calibrating", len(vit.blocks) + 2)
    for number, (own, *others) in enumerate(tracked):
        for name, layer in own.layers.items():
            solved = solve(name, own, others, problem)
            found |= solved
            put(layer, solved)
        if number - 1 in taps:  # the final norm sees the tokens of every tapped block
            for rows in own.batches():
                see_norm(seen, inputs_of(vit.norm, own.given[rows].to(device())))
    if seen.totals:
        found |= solved_norm("norm.weight", seen, problem)
    return {name: found[name].cpu().to(tensor.dtype) for name, tensor in shared.items()}


def put(layer: nn.Module, solved: StateDict) -> None:
    """Let a layer have what was solved for it."""
    own = dict(layer.named_parameters())
    for name, tensor in solved.items():
        own[name.rpartition(".")[2]].copy_(tensor)


def solve(name: str, own: Stretch, others: Sequence[Stretch], problem: Problem) -> StateDict:
    """Solve one layer, by the name of its weight, from what goes into it and into the experts'."""
    layer, seen = own.layers[name], Sums({}, {})
    if isinstance(layer, nn.LayerNorm):
        for rows in own.batches():
            see_norm(seen, own.inputs(name, rows))
        return solved_norm(name, seen, problem)
    scales = isinstance(layer, LayerScale)
    see, solved = (see_scale, solved_scale) if scales else (see_matrix, solved_matrix)
    for rows in own.batches():
        see(seen, own.inputs(name, rows), [other.inputs(name, rows) for other in others])
    return solved(name, seen, problem)


def see_matrix(seen: Sums, x_RN: Tensor, experts: Sequence[Tensor]) -> None:
    """Add up products of the inputs with themselves, and with those of every expert's layer."""
    x_RA = F.pad(x_RN, (0, 1), value=1.0)
    seen.add("own", x_RA.T @ x_RA, len(x_RA))
    for number, e_RN in enumerate(experts):
        seen.add(str(number), x_RA.T @ e_RN, len(x_RA))


def solved_matrix(name: str, seen: Sums, problem: Problem) -> StateDict:
    """Solve a linear layer, or a convolution as one: its weight first, then its bias."""
    own_AA, cross_TAN, size = products(seen, problem.settings.alpha)
    ridge, tasks = problem.settings.ridge, len(cross_TAN)
    w_TMN, anchor_MN = problem.of_experts(name), problem.anchor(name)
    pull_NM = (cross_TAN[:, :-1] @ w_TMN.mT).sum(dim=0) / size + ridge * anchor_MN.T
    whole_NN = tasks * own_AA[:-1, :-1] / size
    whole_NN.diagonal().add_(ridge)
    w_MN = torch.linalg.solve(whole_NN, pull_NM).T
    found = {name: w_MN.reshape(problem.shared[name].shape)}
    bias = f"{name.removesuffix('weight')}bias"
    if bias not in problem.shared:
        return found
    # what the means of inputs leave over, in the same units
    left_TM = problem.of_experts(bias) + (w_TMN @ cross_TAN[:, -1, :, None])[..., 0]
    left_TM = left_TM - w_MN @ own_AA[-1, :-1]
    total_M = left_TM.sum(dim=0) / size + ridge * problem.anchor(bias)
    return {**found, bias: total_M / (tasks / size + ridge)}


def products(seen: Sums, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give the means of x_s x_s', those of x_s x_t' for every expert, and the size of the first.

    Of a layer scale they are (N,) and (T, N), without a 1 at the end.
    """
    means = {name: total / seen.rows[name] for name, total in seen.totals.items()}
    own, others = means.pop("own"), torch.stack([*means.values()])
    width = others.shape[-1]
    cross = alpha * others + (1 - alpha) * own[..., :width]
    size = own[(slice(width),) * own.dim()].norm()
    return own, cross, size if size > 0 else torch.ones_like(size)


def see_scale(seen: Sums, x_RN: Tensor, experts: Sequence[Tensor]) -> None:
    """Add up the same products channel by channel."""
    seen.add("own", x_RN.square().sum(dim=0), len(x_RN))
    for number, e_RN in enumerate(experts):
        seen.add(str(number), (x_RN * e_RN).sum(dim=0), len(x_RN))


def solved_scale(name: str, seen: Sums, problem: Problem) -> StateDict:
    """Solve a layer scale: a matrix with nothing off its diagonal."""
    own_N, cross_TN, size = products(seen, problem.settings.alpha)
    ridge, pull_N = problem.settings.ridge, (cross_TN * problem.of_experts(name)).sum(dim=0) / size
    total_N = len(cross_TN) * own_N / size + ridge
    return {name: (pull_N + ridge * problem.anchor(name)) / total_N}


def see_norm(seen: Sums, z_RN: Tensor) -> None:
    """Add up a norm's inputs, which it has normalised, and their squares."""
    seen.add("mean", z_RN.sum(dim=0), len(z_RN))
    seen.add("square", z_RN.square().sum(dim=0), len(z_RN))


def solved_norm(name: str, seen: Sums, problem: Problem) -> StateDict:
    """Solve a norm's weight and bias together, channel by channel, for the same inputs in all."""
    mean_N, square_N = (seen.totals[key] / seen.rows[key] for key in ("mean", "square"))
    ridge, w_TN = problem.settings.ridge, problem.of_experts(name)
    pull_N = (square_N * w_TN).sum(dim=0) + ridge * problem.anchor(name)
    total_N = len(w_TN) * square_N + ridge
    bias = f"{name.removesuffix('weight')}bias"
    if bias not in problem.shared:
        return {name: pull_N / total_N}
    b_TN, count = problem.of_experts(bias), len(w_TN) + ridge
    pull_N = pull_N + (mean_N * b_TN).sum(dim=0)
    other_N = (mean_N * w_TN + b_TN).sum(dim=0) + ridge * problem.anchor(bias)
    cross_N = len(w_TN) * mean_N
    rest_N = total_N * count - cross_N.square()  # at least ridge * count: squares exceed means
    return {
        name: (count * pull_N - cross_N * other_N) / rest_N,
        bias: (total_N * other_N - cross_N * pull_N) / rest_N,
    }


def solved_tokens(vit: nn.Module, problem: Problem) -> StateDict:
    """Solve prefix tokens and positions: what is added to inputs, as a bias, and is as it is."""
    ridge, tasks = problem.settings.ridge, len(problem.experts)
    return {
        name: (problem.of_experts(name).sum(dim=0) + ridge * problem.anchor(name)) / (tasks + ridge)
        for name, _ in vit.named_parameters(recurse=False)
    }
