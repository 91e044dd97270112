"""What learning rates are searched for: the two phases of an expert, or joint training.

What a phase gives goes to the next one as a plain dictionary: of an expert the head alone, then
`encoder.` and `head.` as in its file.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from torch import Tensor

from simo_build.checkpoints import description, write_expert
from simo_build.data import Samples, load_split
from simo_build.devices import device
from simo_build.fit import Outcome
from simo_build.joint import Joint
from simo_build.loading import LoadedRecipe
from simo_build.multitask import JointTraining, Learnt, open_training
from simo_build.phases import Measured, Score, Watch, own_metric, train_all, train_head
from simo_build.progress import Progress, Silent
from simo_build.recipe import Phase, PhaseChange, TaskTrainPart
from simo_build.stages import Stages
from simo_build.statedict import StateDict, on_cpu, part, prefixed
from simo_build.train import expert_key, expert_path
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError, unknown
from simo_runtime.tasks import TaskSpec

Rates = Mapping[str, float]  # by phase
NEUTRAL = 1.0  # stands for any rate in a hash that must not depend on it


@dataclass(frozen=True)
class Tried:
    """What one rate gave: the weights of the best epoch, its metrics, and how it came about."""

    weights: StateDict
    outcome: Outcome
    metrics: Measured


class Searched(Protocol):
    """Something with phases whose learning rates are found one after the other."""

    @property
    def name(self) -> str: ...

    @property
    def phases(self) -> tuple[str, ...]: ...

    @property
    def score(self) -> Score: ...

    @property
    def key(self) -> str:
        """Hash everything that trials depend on but the rates."""
        ...

    def epochs(self, phase: str) -> int: ...

    def train(self, phase: str, lr: float, start: StateDict, watch: Watch) -> Tried:
        """Train a phase from what the one before it gave.

        `watch` is told the score where training begins and after every epoch.
        """
        ...

    def write(self, rates: Rates, best: Mapping[str, Tried]) -> Path:
        """Write the file that training with these rates would write; give it."""
        ...

    def lines(self, rates: Rates) -> str:
        """Give the lines of a recipe that set these rates."""
        ...


def open_searched(loaded: LoadedRecipe, task: str, role: str, progress: Progress) -> Searched:
    """Get ready to search for a task, or for `joint`, which learns from the split of a role."""
    if task == "joint":
        return JointSearched(open_training(loaded, role, progress))
    if task not in loaded.recipe.tasks:
        raise unknown(f"task of {loaded.shown}", task, loaded.recipe.tasks)
    if loaded.recipe.data is None:
        raise RecipeError(f"{loaded.shown}: training needs `data`")
    if loaded.recipe.tasks[task].expert is not None:
        raise RecipeError(
            f"{loaded.shown}: tasks.{task}.expert names a file, so that rates found for its "
            "training would have no effect; leave `expert` out to search for them"
        )
    work = Workshop(loaded, Stages(loaded.experts / ".stages", progress))
    return ExpertSearched(work, task, progress)


@dataclass
class ExpertSearched:
    """The expert of one task: its head on the frozen base, then both together."""

    work: Workshop
    name: str
    progress: Progress
    phases = ("head", "full")

    @property
    def score(self) -> Score:
        return own_metric(self._spec)

    @property
    def key(self) -> str:
        neutral = dict.fromkeys(self.phases, NEUTRAL)
        return expert_key(self._rated(neutral), self.name, self.work.base_hash)

    def epochs(self, phase: str) -> int:
        train = self.work.recipe.training(self.name)
        return train.head.epochs if phase == "head" else train.full.epochs

    def train(self, phase: str, lr: float, start: StateDict, watch: Watch) -> Tried:
        return self._head(lr, watch) if phase == "head" else self._both(lr, start, watch)

    def write(self, rates: Rates, best: Mapping[str, Tried]) -> Path:
        rated, base_hash, task = self._rated(rates), self.work.base_hash, self.name
        path = expert_path(rated, task, base_hash)
        if path.is_file():
            return path
        about = description(rated.recipe, task, base_hash) | {
            "key": expert_key(rated, task, base_hash),
            "images": {role: len(split) for role, split in self._samples.items()},
            "select": {
                phase: json.loads(json.dumps(vars(tried.outcome))) for phase, tried in best.items()
            },
        }
        weights = best["full"].weights
        write_expert(
            path,
            encoder=part(weights, "encoder."),
            head=part(weights, "head."),
            about=about,
            half=rated.recipe.train.store == "fp16",
        )
        return path

    def lines(self, rates: Rates) -> str:
        told = ", ".join(f"{phase}: {{lr: {lr:.2e}}}" for phase, lr in rates.items())
        return f"tasks:\n  {self.name}:\n    train: {{{told}}}"

    @property
    def _spec(self) -> TaskSpec:
        return self.work.recipe.specs()[self.name]

    def _rated(self, rates: Rates) -> LoadedRecipe:
        """Give the recipe with these rates for the task."""
        recipe = self.work.recipe
        before = recipe.tasks[self.name]
        phases = {"head": before.train.head, "full": before.train.full}
        changed = {
            phase: PhaseChange(**{**change.model_dump(), "lr": rates[phase]})
            for phase, change in phases.items()
        }
        task = before.model_copy(update={"train": TaskTrainPart(**changed)})
        tasks = {**recipe.tasks, self.name: task}
        return replace(self.work.loaded, recipe=recipe.model_copy(update={"tasks": tasks}))

    @cached_property
    def _samples(self) -> Mapping[str, Samples]:
        return {
            role: load_split(self.work.loaded, role, tasks=[self.name], progress=self.progress)
            for role in ("train", "select")
        }

    @cached_property
    def _features(self) -> Mapping[str, list[Tensor]]:
        """Features of the base, for all trials of the head."""
        work = self.work
        return {
            role: work.features(work.base, samples, role) for role, samples in self._samples.items()
        }

    def _head(self, lr: float, watch: Watch) -> Tried:
        head = self.work.heads()[self.name]
        train = self.work.recipe.training(self.name)
        outcome = train_head(
            head,
            self._spec,
            self.work.recipe.tasks[self.name],
            features=self._features.__getitem__,
            samples=self._samples,
            train=train.model_copy(update={"head": PhaseChange(lr=lr).of(train.head)}),
            progress=Silent(),
            watch=watch,
        )
        return Tried(on_cpu(head.state_dict()), outcome, {self.name: outcome.metric})

    def _both(self, lr: float, start: StateDict, watch: Watch) -> Tried:
        work, task = self.work, self.name
        train = work.recipe.training(task)
        encoder, head = deepcopy(work.encoder), work.heads()[task]
        encoder.load(work.base, source="the base")
        encoder.requires_grad_(True)
        head.load_state_dict(start)
        joint = Joint(encoder, {task: head}, bf16=train.precision == "bf16").to(device())
        outcome = train_all(
            joint,
            {task: self._spec},
            work.recipe.tasks,
            samples=self._samples,
            train=train,
            phase=PhaseChange(lr=lr).of(train.full),
            score=self.score,
            label=f"{task}, all",
            progress=Silent(),
            watch=watch,
        )
        weights = prefixed(encoder.weights(), "encoder.") | prefixed(head.state_dict(), "head.")
        return Tried(on_cpu(weights), outcome, {task: outcome.metric})


@dataclass
class JointSearched:
    """Encoder and all heads together; the heads begin as the recipe says for every task."""

    training: JointTraining
    name = "joint"
    phases = ("full",)

    @property
    def score(self) -> Score:
        return self.training.score

    @property
    def key(self) -> str:
        return self.training.key(self._phase(NEUTRAL))

    def epochs(self, phase: str) -> int:
        return self.training.phase.epochs

    def train(self, phase: str, lr: float, start: StateDict, watch: Watch) -> Tried:
        learnt = self.training.train(self._phase(lr), watch, progress=Silent())
        return Tried(learnt.weights, learnt.outcome, learnt.metrics)

    def write(self, rates: Rates, best: Mapping[str, Tried]) -> Path:
        phase, tried = self._phase(rates["full"]), best["full"]
        path = self.training.path_of(phase)
        if path.is_file():
            return path
        return self.training.write(Learnt(tried.weights, phase, tried.outcome, tried.metrics))

    def lines(self, rates: Rates) -> str:
        return f"train:\n  joint: {{lr: {rates['full']:.2e}}}"

    def _phase(self, lr: float) -> Phase:
        return PhaseChange(lr=lr).of(self.training.phase)
