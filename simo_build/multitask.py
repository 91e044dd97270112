"""Joint training: one encoder and all heads learn all tasks at once, what merging is compared with.

As the paper trains its multi-task models (arXiv 2504.11268, section 5): every head by itself on the
features of the base, exactly as an expert's, then encoder and heads together by the unweighted
mean of the tasks' losses, or as in the released code by their sum. The best epoch is that of the
highest equation 1 on `select`, against the heads on the base's features, which are always there, or
against the experts.

A file holds the tensors `encoder.<timm name>` and `<task>.<name>` of every head, and says in its
metadata what it was trained on, for how many steps.
"""

import json
import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_build.checkpoints import (
    JOINT_FORMAT,
    about_of,
    differences_of,
    finite,
    halved,
    metadata_of,
    read_tensors,
    write_tensors,
)
from simo_build.data import Samples, fingerprint
from simo_build.devices import device
from simo_build.fit import Outcome
from simo_build.hashing import code_hash, digest
from simo_build.heads import Head
from simo_build.joint import Joint
from simo_build.loading import LoadedRecipe
from simo_build.phases import (
    Measured,
    Score,
    Watch,
    equation_1,
    measured,
    train_all,
    train_head,
)
from simo_build.progress import Progress
from simo_build.realign.bench import Bench, looked_at
from simo_build.realign.joint import TINY, own_losses
from simo_build.recipe import Phase, Recipe
from simo_build.saved import Saved, States
from simo_build.scalars import Scalars
from simo_build.stages import Result, Stages
from simo_build.statedict import StateDict, misfits, on_cpu, part, prefixed
from simo_build.took import beside, note
from simo_build.workers import workers
from simo_build.workshop import Workshop, flat_heads, split_heads
from simo_runtime.errors import CheckpointError, RecipeError, TrainError, listing, unknown

ROLES = ("train", "realign")  # the splits that it may learn from


def train_multitask(
    loaded: LoadedRecipe, role: str, progress: Progress, scalars: Scalars | None = None
) -> Path:
    """Train on one split, unless that has been done with the same settings; give the file.

    What a killed training has done is gone on with, as an expert's is.
    """
    training = open_training(loaded, role, progress, scalars)
    path, phase = training.path_of(training.phase), training.phase
    if workers().from_main(path.is_file):
        progress.say(f"joint: kept {path}")
        return path
    code = {"joint": training.key(phase), "code": code_hash(), "torch": torch.__version__}
    states = States(path, digest(code), progress)
    heads = training.heads.seconds
    clock = states.clock()
    learnt = training.train(phase, saved=states.of("full"))

    def write() -> None:
        note(beside(path), heads + clock())
        training.write(learnt)
        states.remove()

    workers().from_main(write)  # no process goes on to read what is not there yet
    return path


def multitask_path(work: Workshop, role: str) -> Path:
    """Say where the model lies, or will lie, that is trained on a split."""
    training = JointTraining(work, role)
    return training.path_of(training.phase)


def read_multitask(work: Workshop, path: Path) -> tuple[StateDict, dict[str, Head]]:
    """Read the encoder's weights and the heads by task.

    CheckpointError says what does not fit the recipe.
    """
    tensors, metadata = read_tensors(path)
    wanted = multitask_description(work.recipe, work.base_hash)
    if differences := differences_of(about_of(metadata, path), wanted):
        raise CheckpointError(
            f"{path}: the model does not fit the recipe\n{listing(differences)}\n"
            f"Train it with `simo-train --recipe {work.loaded.shown} --task joint`."
        )
    like = prefixed(work.base, "encoder.") | flat_heads(work.heads())
    if faults := list(misfits(tensors, like)):
        raise CheckpointError(f"{path}: {len(faults)} tensors do not fit\n{listing(faults)}")
    tensors = finite(tensors, source=path)
    return part(tensors, "encoder."), split_heads(work, tensors)


def multitask_description(recipe: Recipe, base_hash: str) -> dict[str, Any]:
    """Say what a jointly trained model of this recipe is: what must be equal for it to fit."""
    specs = {task: json.loads(json.dumps(asdict(spec))) for task, spec in recipe.specs().items()}
    return {
        "format": JOINT_FORMAT,
        "base_hash": base_hash,
        "encoder": recipe.encoder.model_dump(mode="json"),
        "image": recipe.image.model_dump(mode="json"),
        "tasks": specs,
        "heads": {task: part.head for task, part in recipe.tasks.items()},
    }


def open_training(
    loaded: LoadedRecipe, role: str, progress: Progress, scalars: Scalars | None = None
) -> "JointTraining":
    """Get ready to train on a split; what heads learn first is kept beside the experts."""
    if role not in ROLES:
        raise unknown("split for joint training", role, ROLES)
    if loaded.recipe.data is None:
        raise RecipeError(f"{loaded.shown}: training needs `data`")
    work = Workshop(loaded, Stages(loaded.experts / ".stages", progress))
    return JointTraining(work, role, scalars)


@dataclass
class JointTraining:
    """Joint training on one split."""

    work: Workshop
    role: str
    scalars: Scalars | None = None
    bench: Bench = field(init=False)

    def __post_init__(self) -> None:
        self.bench = Bench(self.work)

    @property
    def phase(self) -> Phase:
        """How long and how fast encoder and heads learn together."""
        train = self.work.recipe.train
        return train.joint.of(train.full)

    def path_of(self, phase: Phase) -> Path:
        """Say where the model lies; its name carries the hash of everything it depends on."""
        folder = self.work.loaded.experts / self.work.recipe.name
        return folder / f"joint-{self.key(phase)[:12]}.safetensors"

    def key(self, phase: Phase) -> str:
        """Hash everything that the weights depend on."""
        joint = self.work.recipe.train.joint
        about = {"full": phase.model_dump(mode="json"), "loss": joint.loss, "by": joint.by}
        return digest({**self._inputs, **about, "experts": self._experts})

    @property
    def _experts(self) -> dict[str, str]:
        """Give the hashes of the experts' weights, if the recipe compares with them."""
        joint = self.work.recipe.train.joint
        used = "experts" in (joint.loss, joint.by)
        return {task: one.hash for task, one in self.work.experts.items()} if used else {}

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """Give everything that the heads depend on which are trained first."""
        recipe, data = self.work.recipe, self.work.recipe.data
        assert data is not None  # training has checked, and so does the workshop
        tasks = {task: recipe.training(task) for task in recipe.tasks}
        common = recipe.train.model_dump(
            mode="json", exclude_defaults=True, exclude={"head", "full", "joint"}
        )
        return {
            **multitask_description(recipe, self.work.base_hash),
            "train": common,
            "phases": {task: train.head.model_dump(mode="json") for task, train in tasks.items()},
            "targets": {
                task: one.model_dump(mode="json")["target"] for task, one in recipe.tasks.items()
            },
            **recipe.own_losses(),
            "splits": [getattr(data, self.role), data.select],
            "data": fingerprint(self.work.loaded, list(recipe.tasks)),
        }

    @cached_property
    def samples(self) -> Mapping[str, Samples]:
        """The images to learn from, and those that tell the best epoch."""
        samples = self.work.samples
        own = samples[self.role] if self.role in samples else self.work.split(self.role)
        return {"train": own, "select": samples["select"]}

    @cached_property
    def heads(self) -> Result:
        """The heads on the features of the base, and how their training went, by task."""
        return self.work.stages.run_in_parts(
            "joint-heads",
            self._inputs,
            lambda states: workers().from_main(lambda: self._train_heads(states)),
        )

    def _train_heads(self, states: States) -> tuple[StateDict, dict[str, Any]]:
        work, progress = self.work, self.work.stages.progress
        heads, outcomes = work.heads(), {}

        @cache
        def features(name: str) -> list[Tensor]:
            return work.features(work.base, self.samples[name], name)

        for task, spec in work.recipe.specs().items():
            outcomes[task] = train_head(
                heads[task],
                spec,
                work.recipe.tasks[task],
                features=features,
                samples=self.samples,
                train=work.recipe.training(task),
                progress=progress,
                saved=states.of(task),
                scalars=self.scalars,
            )
        return on_cpu(flat_heads(heads)), {task: vars(one) for task, one in outcomes.items()}

    @cached_property
    def score(self) -> Score:
        """Equation 1 against the experts, or against the heads on the features of the base."""
        if self.work.recipe.train.joint.by == "experts":
            experts = workers().from_main(lambda: self.bench.experts)
            return equation_1(experts, self.work.recipe.specs())
        found = {task: float(one["metric"]) for task, one in self.heads.log.items()}
        for task, metric in found.items():
            if not metric > 0:
                raise TrainError(
                    f"joint: {task} is {metric} on select with the base's features, which nothing "
                    "can be compared with; give the phase `head` more epochs or another lr, or set "
                    "`train.joint.by: experts`"
                )
        return equation_1(found, self.work.recipe.specs())

    @cached_property
    def units(self) -> dict[str, float] | None:
        """What the losses are divided by before their mean: nothing, or their experts' on select.

        Their sum is the mean of losses that are divided by one over the number of tasks.
        """
        recipe = self.work.recipe
        if recipe.train.joint.loss == "mean":
            return None
        if recipe.train.joint.loss == "sum":
            return dict.fromkeys(recipe.tasks, 1 / len(recipe.tasks))
        losses = workers().from_main(lambda: dict(own_losses(self.bench)))
        return {task: max(loss, TINY) for task, loss in losses.items()}

    def train(
        self,
        phase: Phase,
        watch: Watch = lambda score: None,
        progress: Progress | None = None,
        saved: Saved | None = None,
    ) -> "Learnt":
        """Train encoder and heads together; give the weights of the best epoch.

        `watch` is told the score where training begins and after every epoch.
        """
        work, score, units = self.work, self.score, self.units
        encoder = deepcopy(work.encoder)
        encoder.load(work.base, source="the base")
        encoder.requires_grad_(True)
        heads = split_heads(work, self.heads.tensors)
        joint = Joint(encoder, heads, bf16=work.recipe.train.precision == "bf16").to(device())
        specs = work.recipe.specs()
        outcome = train_all(
            joint,
            specs,
            work.recipe.tasks,
            samples=self.samples,
            train=work.recipe.train,
            phase=phase,
            score=score,
            label="joint, all",
            progress=progress or work.stages.progress,
            units=units,
            watch=watch,
            saved=saved,
            scalars=self.scalars,
        )
        metrics = workers().from_main(lambda: measured(joint, specs, self.samples["select"]))
        weights = prefixed(encoder.weights(), "encoder.") | flat_heads(joint.by_task())
        return Learnt(on_cpu(weights), phase, outcome, metrics)

    def write(self, learnt: "Learnt") -> Path:
        """Write the model with all that is known of its training; give the file."""
        path, recipe = self.path_of(learnt.phase), self.work.recipe
        half = recipe.train.store == "fp16"
        weights = {n: halved(t) if half else t for n, t in learnt.weights.items()}
        about = {
            **multitask_description(recipe, self.work.base_hash),
            "key": self.key(learnt.phase),
            "learned_from": self.role,
            **self.used,
            "steps": {
                "heads": {task: self.steps(recipe.training(task).head) for task in recipe.tasks},
                "all": self.steps(learnt.phase),
            },
            "loss": recipe.train.joint.loss,
            "by": recipe.train.joint.by,
            "experts": self._experts,
            "full": learnt.phase.model_dump(mode="json"),
            "select": {
                "heads": self.heads.log,
                "full": json.loads(json.dumps(vars(learnt.outcome))),
                "metrics": dict(learnt.metrics),
            },
        }
        write_tensors(path, weights, metadata_of(about))
        return path

    @property
    def used(self) -> dict[str, int]:
        """Say how many images and labels are learnt and chosen from; every image has all labels."""
        own, select = (len(self.samples[name]) for name in ("train", "select"))
        return looked_at(own, own, select, select)

    def steps(self, phase: Phase) -> int:
        """Give the number of optimiser steps of a phase."""
        batches = math.ceil(len(self.samples["train"]) / self.work.recipe.train.batch)
        return phase.epochs * batches


@dataclass(frozen=True)
class Learnt:
    """Weights of the best epoch, how they came about, and their metrics on `select`."""

    weights: StateDict
    phase: Phase
    outcome: Outcome
    metrics: Measured
