"""What a build would do: its stages, what each reads, and how large it is.  Nothing is computed.

Weights and images that are there are opened, since a build would refuse some of them; what is not
there is told, and the rest is planned without it.
"""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from simo_build.build import opened, provenance_of, realign, realign_inputs
from simo_build.data import check_split, open_dataset
from simo_build.evidence import KINDS, Gathered
from simo_build.fit import steps_of
from simo_build.formats import Dataset
from simo_build.learned import LearnedMethod
from simo_build.learned.settings import held_out
from simo_build.loading import LoadedRecipe
from simo_build.merge import MergeMethod, candidates
from simo_build.merging import any_method, check_recipe, merge, merge_inputs, merger_of
from simo_build.progress import Silent
from simo_build.proxies import SELECT
from simo_build.room import LIMIT
from simo_build.sample import read_sample, stored_form
from simo_build.size import Sizes, sizes_of
from simo_build.splits import names_of, overlaps
from simo_build.stages import Result, Stages, key_of
from simo_build.steps import AnyStep, CalibrateStep, HeadStep, JointStep
from simo_build.train import expert_path
from simo_build.workshop import Workshop, missing_expert
from simo_export.bundle import check_folder
from simo_runtime.errors import DataError, SimoError, UnknownNameError

Made = TypeVar("Made")
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Lines for people, and what stands in the way of the build, empty if nothing does."""

    lines: Sequence[str]
    faults: Sequence[str]


def plan(loaded: LoadedRecipe, out: Path) -> Plan:
    """Plan a build; RecipeError for a recipe that no data and no weights could help."""
    check_recipe(loaded)
    planner = Planner(loaded, out)
    lines = [line for section in planner.sections() for line in section()]
    return Plan(lines, planner.faults)


@dataclass
class Planner:
    """A recipe, and what of its data and weights is there; faults are gathered on the way."""

    loaded: LoadedRecipe
    out: Path
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recipe = self.loaded.recipe
        self.sizes: Sizes = sizes_of(self.recipe)

    def sections(self) -> list[Callable[[], Iterator[str]]]:
        """Give the parts of the plan in their order."""
        every = [self.model, self.weights, self.data, self.merging, self.realigning]
        return [*every, self.exporting, self.room]

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
        return [*(["train"] if trains else []), "realign", "select"]

    def _checked(self, role: str) -> int:
        """Count a split; DataError if a file is missing, or the first image does not fit."""
        recipe, dataset = self.recipe, self.dataset
        assert dataset is not None
        assert recipe.data is not None
        split, tasks = getattr(recipe.data, role), list(recipe.tasks)
        names = names_of(dataset, split)
        check_split(self.loaded, dataset, split, names, tasks)
        read_sample(dataset, names[0], recipe.tasks, recipe.image)
        return len(names)

    # Sections

    def model(self) -> Iterator[str]:
        recipe, sizes = self.recipe, self.sizes
        high, wide = recipe.image.size
        rows, columns = sizes.grid
        padded = "" if sizes.padded == (high, wide) else ", padded to {} x {}".format(*sizes.padded)
        yield f"recipe    {recipe.name} ({self.loaded.shown})"
        yield f"image     {high} x {wide} pixels{padded}: {rows} x {columns} patches"
        yield (
            f"encoder   {recipe.encoder.model}, taps after blocks "
            f"{', '.join(map(str, recipe.encoder.taps))}: {millions(sizes.encoder.parameters)}"
            f", {macs(sizes.encoder.macs)}"
        )
        for task, size in sizes.heads.items():
            part = recipe.tasks[task]
            yield (
                f"head      {task}: {part.kind}, {part.head}: {millions(size.parameters)}, "
                f"{macs(size.macs)}"
            )
        whole = sum(one.macs for one in (sizes.encoder, *sizes.heads.values()))
        apart = whole + (len(sizes.heads) - 1) * sizes.encoder.macs
        yield (
            f"together  about {macs(whole)} an image; {macs(apart)} with one encoder for each of "
            f"{len(sizes.heads)} tasks"
        )

    def weights(self) -> Iterator[str]:
        base = self.recipe.base
        if self.recipe.random_seed is not None:
            yield f"base      {base}: random weights, to measure speed; there are no experts"
            return
        there = "there" if self.work is not None else "cannot be used, see below"
        yield f"base      {base}: {there}"
        for task, path in self.experts.items():
            if path is None:
                yield f"expert    {task}: unknown, its name depends on base and data"
            elif path.is_file():
                yield f"expert    {task}: {path}: there"
            else:
                yield f"expert    {task}: {path}: missing; {self._remedy(task, path)}"

    def _remedy(self, task: str, path: Path) -> str:
        recipe, train = self.recipe, self.recipe.train
        if not recipe.train_missing:
            self.faults.append(missing_expert(self.loaded, task, path))
            command = ["simo-train", "--recipe", self.loaded.shown, "--task", task]
            if self.loaded.data is not None:
                command += ["--data", str(self.loaded.data)]
            return shlex.join(command)
        images = self.counts.get("train")
        if images is None:
            return "it would be trained"
        head, full = (
            steps_of(phase.epochs, images, train.batch) for phase in (train.head, train.full)
        )
        return (
            f"it would be trained on {many(images, 'image')} with labels, in "
            f"{many(head, 'step')} of the head and {full} of all weights"
        )

    def data(self) -> Iterator[str]:
        data = self.recipe.data
        if data is None:
            yield "data      none"
            return
        yield f"data      {data.format}, {data.root}{'' if self.dataset else ': not there'}"
        labels = ", ".join(self.recipe.tasks)
        for role in self.roles:
            if self.dataset is None:
                count = "unknown"
            elif role in self.counts:
                count = f"{self.images(role)}, labels of {labels}"
            else:
                count = "cannot be read, see below"
            yield f"  {role:<8}{getattr(data, role)}: {count}"
        yield f"  {'test':<8}{data.test}: not read by a build{self._test_count()}"
        if self.dataset is not None:
            yield from (f"  {line}" for line in overlaps(self.dataset, data))

    def _test_count(self) -> str:
        assert self.recipe.data is not None
        if self.dataset is None:
            return ""
        try:
            return f" ({many(len(self.dataset.ids(self.recipe.data.test)), 'image')})"
        except (DataError, UnknownNameError):
            return " (there is none)"

    def merging(self) -> Iterator[str]:
        if self.recipe.random_seed is not None:
            yield "1 merge   nothing: the encoder is the random base"
            return
        choice, method = self.recipe.merge, any_method(self.recipe.merge.method)
        tried = candidates(choice.fixed(), choice.choose)
        work = self.complete
        if work is not None:
            self.attempt(lambda: merger_of(work).rehearse(tried))
        yield f"1 merge   {method.name}, {self._chosen(len(tried))}{self._kept(self.merged)}"
        if isinstance(method, LearnedMethod):
            yield from self._learnt(method, tried)
        elif method.needs:
            yield self._evidence(method)

    def _chosen(self, count: int) -> str:
        choice = self.recipe.merge
        if not choice.choose:
            return "no choice"
        names = " and ".join(choice.choose)
        by = f"by {self.images('select')} of select with labels"
        if choice.by != SELECT:
            by = f"by {choice.by} on {choice.images} images of realign without labels"
        return f"{many(count, 'candidate')} of {names}, chosen {by}"

    def _learnt(self, method: LearnedMethod, tried: Sequence[dict[str, object]]) -> Iterator[str]:
        images = self.recipe.merge.images
        for params in tried:
            own = {k: v for k, v in params.items() if not k.startswith("lines.")}
            settings = method.settings(**own)
            learns = images - held_out(images, settings.hold)
            steps = steps_of(int(settings.epochs), learns, int(settings.batch))
            labels = "with" if settings.loss == "labels" else "without"
            yield f"  learns  {many(steps, 'step')} on {images} images of realign {labels} labels"

    def _evidence(self, method: MergeMethod) -> str:
        images, kind = self.recipe.merge.images, method.needs
        told = f"  gathers {kind} of every expert on {images} images of realign"
        labels = "with" if not method.walks and KINDS[kind].labels else "without"
        work = self.complete
        kept = work is not None and not method.walks and Gathered(work, kind).kept()
        return f"{told} {labels} labels{' [kept from an earlier build]' if kept else ''}"

    def realigning(self) -> Iterator[str]:
        steps = self.recipe.realign
        if self.recipe.random_seed is not None or not steps:
            yield "2 realign nothing: heads stay as they are"
            return
        yield f"2 realign {many(len(steps), 'step')}{self._kept(self.aligned)}"
        for step in steps:
            yield f"  {step.step}: {self._step(step)}"

    def _step(self, step: AnyStep) -> str:
        if isinstance(step, CalibrateStep):
            by = f"chosen by {self.images('select')} of select, " if step.choose else ""
            return f"the encoder, {by}on {step.images} images of realign, without labels"
        mirrored = " and their mirror images" if step.flip else ""
        labelled = isinstance(step, HeadStep) or step.labels
        seen = f"{self.images('realign')} of realign{mirrored}, {_with(labelled)} labels"
        if isinstance(step, JointStep):
            fresh = ", fresh in every epoch" if step.fresh else ""
            seen += f", {step.views} views of each{fresh}" if step.views > 1 else ""
            seen += f"; {self.images('unlabelled')} of unlabelled" if step.unlabelled else ""
        by_select = isinstance(step, HeadStep) or step.by == "select"
        best = f"the best epoch by {self.images('select')} of select, {_with(by_select)} labels"
        heads = many(len(self.recipe.tasks), "head")
        what = f"{heads}, each" if isinstance(step, HeadStep) else f"the encoder and {heads},"
        return f"{what} {self._steps(step)} in {many(step.epochs, 'epoch')} on {seen}; {best}"

    def _steps(self, step: HeadStep | JointStep) -> str:
        if "realign" not in self.counts:
            return "an unknown number of steps"
        return many(steps_of(step.epochs, self._learnt_from(step), step.batch), "step")

    def _learnt_from(self, step: HeadStep | JointStep) -> int:
        """Count the images of an epoch, with their views and mirror images."""
        count = self.counts["realign"]
        if isinstance(step, JointStep):
            more = self.counts.get("unlabelled", 0) if step.unlabelled else 0
            count = step.views * (count + more)
        return count * (2 if step.flip else 1)

    def exporting(self) -> Iterator[str]:
        asked = self.recipe.export.images
        count = min(asked, self.counts.get("select", asked))
        gate = many(count, "image") + (" of noise" if self.recipe.data is None else " of select")
        self.attempt(lambda: check_folder(self.out))
        precisions = ", ".join(self.recipe.export.precisions)
        graphs = f"{2 + len(self.recipe.tasks)} graphs in {precisions}"
        yield (f"3 export  {graphs} to {self.out}, compared with PyTorch on {gate}{self._there()}")

    def images(self, role: str) -> str:
        """Say how many images a split has, as far as it is known."""
        return many(self.counts[role], "image") if role in self.counts else "the images"

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

    def _kept(self, result: Result | None) -> str:
        return " [kept from an earlier build]" if result is not None else ""

    def _there(self) -> str:
        work, bundle = self.complete, opened(self.out)
        if work is None or bundle is None or self.merged is None or self.aligned is None:
            return " [a bundle is there, and would be replaced]" if bundle is not None else ""
        key = provenance_of(work, self.merged, self.aligned)["key"]
        same = bundle.manifest.provenance.get("key") == key
        return " [is there]" if same else " [a bundle is there, and would be replaced]"

    # Room

    def room(self) -> Iterator[str]:
        """Say how much memory and disk the arrays take that grow with images and weights."""
        experts = 0 if self.recipe.random_seed is not None else len(self.recipe.tasks)
        weights = (experts + 2) * 4 * self.sizes.encoder.parameters
        yield f"memory    {size(weights)} of weights: base, {experts} experts, the shared encoder"
        if self.recipe.data is None:
            return
        if not {"realign", "select"} <= set(self.counts):
            yield "          images and features: unknown without the images' number"
            return
        every = list(self._arrays())
        for what in dict.fromkeys(name for name, _ in every):
            yield f"          {size(sum(b for name, b in every if name == what))} of {what}"
        if large := sum(bytes_ for _, bytes_ in every if bytes_ > LIMIT):
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
            yield f"disk      {size(large)} of that in {folder}, where {size(free)} are free"
            if free < large:
                self.faults.append(
                    f"{folder}: {size(free)} are free, and arrays of {size(large)} would lie "
                    "there; set TMPDIR to a folder with more"
                )

    def _arrays(self) -> Iterator[tuple[str, int]]:
        """Give every large array of re-alignment and choice, with its bytes."""
        recipe, sizes = self.recipe, self.sizes
        pixels = recipe.image.size[0] * recipe.image.size[1]
        learners = [step for step in recipe.realign if isinstance(step, HeadStep | JointStep)]
        most = max((self._learnt_from(step) for step in learners), default=0)
        for count in (self.counts["realign"] + most, self.counts["select"]):
            yield "images and truths", 3 * pixels * count
            for part in recipe.tasks.values():
                shape, dtype = stored_form(part.kind, (count, *recipe.image.size))
                yield "images and truths", dtype(0).itemsize * _product(shape)
        heads = [step for step in recipe.realign if isinstance(step, HeadStep)]
        both = 2 if any(step.flip for step in heads) else 1
        for count in (both * self.counts["realign"] if heads else 0, self.counts["select"]):
            for _ in recipe.encoder.taps:
                yield "features", 4 * count * sizes.tokens * sizes.width
        taps = len(recipe.encoder.taps) * len(recipe.tasks)
        for step in recipe.realign:
            if isinstance(step, JointStep):
                tokens = self._learnt_from(step) * sizes.tokens
                yield "the experts' features", 2 * taps * tokens * sizes.width
            elif isinstance(step, CalibrateStep):
                tokens = step.images * sizes.tokens
                yield "tokens", 4 * (len(recipe.tasks) + 1) * tokens * sizes.width


def _product(shape: Sequence[int]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found


def _with(labels: bool) -> str:
    return "with" if labels else "without"


def many(count: int, what: str) -> str:
    """Count things, one or many."""
    return f"{count} {what}{'s' * (count != 1)}"


def millions(count: int) -> str:
    """Show a number of parameters."""
    return f"{count} parameters" if count < 1e6 else f"{count / 1e6:.3g} million parameters"


def macs(count: int) -> str:
    """Show a number of multiply-adds."""
    if count < 1e9:
        return f"{count / 1e6:.3g} million multiply-adds"
    return f"{count / 1e9:.3g} billion multiply-adds"


def size(count: int) -> str:
    """Show a number of bytes."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
