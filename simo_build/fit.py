"""Fit weights: AdamW with one cycle of the learning rate, gradients clipped, the best epoch kept.

What is fitted is told by callables, so that training a head on cached features and training a
whole expert are the same loop. Several modules can be fitted in one pass over the batches.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from simo_build.names import Name
from simo_build.progress import Progress
from simo_build.saved import Saved
from simo_build.scalars import Scalars, Unwritten
from simo_build.statedict import StateDict, part, prefixed
from simo_build.trainee import Goal, Limits, Schedule, Trainee, refuse_nan, snapshot, warmup_share
from simo_build.workers import workers
from simo_runtime.errors import TrainError

__all__ = [
    "Goal",
    "Limits",
    "Outcome",
    "Schedule",
    "fit",
    "fit_together",
    "refuse_nan",
    "shuffled",
    "snapshot",
    "steps_of",
    "warmup_share",
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The best epoch of a fit, the metric there, the metric after every epoch, and all updates.

    Epoch 0 is the state before training: when no epoch is better, nothing has changed. `updates`
    counts the optimiser's steps, those after the best epoch too.
    """

    epoch: int
    metric: float
    history: tuple[float, ...]
    updates: int


def fit(
    module: nn.Module,
    *,
    metric: str,
    better: Callable[[float, float], bool],
    schedule: Schedule,
    limits: Limits,
    images: int,
    names: Sequence[Name],
    generator: torch.Generator,
    loss_of: Callable[[Tensor], Tensor],
    measure: Callable[[], float],
    label: str,
    progress: Progress,
    ema: float = 0.0,
    patience: int | None = None,
    saved: Saved | None = None,
    draws: Sequence[torch.Generator] = (),
    scalars: Scalars | None = None,
    rates: Mapping[nn.Parameter, float] | None = None,
    begin: Callable[[int], None] = lambda epoch: None,
) -> Outcome:
    """Train a module in place and leave it at its best epoch.

    `loss_of` takes the indices of a batch, `measure` gives the metric, mostly on the select split,
    of which `better` tells whether the first of two is better than the second. `names` are the
    images that the indices are of, for messages. What has a rate of its own in `rates` learns at
    that instead of the schedule's. All else is told at `fit_together`.
    """
    goal = Goal(
        module=module,
        loss_of=loss_of,
        measure=measure,
        metric=metric,
        better=better,
        label=label,
        names=names,
        rates=rates or {},
    )
    (outcome,) = fit_together(
        [goal],
        schedule=schedule,
        limits=limits,
        images=images,
        generator=generator,
        batch_of=lambda index: index,
        label=label,
        progress=progress,
        ema=ema,
        patience=patience,
        saved=saved,
        draws=draws,
        scalars=scalars,
        begin=begin,
    )
    return outcome


def fit_together(
    goals: Sequence[Goal],
    *,
    schedule: Schedule,
    limits: Limits,
    images: int,
    generator: torch.Generator,
    batch_of: Callable[[Tensor], Any],
    label: str,
    progress: Progress,
    ema: float = 0.0,
    patience: int | None = None,
    saved: Saved | None = None,
    draws: Sequence[torch.Generator] = (),
    scalars: Scalars | None = None,
    begin: Callable[[int], None] = lambda epoch: None,
) -> list[Outcome]:
    """Train modules in place over the same batches, and leave each at its own best epoch.

    Every module has its own optimiser, schedule and best epoch, and comes out as if it had been
    trained alone; only what `batch_of` makes of the indices of a batch is made once for all.

    With `ema` it is the weights' moving average that is measured and stays. `patience` epochs
    without a better one end a module's training; when training cannot go on (TrainError), the best
    epoch so far is what stays.

    After every epoch the whole state is put into `saved`, from which a killed training goes on to
    the same weights, bit for bit. `draws` are the generators that `loss_of` draws from: their
    states belong to it. Who owns the file removes it when it is no longer needed; until then a
    finished training is not repeated. `begin` is told the number of every epoch, from 1, before
    its first batch.
    """
    steps = max(2, steps_of(schedule.epochs, images, limits.batch))
    trainees = [Trainee(goal, schedule, limits, steps=steps, ema=ema) for goal in goals]
    record = Record(trainees, (generator, *draws), label, progress, saved, scalars or Unwritten())
    try:
        record.begin(schedule.epochs)
        for epoch in range(record.epoch + 1, schedule.epochs + 1):
            active = [one for one in trainees if not waited(one, patience)]
            if not active:
                break
            begin(epoch)
            batches = list(shuffled(images, limits.batch, generator))
            tracked = progress.track(batches, f"{label}, epoch {epoch}/{schedule.epochs}")
            run_epoch(active, tracked, batch_of, record)
            record.end(epoch, schedule.epochs)
    except TrainError as error:
        record.failed(error)
        raise
    finally:
        for one in trainees:
            one.finish()
    return [outcome_of(one, progress) for one in trainees]


def steps_of(epochs: int, images: int, batch: int) -> int:
    """Give how many steps an optimiser makes."""
    return epochs * math.ceil(images / batch)


def waited(trainee: Trainee, patience: int | None) -> bool:
    """Whether a module has had no better epoch for too long."""
    return patience is not None and trainee.epoch - trainee.best >= patience


def run_epoch(
    active: Sequence[Trainee],
    batches: Iterator[Tensor],
    batch_of: Callable[[Tensor], Any],
    record: "Record",
) -> None:
    """Let all modules learn from all batches, and measure them."""
    for one in active:
        one.goal.module.train()
    losses: dict[str, list[float]] = {one.goal.label: [] for one in active}
    started = time.perf_counter()
    for index in batches:
        batch = batch_of(index)
        for one in active:
            losses[one.goal.label].append(one.learn(batch, index))
        record.progress.note(", ".join(f"loss {fmean(found):.4g}" for found in losses.values()))
    seconds = (time.perf_counter() - started) / max(1, len(next(iter(losses.values()))))
    for one in active:
        one.judge()
        record.write(one, {"loss": fmean(losses[one.goal.label]), "seconds_per_step": seconds})


@dataclass
class Record:
    """What a training leaves behind on its way: its state, its numbers, and what it says."""

    trainees: Sequence[Trainee]
    generators: Sequence[torch.Generator]
    label: str
    progress: Progress
    saved: Saved | None
    scalars: Scalars
    before: float = 0.0  # seconds that killed runs have trained
    started: float = 0.0  # by the clock

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return max(one.epoch for one in self.trainees)

    def begin(self, epochs: int) -> None:
        """Go back to the state that is kept, or measure where training begins."""
        self.started = time.perf_counter()
        found = workers().from_main(self.saved.read) if self.saved else None
        if found is None:
            for one in self.trainees:
                one.judge()
                self.write(one, {})
            self.keep()
            return
        tensors, plain = found
        self.before = plain.get("seconds", 0.0)
        for number, one in enumerate(self.trainees):
            one.restore(part(tensors, f"{number}."), plain["modules"][number])
        for number, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator.{number}"])
        if failure := plain.get("failure"):
            raise StoppedBefore(self._stopped(failure))
        done = f"goes on after epoch {self.epoch} of {epochs}"
        self.progress.say(f"{self.label}: {done if self.epoch < epochs else 'kept'}, {self._path}")

    def end(self, epoch: int, epochs: int) -> None:
        """Keep the state after an epoch, and tell of it."""
        self.keep()
        for one in self.trainees:
            if one.epoch == epoch:
                told = f"{one.goal.metric} {one.history[-1]:.4f}"
                self.progress.detail(f"{one.goal.label}: epoch {epoch}/{epochs}, {told}")

    def write(self, one: Trainee, values: dict[str, float]) -> None:
        """Give the numbers of an epoch to who watches."""
        if workers().main:
            found = {**values, "lr": one.rate, one.goal.metric: one.history[-1]}
            self.scalars.write(one.goal.label, found, one.epoch)

    def keep(self) -> None:
        """Put the whole state into its file."""
        if self.saved is None or not workers().main:
            return
        tensors: StateDict = {
            f"generator.{number}": one.get_state() for number, one in enumerate(self.generators)
        }
        for number, one in enumerate(self.trainees):
            tensors |= prefixed(one.tensors(), f"{number}.")
        modules = [one.plain() for one in self.trainees]
        seconds = self.before + time.perf_counter() - self.started
        self.saved.write(tensors, {"modules": modules, "seconds": seconds})

    def failed(self, error: TrainError) -> None:
        """Write down why training cannot go on, so that it does not run into the same again."""
        if self.saved is not None and not isinstance(error, StoppedBefore):
            if workers().main:
                self.saved.mark(str(error))
            error.args = (f"{error}\n{self._how_to_go_on()}",)

    @property
    def _path(self) -> str:
        return str(self.saved.path) if self.saved else ""

    def _stopped(self, failure: str) -> str:
        return f"an earlier run with the same settings stopped: {failure}\n{self._how_to_go_on()}"

    def _how_to_go_on(self) -> str:
        return (
            f"The last whole epoch and the best one are kept in {self._path}. The same settings "
            "would stop there again: lower `lr` or `clip` in the recipe, and training starts "
            "afresh with them; or remove the file to try the same once more."
        )


class StoppedBefore(TrainError):
    """The state that is kept is of a training that could not go on."""


def outcome_of(trainee: Trainee, progress: Progress) -> Outcome:
    """Tell how a training ended."""
    metric, history = trainee.metric, trainee.history
    progress.say(
        f"{trainee.goal.label}: {trainee.goal.metric} {history[0]:.4f} -> {metric:.4f}, "
        f"epoch {trainee.best} of {trainee.epoch}"
    )
    return Outcome(
        epoch=trainee.best,
        metric=metric,
        history=tuple(history),
        updates=trainee.average.updates,
    )


def shuffled(images: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Give the indices of every image once, in random batches."""
    yield from torch.randperm(images, generator=generator).split(batch)
