"""`head`: train every head on the features of the frozen encoder.

From arXiv 2504.11268, section 4: compute the features of the re-alignment images once, and train
every head on them, from the weights it has. All heads are trained in one pass over the features,
so that a batch of them is read, and moved to the device, once; each has its own optimiser and best
epoch, and comes out as if it had been trained alone. Beside the truths, or in their place, a head
may learn what its expert says of the same images, which needs no label.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.evaluate import measure_head
from simo_build.features import BATCH, take
from simo_build.fit import Goal, Outcome, fit_together, snapshot
from simo_build.heads import Head
from simo_build.losses import TorchKind, torch_kind
from simo_build.names import Name
from simo_build.realign.bench import Bench, Log, SharedModel, looked_at, seeded
from simo_build.realign.joint import TINY
from simo_build.realign.teachers import Term, asked, by_output, by_truth, compared
from simo_build.statedict import StateDict
from simo_build.steps import HeadStep
from simo_build.workers import workers
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec

Batch = tuple[list[Tensor], Tensor]  # the taps of some images, and their indices


def realign_heads(bench: Bench, model: SharedModel, step: HeadStep) -> tuple[SharedModel, Log]:
    """Train all heads in place, in the main process; the encoder stays as it is."""
    outcomes, weights = workers().from_main(lambda: trained(bench, model, step))
    for task, head in model.heads.items():
        head.load_state_dict(weights[task])
    by_select = step.by == "select"
    images = len(own(bench, step))
    select = len(bench.labelled("select") if by_select else bench.bare("select"))
    tasks = {task: vars(outcome) for task, outcome in outcomes.items()}
    used = looked_at(images, images * step.labels, select, select * by_select)
    return model, {**used, "by": step.by, "tasks": tasks}


def own(bench: Bench, step: HeadStep) -> Samples:
    """Give the images to learn on, with their truths if the step learns from them."""
    return bench.labelled("realign") if step.labels else bench.bare("realign")


def trained(
    bench: Bench, model: SharedModel, step: HeadStep
) -> tuple[dict[str, Outcome], dict[str, StateDict]]:
    """Train all heads on the features of `realign`; their best epochs on `select` stay."""
    samples, name = own(bench, step), "realign"
    if step.flip:
        samples, name = bench.mirrored(samples), "realign, mirrored too"
    where = next(next(iter(model.heads.values())).parameters()).device

    def batch_of(index: Tensor) -> Batch:
        return take(bench.features(model.encoder, samples, name), index, where), index

    def select() -> tuple[list[Tensor], Samples]:
        judged = bench.labelled("select")
        return bench.features(model.encoder, judged, "select"), judged

    specs, tasks = bench.work.recipe.specs(), bench.work.recipe.tasks
    if step.outputs:
        lessons = Taught(bench, model, step, samples, batch_of)
        goals = [lessons.goal(head, specs[task], select) for task, head in model.heads.items()]
    else:
        goals = [
            goal_of(head, specs[task], torch_kind(tasks[task]), samples, select)
            for task, head in model.heads.items()
        ]
    outcomes = fit_together(
        goals,
        schedule=step,
        limits=step,
        images=len(samples),
        generator=seeded(step.seed),
        batch_of=batch_of,
        label="re-align heads",
        progress=bench.progress,
        ema=step.ema,
        patience=step.patience,
        saved=bench.saved,
        scalars=bench.scalars,
    )
    return (
        dict(zip(model.heads, outcomes, strict=True)),
        {task: snapshot(head) for task, head in model.heads.items()},
    )


def goal_of(
    head: Head,
    spec: TaskSpec,
    kind: TorchKind,
    samples: Samples,
    select: Callable[[], tuple[list[Tensor], Samples]],
) -> Goal:
    """Say what one head is trained for: the truths of `samples`, and its metric on `select`.

    `select` gives the features and the truths of that split, when they are first measured on.
    """
    truth = torch.from_numpy(samples.truths[spec.name])

    def loss_of(batch: Batch) -> Tensor:
        taps, index = batch
        return kind.loss(head(taps), truth[index].to(taps[0].device))

    return by_metric(head, spec, loss_of, select, samples.names)


def by_metric(
    head: Head,
    spec: TaskSpec,
    loss_of: Callable[[Batch], Tensor],
    select: Callable[[], tuple[list[Tensor], Samples]],
    names: Sequence[Name],
) -> Goal:
    """Let a head's metric on `select` tell its best epoch; `names` are of the images it learns."""

    def measure() -> float:
        features, judged = select()
        return measure_head(head, spec, features=features, samples=judged)

    return Goal(
        module=head,
        loss_of=loss_of,
        measure=measure,
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        label=f"re-align {spec.name}",
        names=names,
    )


@dataclass(frozen=True)
class Taught:
    """Heads that learn from their experts, and from the truths too if the step says so.

    As in steps that train the encoder, losses are of every fourth pixel either way, and each is
    divided by what it is before training, so that none counts for more for its scale.
    """

    bench: Bench
    model: SharedModel
    step: HeadStep
    samples: Samples
    batch_of: Callable[[Tensor], Batch]

    def goal(
        self, head: Head, spec: TaskSpec, select: Callable[[], tuple[list[Tensor], Samples]]
    ) -> Goal:
        """Say what one head is trained for, and what tells its best epoch."""
        terms = self._terms(spec, self.samples, labels=self.step.labels)
        weights = {"labels": 1.0, "outputs": self.step.outputs}
        units = mean_losses(head, terms, self.batch_of, len(self.samples))
        shares = {name: weights[name] / max(units[name], TINY) for name in terms}
        whole = sum(weights[name] for name in terms)

        def loss_of(batch: Batch) -> Tensor:
            found = losses(head, terms, batch)
            return torch.stack([shares[name] * loss for name, loss in found.items()]).sum() / whole

        if self.step.by == "select":
            return by_metric(head, spec, loss_of, select, self.samples.names)
        return self._by_teacher(head, spec, loss_of)

    def _by_teacher(self, head: Head, spec: TaskSpec, loss_of: Callable[[Batch], Tensor]) -> Goal:
        bench = self.bench
        judged = bench.bare("select")
        terms = self._terms(spec, judged, labels=False, judging=True)
        where = next(head.parameters()).device

        def batch_of(index: Tensor) -> Batch:
            taps = bench.features(self.model.encoder, judged, "select")
            return take(taps, index, where), index

        return Goal(
            module=head,
            loss_of=loss_of,
            measure=lambda: -mean_losses(head, terms, batch_of, len(judged))["outputs"],
            metric="closeness",
            better=lambda one, other: one > other,
            label=f"re-align {spec.name}",
            names=self.samples.names,
        )

    def _terms(
        self, spec: TaskSpec, samples: Samples, *, labels: bool, judging: bool = False
    ) -> dict[str, Term]:
        """Give the losses of a task on some images by their names."""
        work = self.bench.work
        kind = torch_kind(work.recipe.tasks[spec.name])
        teacher = work.expert_heads()[spec.name]
        answers, _ = asked(work, spec.name, teacher, samples, bf16=False, features=False)
        targets = self.step.targets
        if judging and targets == "trusted":  # or one that is sure of what is wrong came nearer
            targets = "pseudo"
        found = {"outputs": by_output(kind, answers, targets)}
        if labels:
            found["labels"] = by_truth(kind, torch.from_numpy(samples.truths[spec.name]))
        return found


def losses(head: Head, terms: Mapping[str, Term], batch: Batch) -> dict[str, Tensor]:
    """Give every loss of a head on some images."""
    taps, index = batch
    pixels = compared(index, head.enlarging.geometry.image_size)
    raw = head.enlarging.at(head.coarse(taps), pixels)
    return {name: term(taps, raw, index) for name, term in terms.items()}


@torch.no_grad()
def mean_losses(
    head: Head, terms: Mapping[str, Term], batch_of: Callable[[Tensor], Batch], images: int
) -> dict[str, float]:
    """Give the mean of every loss over all images, the head at rest."""
    head.eval()
    sums = dict.fromkeys(terms, 0.0)
    for index in torch.arange(images).split(BATCH):
        for name, loss in losses(head, terms, batch_of(index)).items():
            sums[name] += float(loss) * len(index)
    return {name: total / images for name, total in sums.items()}
