"""The sections of a plan on what goes into a build: the model, its weights, the data."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from simo_build.fit import steps_of
from simo_build.plan.site import Site
from simo_build.plan.words import macs, many, millions
from simo_build.splits import overlaps
from simo_build.workshop import missing_expert
from simo_runtime.errors import DataError, UnknownNameError


def model(site: Site) -> Iterator[str]:
    """Say how large the model is, and what an image costs."""
    recipe, sizes = site.recipe, site.sizes
    high, wide = recipe.image.size
    rows, columns = sizes.grid
    padded = "" if sizes.padded == (high, wide) else ", padded to {} x {}".format(*sizes.padded)
    yield f"recipe    {recipe.name} ({site.loaded.shown})"
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


def weights(site: Site) -> Iterator[str]:
    """Say where base and experts are, and how missing ones come about."""
    base = site.recipe.base
    if site.recipe.random_seed is not None:
        yield f"base      {base}: random weights, to measure speed; there are no experts"
        return
    there = "there" if site.work is not None else "cannot be used, see below"
    yield f"base      {base}: {there}"
    for task, path in site.experts.items():
        if path is None:
            yield f"expert    {task}: unknown, its name depends on base and data"
        elif path.is_file():
            yield f"expert    {task}: {path}: there"
        else:
            yield f"expert    {task}: {path}: missing; {_remedy(site, task, path)}"


def _remedy(site: Site, task: str, path: Path) -> str:
    recipe, train = site.recipe, site.recipe.train
    if not recipe.train_missing:
        site.faults.append(missing_expert(site.loaded, task, path))
        command = ["simo-train", "--recipe", site.loaded.shown, "--task", task]
        if site.loaded.data is not None:
            command += ["--data", str(site.loaded.data)]
        return shlex.join(command)
    images = site.counts.get("train")
    if images is None:
        return "it would be trained"
    head, full = (steps_of(phase.epochs, images, train.batch) for phase in (train.head, train.full))
    return (
        f"it would be trained on {many(images, 'image')} with labels, in "
        f"{many(head, 'step')} of the head and {full} of all weights"
    )


def data(site: Site) -> Iterator[str]:
    """Say which splits a build reads, and how many images they have."""
    data = site.recipe.data
    if data is None:
        yield "data      none"
        return
    yield f"data      {data.format}, {data.root}{'' if site.dataset else ': not there'}"
    wide = max(map(len, ["realign", *site.roles])) + 1
    for role in site.roles:
        bare = role == "unlabelled" or site.recipe.blind
        labels = "no labels" if bare else f"labels of {', '.join(site.recipe.tasks)}"
        if site.dataset is None:
            count = "unknown"
        elif role in site.counts:
            count = f"{site.images(role)}, {labels}"
        else:
            count = "cannot be read, see below"
        yield f"  {role:<{wide}}{getattr(data, role)}: {count}"
    yield f"  {'test':<{wide}}{data.test}: not read by a build{_test_count(site)}"
    if site.dataset is not None:
        yield from (f"  {line}" for line in overlaps(site.dataset, data))


def _test_count(site: Site) -> str:
    assert site.recipe.data is not None
    if site.dataset is None:
        return ""
    try:
        return f" ({many(len(site.dataset.ids(site.recipe.data.test)), 'image')})"
    except (DataError, UnknownNameError):
        return " (there is none)"
