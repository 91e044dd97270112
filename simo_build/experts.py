"""Experts as a recipe needs them, also those that were made for another image size."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from simo_build.base import load_base
from simo_build.checkpoints import (
    Expert,
    description,
    image_part,
    read_expert,
    read_metadata,
)
from simo_build.encoder import Encoder, resampled
from simo_build.loading import LoadedRecipe
from simo_runtime.errors import CheckpointError


def fitting_expert(
    path: Path,
    loaded: LoadedRecipe,
    task: str,
    *,
    encoder: Encoder,
    base: Mapping[str, Tensor],
    base_hash: str,
) -> Expert:
    """Read an expert of a recipe; its position embedding comes to the recipe's grid.

    An expert may have been made for another image size if all else is the recipe's. Its base is
    then the recipe's at that size, and the difference from it is resampled, so that what training
    did not move stays exactly the base's. CheckpointError says what does not fit.
    """
    recipe = loaded.recipe
    wanted = description(recipe, task, base_hash)
    image = image_part(read_metadata(path), path, like=recipe.image)
    if image == recipe.image:
        return read_expert(path, like=wanted)
    there = Encoder(recipe.encoder, image)
    try:
        there_hash = load_base(loaded, there)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: the expert was made for images of {image.size} pixels, the recipe's are "
            f"{recipe.image.size}, and the base does not fit the expert's size: {error}"
        ) from error
    positions = {n: t.detach().clone() for n, t in there.weights().items() if n == "pos_embed"}
    wanted |= {"base_hash": there_hash, "image": image.model_dump(mode="json")}
    expert = read_expert(path, like=wanted)
    there.load(expert.encoder, source=str(path))
    if there.geometry.grid == encoder.geometry.grid:
        return expert
    deltas = {name: expert.encoder[name] - before for name, before in positions.items()}
    moved = resampled(deltas, encoder, image.size)
    placed = {name: base[name] + delta for name, delta in moved.items()}
    return replace(expert, encoder={**expert.encoder, **placed})
