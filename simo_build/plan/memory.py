"""The section of a plan on the room that a build takes."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from simo_build.plan.site import Site
from simo_build.plan.words import size
from simo_build.room import LIMIT
from simo_build.sample import stored_form
from simo_build.steps import CalibrateStep, HeadStep, JointStep


def room(site: Site) -> Iterator[str]:
    """Say how much memory and disk the arrays take that grow with images and weights."""
    experts = 0 if site.recipe.random_seed is not None else len(site.recipe.tasks)
    weights = (experts + 2) * 4 * site.sizes.encoder.parameters
    yield f"memory    {size(weights)} of weights: base, {experts} experts, the shared encoder"
    if site.recipe.data is None:
        return
    if not {"realign", "select"} <= set(site.counts):
        yield "          images and features: unknown without the images' number"
        return
    every = list(_arrays(site))
    for what in dict.fromkeys(name for name, _ in every):
        yield f"          {size(sum(b for name, b in every if name == what))} of {what}"
    if large := _past_the_limit(bytes_ for _, bytes_ in every):
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        yield f"disk      {size(large)} of that in {folder}, where {size(free)} are free"
        if free < large:
            site.faults.append(
                f"{folder}: {size(free)} are free, and arrays of {size(large)} would lie "
                "there; set TMPDIR to a folder with more"
            )


def _arrays(site: Site) -> Iterator[tuple[str, int]]:
    """Give every large array of re-alignment and choice, with its bytes."""
    recipe, sizes = site.recipe, site.sizes
    pixels = recipe.image.size[0] * recipe.image.size[1]
    learners = [step for step in recipe.realign if isinstance(step, HeadStep | JointStep)]
    most = max((site.learnt_from(step) for step in learners), default=0)
    for count in (site.counts["realign"] + most, site.counts["select"]):
        yield "images and truths", 3 * pixels * count
        for part in recipe.tasks.values():
            shape, dtype = stored_form(part.kind, (count, *recipe.image.size))
            yield "images and truths", dtype(0).itemsize * _product(shape)
    heads = [step for step in recipe.realign if isinstance(step, HeadStep)]
    both = 2 if any(step.flip for step in heads) else 1
    for count in (both * site.counts["realign"] if heads else 0, site.counts["select"]):
        for _ in recipe.encoder.taps:
            yield "features", 4 * count * sizes.tokens * sizes.width
    for step in recipe.realign:
        if isinstance(step, HeadStep | JointStep):
            yield from _answers(site, step)
        elif isinstance(step, CalibrateStep):
            tokens = step.images * sizes.tokens
            yield "tokens", 4 * (len(recipe.tasks) + 1) * tokens * sizes.width


def _answers(site: Site, step: HeadStep | JointStep) -> Iterator[tuple[str, int]]:
    """Give what the experts have said of a step's images, and of `select` if they judge."""
    features = isinstance(step, JointStep) and step.features > 0
    if not (step.outputs or features):
        return
    judged = site.counts["select"] if step.by == "teachers" else 0
    for count in (site.learnt_from(step), judged):
        for coarse in site.sizes.coarse.values():
            yield "the experts' answers", 4 * count * coarse
            if features:
                for _ in site.recipe.encoder.taps:
                    numbers = count * site.sizes.tokens * site.sizes.width
                    yield "the experts' features", 2 * numbers


def _past_the_limit(every: Iterable[int]) -> int:
    """Count the bytes of arrays that lie in files, as if all were held to the end."""
    held = filed = 0
    for bytes_ in every:
        if held + bytes_ <= LIMIT:
            held += bytes_
        else:
            filed += bytes_
    return filed


def _product(shape: Sequence[int]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found
