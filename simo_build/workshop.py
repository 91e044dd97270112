"""What the stages of a build share: base, experts, images, and how they are measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simo_build.base import load_base
from simo_build.checkpoints import Expert
from simo_build.data import Samples, fingerprint, load_split, open_dataset
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.evaluate import compare, measure_heads
from simo_build.experts import fitting_expert
from simo_build.features import compute_features
from simo_build.heads import Head, make_head
from simo_build.loading import LoadedRecipe
from simo_build.recipe import Recipe
from simo_build.scalars import Scalars
from simo_build.stages import Stages
from simo_build.statedict import StateDict, misfits, part, prefixed
from simo_build.train import expert_path, feature_shape, train_expert
from simo_runtime.errors import CheckpointError, RecipeError, listing


@dataclass
class Workshop:
    """What the stages share, read when it is first needed."""

    loaded: LoadedRecipe
    stages: Stages
    scalars: Scalars | None = None  # takes the numbers of trainings as they go
    base_hash: str = field(init=False)
    base: StateDict = field(init=False)
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.recipe.encoder, self.recipe.image)
        self.base_hash = load_base(self.loaded, self.encoder)
        self.base = {n: t.detach().clone() for n, t in self.encoder.weights().items()}
        self.encoder.to(device())

    @property
    def recipe(self) -> Recipe:
        """The recipe itself."""
        return self.loaded.recipe

    @cached_property
    def experts(self) -> dict[str, Expert]:
        """The experts of all tasks, trained here if they are missing and the recipe says so."""
        found = {}
        for task in self.recipe.tasks:
            path = expert_path(self.loaded, task, self.base_hash)
            if not path.is_file() and self.recipe.train_missing:
                path = train_expert(self.loaded, task, self.stages.progress, self.scalars)
            if not path.is_file():
                raise CheckpointError(missing_expert(self.loaded, task, path))
            expert = self._read(path, task)
            self.encoder.load(expert.encoder, source=str(path))  # refuses what does not fit
            self._check_head(expert)
            found[task] = expert
        return found

    def _read(self, path: Path, task: str) -> Expert:
        expert = fitting_expert(
            path,
            self.loaded,
            task,
            encoder=self.encoder,
            base=self.base,
            base_hash=self.base_hash,
        )
        made, here = expert.about["image"]["size"], list(self.recipe.image.size)
        if made != here:
            self.stages.progress.say(
                f"expert {task}: made for {made[0]} x {made[1]} pixels, its position embedding is "
                f"resampled to those of {here[0]} x {here[1]}"
            )
        return expert

    def _check_head(self, expert: Expert) -> None:
        """Refuse an expert whose head is not the recipe's, before any work."""
        head = self.heads()[expert.task]
        faults = list(misfits(expert.head, head.state_dict()))
        if faults:
            raise CheckpointError(
                f"{expert.source}: {len(faults)} head tensors do not fit a "
                f"{self.recipe.tasks[expert.task].head} head\n{listing(faults)}"
            )

    @cached_property
    def samples(self) -> Mapping[str, Samples]:
        """The labelled images that a build may look at: `realign` and `select`, never `test`.

        Each is read when it is first asked for.
        """
        return Splits(self.split)

    def split(self, role: str) -> Samples:
        """Read one split with the truths of every task; with none if the recipe lacks some."""
        tasks = [] if self.recipe.blind else list(self.recipe.tasks)
        return load_split(self.loaded, role, tasks=tasks, progress=self.stages.progress)

    def unlabelled(self, count: int, key: str = "merge.images") -> Samples:
        """Give images of `realign`, spread evenly over the split, without any truth.

        RecipeError if the split has fewer; it names the recipe's key that asks for so many.
        """
        whole = load_split(self.loaded, "realign", tasks=(), progress=self.stages.progress)
        return _taken(whole, _spread(count, len(whole), key))

    def labelled(self, count: int) -> Samples:
        """Give the same images of `realign` as `unlabelled`, with the truths of every task."""
        whole = self.samples["realign"]
        rows = _spread(count, len(whole), "merge.images")
        return _taken(whole, rows)

    def check_images(self, count: int, key: str = "merge.images") -> None:
        """Refuse to look at more images of `realign` than there are; none is read."""
        assert self.recipe.data is not None  # the recipe was checked for it
        _spread(count, len(open_dataset(self.loaded).ids(self.recipe.data.realign)), key)

    def only(self, tasks: Sequence[str]) -> "Workshop":
        """Give the workshop of the same recipe with some of its tasks; what was read is shared."""
        chosen = {task: self.recipe.tasks[task] for task in tasks}
        part = copy(self)
        part.loaded = replace(self.loaded, recipe=self.recipe.model_copy(update={"tasks": chosen}))
        part.experts = {task: self.experts[task] for task in tasks}
        part.samples = Splits(lambda role: _with_truths(self.samples[role], tasks))
        return part

    def features(self, weights: StateDict, samples: Samples, label: str) -> list[torch.Tensor]:
        """Compute the features of a split with some encoder weights."""
        self.encoder.load(weights, source=label, adapters=True)
        return compute_features(self.encoder, samples, label=label, progress=self.stages.progress)

    def heads(self, weights: Mapping[str, StateDict] | None = None) -> dict[str, Head]:
        """Make the heads with the weights given, or with random ones."""
        made = {}
        for task, spec in self.recipe.specs().items():
            name, shape = self.recipe.tasks[task].head, feature_shape(self.encoder)
            head = make_head(name, spec, shape, seed=self.recipe.train.seed).to(device())
            if weights is not None:
                head.load_state_dict(weights[task])
            made[task] = head.eval()
        return made

    def expert_heads(self) -> dict[str, Head]:
        """Make the heads as the experts have them."""
        return self.heads({task: expert.head for task, expert in self.experts.items()})

    def inputs(self) -> dict[str, Any]:
        """Give the hashes of everything a build reads, and where in the data it reads."""
        found: dict[str, Any] = {
            "base": self.base_hash,
            "experts": {task: expert.hash for task, expert in self.experts.items()},
            "data": None,
        }
        data = self.recipe.data
        if data is not None:
            found["data"] = fingerprint(self.loaded, list(self.recipe.tasks))
            found["splits"] = {"realign": data.realign, "select": data.select}
            tasks = self.recipe.model_dump(mode="json")["tasks"]
            found["targets"] = {task: part["target"] for task, part in tasks.items()}
            found |= self.recipe.own_losses()
        return found


def missing_expert(loaded: LoadedRecipe, task: str, path: Path) -> str:
    """Say that an expert is not there, and how to get it."""
    return (
        f"{path}: the expert of {task} is missing. Train it with "
        f"`simo-train --recipe {loaded.shown} --task {task}`, or set "
        "`train_missing: true` in the recipe."
    )


class Splits(Mapping[str, Samples]):
    """The splits that a build may learn and choose from, read when they are needed."""

    ROLES = ("realign", "select")

    def __init__(self, read: Callable[[str], Samples]) -> None:
        self._read = read
        self._found: dict[str, Samples] = {}

    def __getitem__(self, role: str) -> Samples:
        if role not in self.ROLES:
            raise KeyError(role)
        if role not in self._found:
            self._found[role] = self._read(role)
        return self._found[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ROLES)

    def __len__(self) -> int:
        return len(self.ROLES)


def _with_truths(samples: Samples, tasks: Sequence[str]) -> Samples:
    truths = {task: samples.truths[task] for task in tasks if task in samples.truths}
    return replace(samples, truths=truths)


def _taken(samples: Samples, rows: NDArray[np.int64]) -> Samples:
    """Take some rows."""
    truths = {task: truth[rows] for task, truth in samples.truths.items()}
    return Samples(samples.images[rows], truths, tuple(samples.names[row] for row in rows))


def _spread(count: int, there: int, key: str) -> NDArray[np.int64]:
    """Give the rows of `count` images, spread evenly over those that are there."""
    if count > there:
        raise RecipeError(f"{key} is {count}, but the split for re-alignment has {there} images")
    return np.arange(count) * there // count


def measure_experts(work: Workshop, samples: Samples) -> dict[str, float]:
    """Measure every expert on its own task."""
    heads, specs = work.expert_heads(), work.recipe.specs()
    measured: dict[str, float] = {}
    for task, expert in work.experts.items():
        features = work.features(expert.encoder, samples, f"expert {task}")
        one = {task: heads[task]}
        measured |= measure_heads(one, specs, features=features, samples=samples)
    return measured


def measure(
    work: Workshop, weights: StateDict, heads: Mapping[str, Head], samples: Samples
) -> dict[str, float]:
    """Measure every head on the features of one encoder."""
    features = work.features(weights, samples, "the shared encoder")
    return measure_heads(heads, work.recipe.specs(), features=features, samples=samples)


def against(
    work: Workshop, measured: Mapping[str, float], experts: Mapping[str, float]
) -> dict[str, float]:
    """Compare with the experts by equations 1 and 2."""
    return compare(measured, experts, work.recipe.specs())


def flat_heads(heads: Mapping[str, Head]) -> StateDict:
    """Put all heads into one dictionary, `<task>.<tensor>`."""
    flat: StateDict = {}
    for task, head in heads.items():
        flat |= prefixed(head.state_dict(), f"{task}.")
    return flat


def split_heads(work: Workshop, flat: StateDict) -> dict[str, Head]:
    """Make heads from a dictionary of `flat_heads`."""
    return work.heads({task: part(flat, f"{task}.") for task in work.recipe.tasks})
