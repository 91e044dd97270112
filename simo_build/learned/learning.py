"""A learned method on the experts and images of a recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simo_build.data import Samples, open_dataset
from simo_build.devices import device
from simo_build.hashing import digest
from simo_build.learned.course import Course, Learnt, learn, split_rows
from simo_build.learned.lessons import lesson_of
from simo_build.learned.registry import LearnedMethod
from simo_build.learned.settings import Settings
from simo_build.losses import TORCH_KINDS
from simo_build.merge.reading import ordering
from simo_build.statedict import StateDict, subtract
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError

TINY = 1e-12  # a loss below this is rounding, and no unit to measure others in


@dataclass
class Learning:
    """A learned method, the experts it merges and the images it looks at.

    The tasks take an order that their deltas give, so that the recipe's order changes nothing.
    What was learnt is remembered by its parameters; one encoder's deltas a task are kept.
    """

    work: Workshop
    method: LearnedMethod
    learnt: dict[str, tuple[Learnt, dict[str, Any]]] = field(default_factory=dict)

    def rehearse(self, params: Mapping[str, Any]) -> None:
        """Refuse parameters, or a number of images, that cannot be, before any heavy work."""
        recipe = self.work.recipe
        teachings = {name: TORCH_KINDS[task.kind].teaching for name, task in recipe.tasks.items()}
        self.method.rehearse(self.work.base, teachings, **params)
        count = recipe.merge.images
        if count < 2:
            raise RecipeError(
                f"merge.images is {count}; {self.method.name} needs at least 2, one to learn on "
                "and one to tell the best epoch by"
            )
        assert recipe.data is not None  # check_recipe has seen to it
        there = len(open_dataset(self.work.loaded).ids(recipe.data.realign))
        if count > there:
            raise RecipeError(
                f"merge.images is {count}, but the split for re-alignment has {there} images"
            )

    @cached_property
    def deltas(self) -> dict[str, StateDict]:
        """The experts' differences from the base by task, on the device, in an order of theirs."""
        base, experts = self.work.base, self.work.experts
        deltas = {task: subtract(one.encoder, base) for task, one in experts.items()}
        tasks = [list(deltas)[place] for place in ordering(list(deltas.values()))]
        return {task: moved(deltas[task]) for task in tasks}

    def delta(self, params: Mapping[str, Any]) -> StateDict:
        """Give the merged delta, learnt now unless it is already."""
        mixture = self.method.mixture(list(self.deltas.values()), **params).to(device())
        key = digest({"params": dict(params)})
        if key not in self.learnt:
            settings = self.method.settings(**params)
            course = self.course(settings)
            found = learn(
                mixture,
                course,
                settings,
                label=self.method.name,
                progress=self.work.stages.progress,
            )
            told = dict(zip(self.deltas, mixture.told(), strict=True))
            self.learnt[key] = found, {**described(course, settings, found), "learnt": told}
        mixture.load_state_dict(self.learnt[key][0].state)
        with torch.no_grad():
            return {name: tensor.cpu() for name, tensor in mixture().items()}

    def about(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Say how these parameters' delta was learnt, and from how many images and labels."""
        key = digest({"params": dict(params)})
        if key not in self.learnt:
            self.delta(params)
        return self.learnt[key][1]

    def course(self, settings: Settings) -> Course:
        """Gather images and lessons, and measure the units of the losses."""
        samples = self.samples(settings)
        work, heads = self.work, self.work.expert_heads()
        lessons = [lesson_of(work, task, heads[task], samples, settings) for task in self.deltas]
        course = Course(
            encoder=work.encoder,
            base=moved(work.base),
            images=torch.from_numpy(samples.images),
            names=samples.names,
            lessons=lessons,
            units=torch.ones(len(lessons), device=device()),
            half=settings.precision == "bf16",
        )
        return course.measured_in(self.units(course, settings))

    def samples(self, settings: Settings) -> Samples:
        """Give the images, with truths if the loss is of labels."""
        count = self.work.recipe.merge.images
        labelled = settings.loss == "labels"
        return self.work.labelled(count) if labelled else self.work.unlabelled(count)

    def units(self, course: Course, settings: Settings) -> Tensor:
        """Measure a reference for every task's loss on the held-out images, (T,).

        With labels it is the expert's own loss, with a teacher that of the base: how far there is
        to go. Entropies are left as they are.
        """
        _, held = split_rows(len(course.images), settings.hold)
        if settings.loss == "entropy":
            return course.units
        if settings.loss == "labels":
            own = [
                course.measured(moved(self.work.experts[task].encoder), held)[place]
                for place, task in enumerate(self.deltas)
            ]
            found = torch.stack(own)
        else:
            found = course.measured(course.base, held)
        return torch.where(found > TINY, found, torch.ones_like(found))


def moved(state: StateDict) -> StateDict:
    """Bring weights to the device, in float32."""
    return {name: tensor.to(device(), torch.float32) for name, tensor in state.items()}


def described(course: Course, settings: Settings, found: Learnt) -> dict[str, Any]:
    """Describe a course and its outcome in plain values."""
    learns, held = split_rows(len(course.images), settings.hold)
    return {
        "settings": vars(settings),
        "images": len(course.images),
        "labels": len(course.images) if settings.loss == "labels" else 0,
        "learnt_on": len(learns),
        "held_out": len(held),
        "epoch": found.epoch,
        "updates": (len(found.history) - 1) * math.ceil(len(learns) / int(settings.batch)),
        "history": list(found.history),
    }
