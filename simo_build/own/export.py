"""A model file in, a bundle out: read the modules, export, hold the graphs to PyTorch.

The same gate as for a merged model: nothing is written unless the graphs agree.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from simo_build.base import load_base
from simo_build.build import first, versions
from simo_build.data import Samples, load_split
from simo_build.encoder import Encoder
from simo_build.export import export_bundle, noise
from simo_build.hashing import code_hash, digest
from simo_build.heads import Head, make_head
from simo_build.heads.file import load_head
from simo_build.loading import LoadedRecipe, read_part
from simo_build.own.modelfile import ModelFile, as_recipe
from simo_build.own.modules import OwnEncoder, OwnHead, check_head, load_module
from simo_build.progress import Progress
from simo_build.statedict import state_hash
from simo_build.train import feature_shape
from simo_export.bundle import check_folder
from simo_export.graph import EXPORTER
from simo_runtime.bundle import Bundle
from simo_runtime.errors import RecipeError
from simo_runtime.image import read_image
from simo_runtime.placement import Placement, fill_colour
from simo_runtime.tasks import TaskSpec

PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}


def export_own(path: Path, out: Path | None, *, data: Path | None, progress: Progress) -> Bundle:
    """Write the bundle of a model file; by default at bundles/<name>.

    Raises the errors of `simo_runtime.errors`; there is never a half-written bundle at `out`.
    """
    file, text = read_part(path, ModelFile)
    encoder = own_encoder(file, path.parent)
    taps = file.encoder.taps if encoder is None else tuple(range(1, encoder.outputs + 1))
    recipe = as_recipe(file, taps, shown=str(path))
    loaded = LoadedRecipe(
        recipe=recipe, text=text, folder=path.parent, shown=str(path), data=data, experts=Path()
    )
    target = out or Path("bundles") / recipe.name
    check_folder(target)
    made, weights = (encoder, None) if encoder is not None else timm_encoder(loaded)
    heads = own_heads(file, loaded, made)
    progress.say("export ...")
    return export_bundle(
        target,
        encoder=made,
        heads=heads,
        recipe=recipe,
        samples=samples_of(file, loaded, progress),
        provenance=_provenance(text, made, heads, weights),
        say=progress.say,
    )


def own_encoder(file: ModelFile, folder: Path) -> OwnEncoder | None:
    """Give the encoder of `python`, or None if it is one of timm's."""
    entry = file.encoder.python
    if entry is None:
        return None
    return OwnEncoder(load_module(entry, folder), entry, file.image.size)


def timm_encoder(loaded: LoadedRecipe) -> tuple[Encoder, str]:
    """Make an encoder of timm with its weights, and give their hash."""
    encoder = Encoder(loaded.recipe.encoder, loaded.recipe.image)
    return encoder, load_base(loaded, encoder)


def own_heads(
    file: ModelFile, loaded: LoadedRecipe, encoder: Encoder | OwnEncoder
) -> dict[str, Head]:
    """Make all heads: ours with the weights given, or the user's."""
    heads: dict[str, Head] = {}
    for task, spec in loaded.recipe.specs().items():
        part = file.tasks[task]
        if part.python is not None:
            head = OwnHead(load_module(part.python, loaded.folder))
            check_head(head, encoder, spec, loaded.recipe.image.size)
            heads[task] = head
        elif part.weights is not None and isinstance(encoder, Encoder):
            heads[task] = our_head(loaded, spec, encoder, part.weights)
    return heads


def our_head(loaded: LoadedRecipe, spec: TaskSpec, encoder: Encoder, weights: str) -> Head:
    """Make a head of ours with the weights of a file."""
    name = loaded.recipe.tasks[spec.name].head
    head = make_head(name, spec, feature_shape(encoder), seed=0)
    load_head(head, loaded.locate(weights), named=f"{name} head for {spec.name}")
    return head.eval()


def samples_of(file: ModelFile, loaded: LoadedRecipe, progress: Progress) -> Samples:
    """Give the images of the gate: with truths, photos without, or noise."""
    if file.data is not None:
        tasks = list(loaded.recipe.tasks)
        return first(load_split(loaded, "select", tasks=tasks, progress=progress), loaded.recipe)
    if file.images is None:
        return noise(loaded.recipe)
    folder = loaded.locate(file.images)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    photos = [path for path in found if path.suffix.lower() in PHOTOS]
    if not photos:
        raise RecipeError(f"{loaded.shown}: images: there is no photo in {folder}")
    image = loaded.recipe.image
    placed = []
    for photo in photos[: loaded.recipe.export.images]:
        pixels = read_image(photo)
        place = Placement(pixels.shape[:2], image.size, image.fit)
        placed.append(place.apply(pixels, fill=fill_colour(image.mean)))
    return Samples(np.stack(placed), {})


def _provenance(
    text: str, encoder: nn.Module, heads: Mapping[str, Head], weights: str | None
) -> dict[str, object]:
    inputs = {
        "encoder": weights or state_hash(encoder.state_dict()),
        "heads": {task: state_hash(head.state_dict()) for task, head in heads.items()},
    }
    found = {"model": text, "inputs": inputs, "versions": versions(), "exporter": EXPORTER}
    return {**found, "key": digest({"code": code_hash(), **found})}
