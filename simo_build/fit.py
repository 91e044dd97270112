"""Fit weights: AdamW with one cycle of the learning rate, gradients clipped, the best epoch kept.

What is fitted is told by two callables, so that training a head on cached features and training
a whole expert are the same loop.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from simo_build.progress import Progress
from simo_build.statedict import StateDict
from simo_runtime.errors import TrainError


class Schedule(Protocol):
    """How long and how fast; a recipe's `train` phases and `realign` steps are such."""

    @property
    def epochs(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...


class Limits(Protocol):
    """What all phases of a training share."""

    @property
    def batch(self) -> int: ...

    @property
    def warmup(self) -> float: ...

    @property
    def clip(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The best epoch of a fit, the metric there, and the metric after every epoch.

    Epoch 0 is the state before training: when no epoch is better, nothing has changed.
    """

    epoch: int
    metric: float
    history: tuple[float, ...]


def fit(
    module: nn.Module,
    *,
    metric: str,
    better: Callable[[float, float], bool],
    schedule: Schedule,
    limits: Limits,
    images: int,
    generator: torch.Generator,
    loss_of: Callable[[Tensor], Tensor],
    measure: Callable[[], float],
    label: str,
    progress: Progress,
    ema: float = 0.0,
    patience: int | None = None,
) -> Outcome:
    """Train a module in place and leave it at its best epoch.

    `loss_of` takes the indices of a batch, `measure` gives the metric, mostly on the select split,
    of which `better` tells whether the first of two is better than the second. With `ema` it is
    the weights' moving average that is measured and stays. `patience` epochs without a better one
    end the training; when it cannot go on, the best epoch so far is what stays.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    steps = max(2, steps_of(schedule.epochs, images, limits.batch))
    optimiser = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.lr, total_steps=steps, pct_start=warmup_share(limits.warmup, steps)
    )
    module.eval()
    average = Average(module, ema)
    best, kept, history = 0, snapshot(module), [measure()]
    try:
        for epoch in range(1, schedule.epochs + 1):
            batches = list(shuffled(images, limits.batch, generator))
            module.train()
            for index in progress.track(batches, f"{label}, epoch {epoch}/{schedule.epochs}"):
                optimiser.zero_grad(set_to_none=True)
                finite(loss_of(index), label, epoch, index).backward()
                nn.utils.clip_grad_norm_(parameters, limits.clip)
                optimiser.step()
                cycle.step()
                average.update()
            module.eval()
            with average.shown():
                history.append(measure())
                if math.isnan(history[best]) or better(history[-1], history[best]):
                    best, kept = epoch, snapshot(module)
            progress.detail(f"{label}: epoch {epoch}/{schedule.epochs}, {metric} {history[-1]:.4f}")
            if patience is not None and epoch - best >= patience:
                break
    finally:
        module.load_state_dict(kept)
        module.eval()
    progress.say(
        f"{label}: {metric} {history[0]:.4f} -> {history[best]:.4f}, "
        f"epoch {best} of {len(history) - 1}"
    )
    return Outcome(epoch=best, metric=history[best], history=tuple(history))


class Average:
    """The exponential moving average of a module's weights; with decay 0 the weights themselves.

    After n updates the decay is (1 + n) / (10 + n) at most, so that the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self.state = snapshot(module) if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now; what counts (integers) is copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in self.module.state_dict().items() if self.state else ():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the module have the average meanwhile."""
        if not self.state:
            yield
            return
        weights = snapshot(self.module)
        self.module.load_state_dict(self.state)
        try:
            yield
        finally:
            self.module.load_state_dict(weights)


def steps_of(epochs: int, images: int, batch: int) -> int:
    """Give how many steps an optimiser makes."""
    return epochs * math.ceil(images / batch)


def warmup_share(share: float, steps: int) -> float:
    """Give the share of steps to warm up in; OneCycleLR divides by zero at exactly one step."""
    return share if share * steps != 1 else 1.5 / steps


def finite(loss: Tensor, label: str, epoch: int, index: Tensor) -> Tensor:
    """Give the loss, unless it is not a number."""
    refuse_nan(loss, label, epoch, index)
    return loss


def refuse_nan(loss: Tensor, label: str, epoch: int, index: Tensor) -> None:
    """Stop before a loss that is not a number reaches the weights."""
    if not torch.isfinite(loss):
        shown = ", ".join(str(int(i)) for i in index[:8]) + (" ..." if len(index) > 8 else "")
        raise TrainError(
            f"{label}: the loss is {loss.item()} in epoch {epoch}, on the images {shown} "
            "of the split; a lower learning rate may help"
        )


def shuffled(images: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Give the indices of every image once, in random batches."""
    yield from torch.randperm(images, generator=generator).split(batch)


def snapshot(module: nn.Module) -> StateDict:
    """Copy a module's weights."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
