"""What a build would find: data, weights, and what an earlier build has left.

What is not there, or does not fit, is a fault to be told; the rest is planned without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from simo_build.build import realign, realign_inputs
from simo_build.data import check_split, open_dataset
from simo_build.formats import Dataset
from simo_build.loading import LoadedRecipe
from simo_build.merging import merge, merge_inputs
from simo_build.plan.words import many
from simo_build.progress import Silent
from simo_build.recipe import Recipe, TaskPart
from simo_build.sample import read_sample
from simo_build.size import Sizes, sizes_of
from simo_build.splits import names_of
from simo_build.stages import Result, Stages, key_of
from simo_build.steps import HeadStep, JointStep
from simo_build.train import expert_path
from simo_build.workshop import Workshop
from simo_runtime.errors import ImageError, SimoError

Made = TypeVar("Made")


@dataclass
class Site:
    """A recipe, and what of its data and weights is there; faults are gathered on the way."""

    loaded: LoadedRecipe
    out: Path
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recipe = self.loaded.recipe
        self.sizes: Sizes = sizes_of(self.recipe)

    def attempt(self, make: Callable[[], Made]) -> Made | None:
        """Give what is made, or remember why it cannot be."""
        try:
            return make()
        except SimoError as error:
            if str(error) not in self.faults:
                self.faults.append(str(error))
            return None

    # What is there

    @cached_property
    def work(self) -> Workshop | None:
        """The base in its encoder, if it is there."""
        stages = Stages(self.out.parent / ".stages", Silent())
        return self.attempt(lambda: Workshop(self.loaded, stages))

    @cached_property
    def experts(self) -> dict[str, Path | None]:
        """Where the experts are, or would be; None where that depends on what is not there."""
        if self.recipe.random_seed is not None:
            return {}
        return {task: self.attempt(partial(self._expert, task)) for task in self.recipe.tasks}

    def _expert(self, task: str) -> Path | None:
        named = self.recipe.tasks[task].expert
        if named is not None:
            return self.loaded.locate(named)
        if self.work is None or (self.recipe.data is not None and self.dataset is None):
            return None
        return expert_path(self.loaded, task, self.work.base_hash)

    @cached_property
    def complete(self) -> Workshop | None:
        """The workshop, if base, experts and data are there and fit."""
        work, paths = self.work, self.experts.values()
        if work is None or not all(path is not None and path.is_file() for path in paths):
            return None
        if self.recipe.data is not None and self.dataset is None:
            return None
        if self.recipe.random_seed is not None:
            return work
        return work if self.attempt(lambda: work.experts) is not None else None

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data, if it is there."""
        if self.recipe.data is None:
            return None
        return self.attempt(lambda: open_dataset(self.loaded))

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many images a split has, by role; a split that cannot be counted is left out."""
        found: dict[str, int] = {}
        if self.dataset is None:
            return found
        for role in self.roles:
            count = self.attempt(partial(self._checked, role))
            if count is not None:
                found[role] = count
        return found

    @property
    def roles(self) -> list[str]:
        """The splits that this build would read."""
        trains = self.recipe.train_missing and not all(
            path is not None and path.is_file() for path in self.experts.values()
        )
        more = any(isinstance(step, JointStep) and step.unlabelled for step in self.recipe.realign)
        return [
            *(["train"] if trains else []),
            *("realign", "select"),
            *(["unlabelled"] if more else []),
        ]

    def _checked(self, role: str) -> int:
        """Count a split; DataError if a file is missing, or the first image does not fit."""
        recipe, dataset = self.recipe, self.dataset
        assert dataset is not None
        assert recipe.data is not None
        split = getattr(recipe.data, role)
        tasks = {} if role == "unlabelled" or recipe.blind else recipe.tasks
        names = names_of(dataset, split)
        check_split(self.loaded, dataset, split, names, list(tasks))
        _read_first(dataset, names, tasks, recipe)
        return len(names)

    def images(self, role: str) -> str:
        """Say how many images a split has, as far as it is known."""
        return many(self.counts[role], "image") if role in self.counts else "the images"

    def learnt_from(self, step: HeadStep | JointStep) -> int:
        """Count the images of an epoch, with their views and mirror images."""
        count = self.counts["realign"]
        if isinstance(step, JointStep):
            more = self.counts.get("unlabelled", 0) if step.unlabelled else 0
            count = step.views * (count + more)
        return count * (2 if step.flip else 1)

    # What an earlier build has left

    @cached_property
    def merged(self) -> Result | None:
        """The kept result of the merge."""
        work = self.complete
        if work is None:
            return None
        if self.recipe.random_seed is not None:
            return merge(work)  # which is the base
        return work.stages.kept("merge", merge_inputs(work))

    @cached_property
    def aligned(self) -> Result | None:
        """The kept result of the re-alignment."""
        work = self.complete
        if work is None:
            return None
        if self.recipe.random_seed is not None or not self.recipe.realign:
            return self.merged and realign(work, self.merged)  # which takes the heads as they are
        return work.stages.kept(
            "realign", realign_inputs(work, key_of("merge", merge_inputs(work)))
        )


def _read_first(
    dataset: Dataset, names: Sequence[str], tasks: Mapping[str, TaskPart], recipe: Recipe
) -> None:
    """Read the first image that can be read; others are left out only if the recipe says so."""
    skips = recipe.data is not None and recipe.data.skip_unreadable
    for number, name in enumerate(names, 1):
        try:
            read_sample(dataset, name, tasks, recipe.image)
        except ImageError:
            if not skips or number == len(names):
                raise
        else:
            return
