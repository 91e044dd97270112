"""`tint`: coefficients of the experts' deltas and one layer of every head, learnt together.

From arXiv 2412.19098 (Model Tinting, SyMerge), which learns base + sum of coefficient * delta from
one value for all. Here it is the encoder that is there + sum of coefficient * delta, from zero:
after task arithmetic these are the same weights, and after any other merging method or step it
starts where that has ended instead of throwing it away. So there are no bounds on the coefficients,
which the paper keeps in [0, 1]: they are changes of a share that only task arithmetic tells.

Maps that `representation` has put beside the blocks have no delta, and stay as they are.

Shapes: T tasks, B images, H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simo_build.encoder import Encoder
from simo_build.heads import Head
from simo_build.joint import Joint
from simo_build.learned import Scaled
from simo_build.learned.learning import moved
from simo_build.learned.scaled import grouped
from simo_build.realign.bench import Bench, Log, SharedModel
from simo_build.realign.joint import joined, train_jointly
from simo_build.statedict import StateDict, on_cpu, prefixed, subtract
from simo_build.steps import TintStep


class Tinted(Joint):
    """An encoder whose weights are a start + a sum of scaled deltas, and all heads.

    Trained are the coefficients, and of the heads what asks for a gradient.
    """

    def __init__(self, joint: Joint, mixture: Scaled, *, head_lr: float) -> None:
        super().__init__(joint.encoder, joint.by_task(), bf16=joint.bf16)
        self.encoder.requires_grad_(False)
        # a tensor in a plain dictionary is no part of the state that every epoch copies
        self.start = {name: tensor.clone() for name, tensor in joint.encoder.weights().items()}
        self.mixture, self.head_lr = mixture, head_lr

    def weights(self) -> StateDict:
        """Give the encoder's weights with the deltas as they are scaled now."""
        change = self.mixture()
        return {
            name: one + change[name] if name in change else one for name, one in self.start.items()
        }

    def encoded(self, pixels_BHW3: Tensor) -> list[Tensor]:
        taps: list[Tensor] = functional_call(
            self.encoder, prefixed(self.weights(), "vit."), (pixels_BHW3,)
        )
        return taps

    @torch.no_grad()
    def settled(self) -> Encoder:
        self.encoder.vit.load_state_dict(self.weights())
        return self.encoder

    def rates(self) -> dict[nn.Parameter, float]:
        return dict.fromkeys(self.heads.parameters(), self.head_lr)


def tint(bench: Bench, model: SharedModel, step: TintStep) -> tuple[SharedModel, Log]:
    """Train coefficients and layers of heads; the best epoch stays, as plain weights."""
    work = bench.work
    deltas = {task: moved(subtract(one.encoder, work.base)) for task, one in work.experts.items()}
    groups = grouped(list(work.base), step.granularity)
    mixture = Scaled(list(deltas.values()), groups, start=0.0)
    joint = joined(bench, model, step)
    for head in joint.by_task().values():
        trained(head, step.heads)
    tinted = Tinted(joint, mixture.to(joint.encoder.mean.device), head_lr=step.head_lr)
    weights = sum(one.numel() for one in tinted.heads.parameters() if one.requires_grad)
    log = train_jointly(bench, tinted, step)
    tinted.heads.requires_grad_(True)  # for the steps that follow
    told: dict[str, Any] = {
        "coefficients": dict(zip(deltas, mixture.told(), strict=True)),
        "head_weights": weights,
    }
    return SharedModel(on_cpu(tinted.settled().weights()), tinted.by_task()), {**log, **told}


def trained(head: Head, layers: str) -> None:
    """Say which layers of a head are trained: the last one, all, or none."""
    head.requires_grad_(layers == "all")
    if layers == "last":
        head.last().requires_grad_(True)
