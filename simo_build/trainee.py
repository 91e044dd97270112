"""One module in training: its optimiser, its schedule, its moving average and its best epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simo_build.heads.dropout import SeededDropout
from simo_build.names import Name, few, named
from simo_build.statedict import StateDict, part, prefixed
from simo_build.workers import workers
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
class Goal:
    """A module, the loss it is trained by, and how it is measured.

    `loss_of` takes a batch: what `fit_together` takes for all its modules. `measure` gives the
    metric, mostly on the select split, of which `better` tells whether the first of two is better.
    `names` are the images that it learns from, for messages.
    """

    module: nn.Module
    loss_of: Callable[[Any], Tensor]
    measure: Callable[[], float]
    metric: str
    better: Callable[[float, float], bool]
    label: str
    names: Sequence[Name]
    rates: Mapping[nn.Parameter, float] = field(default_factory=dict)  # of what has its own


class Trainee:
    """A module on its way: after every epoch it is judged, and the best one is remembered."""

    def __init__(
        self, goal: Goal, schedule: Schedule, limits: Limits, *, steps: int, ema: float
    ) -> None:
        self.goal, self.clip = goal, limits.clip
        self.named = {n: p for n, p in goal.module.named_parameters() if p.requires_grad}
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in self.named.values():
            groups.setdefault(goal.rates.get(parameter, schedule.lr), []).append(parameter)
        self.optimiser = torch.optim.AdamW(
            [{"params": group, "lr": rate} for rate, group in groups.items()],
            weight_decay=schedule.weight_decay,
        )
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            list(groups),
            total_steps=steps,
            pct_start=warmup_share(limits.warmup, steps),
        )
        self.dropouts = [one for one in goal.module.modules() if isinstance(one, SeededDropout)]
        for dropout in self.dropouts:
            dropout.passes = 0
        goal.module.eval()
        self.average = Average(goal.module, ema)
        self.best, self.kept = 0, snapshot(goal.module)
        self.history: list[float] = []

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history) - 1

    @property
    def metric(self) -> float:
        """The metric of the best epoch so far."""
        return self.history[self.best]

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return float(self.optimiser.param_groups[0]["lr"])

    def learn(self, batch: object, index: Tensor) -> float:
        """Take one step; give the loss before it. TrainError if it would spoil the weights."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.goal.loss_of(batch)
        refuse_nan(loss, self.goal.label, self.epoch + 1, self.goal.names, index)
        loss.backward()
        parameters = [*self.named.values()]
        workers().average(parameters)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self._refuse_broken(norm, index)
        nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        self.optimiser.step()
        self.cycle.step()
        self.average.update()
        return loss.item()

    def _refuse_broken(self, norm: Tensor, index: Tensor) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        if torch.isfinite(norm):
            return
        broken = [
            name
            for name, parameter in self.named.items()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        of = f" of {few(broken)}" if broken else ""
        raise TrainError(
            f"{self.goal.label}: the gradient{of} is not finite in epoch {self.epoch + 1}, on "
            f"{named(self.goal.names, index.tolist())}; a lower learning rate may help"
        )

    def judge(self) -> None:
        """Measure the module after an epoch, and remember it if it is the best so far."""
        self.goal.module.eval()
        with self.average.shown():
            self.history.append(workers().from_main(self.goal.measure))
            if math.isnan(self.metric) or self.goal.better(self.history[-1], self.metric):
                self.best, self.kept = self.epoch, snapshot(self.goal.module)

    def finish(self) -> None:
        """Leave the module at its best epoch."""
        self.goal.module.load_state_dict(self.kept)
        self.goal.module.eval()

    def tensors(self) -> StateDict:
        """Give everything that training goes on from, but for `plain`."""
        state = self.optimiser.state_dict()["state"]
        moments = {
            f"{number}.{name}": tensor
            for number, found in state.items()
            for name, tensor in found.items()
        }
        return {
            **prefixed(snapshot(self.goal.module), "weights."),
            **prefixed(self.kept, "best."),
            **prefixed(self.average.state, "average."),
            **prefixed(moments, "moments."),
        }

    def plain(self) -> dict[str, Any]:
        """Give what of the state is not tensors, as JSON takes it."""
        return {
            "label": self.goal.label,
            "best": self.best,
            "history": self.history,
            "updates": self.average.updates,
            "passes": [one.passes for one in self.dropouts],
            "groups": self.optimiser.state_dict()["param_groups"],
            "cycle": self.cycle.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go back to a state that `tensors` and `plain` have given."""
        self.goal.module.load_state_dict(part(tensors, "weights."))
        like = self.kept
        self.kept = {n: t.to(like[n].device) for n, t in part(tensors, "best.").items()}
        for name, tensor in part(tensors, "average.").items():
            self.average.state[name].copy_(tensor)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part(tensors, "moments.").items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        # JSON has turned pairs into lists
        groups = [{**group, "betas": tuple(group["betas"])} for group in plain["groups"]]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.cycle.load_state_dict(plain["cycle"])
        self.best, self.history = plain["best"], list(plain["history"])
        self.average.updates = plain["updates"]
        for dropout, passes in zip(self.dropouts, plain["passes"], strict=True):
            dropout.passes = passes


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


def warmup_share(share: float, steps: int) -> float:
    """Give the share of steps to warm up in; OneCycleLR divides by zero at exactly one step."""
    return share if share * steps != 1 else 1.5 / steps


def refuse_nan(loss: Tensor, label: str, epoch: int, names: Sequence[Name], index: Tensor) -> None:
    """Stop before a loss that is not a number reaches the weights."""
    if not torch.isfinite(loss):
        raise TrainError(
            f"{label}: the loss is {loss.item()} in epoch {epoch}, on "
            f"{named(names, index.tolist())}; a lower learning rate may help"
        )


def snapshot(module: nn.Module) -> StateDict:
    """Copy a module's weights."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
