"""A tiny recipe, its encoder and an expert's file, for the tests of weights on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from simo_build.checkpoints import Expert, description, read_expert, write_expert
from simo_build.encoder import Encoder, randomise
from simo_build.loading import LoadedRecipe
from simo_build.recipe import Recipe

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
TIMM, DINO, REGISTERS = (
    "vit_tiny_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
)


def loaded(
    folder: Path,
    *,
    model: str = TIMM,
    base: str = "base.safetensors",
    size: tuple[int, int] = (32, 48),
    taps: tuple[int, ...] = (1, 3),
    labels: tuple[str, ...] = ("wall", "floor"),
    **options: object,
) -> LoadedRecipe:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "encoder": {"model": model, "options": {**SMALL, **options}, "taps": taps},
            "base": base,
            "image": {"size": size},
            "tasks": {"seg": {"kind": "segmentation", "labels": labels}},
        }
    )
    return LoadedRecipe(
        recipe=recipe, text="", folder=folder, shown="r.yaml", data=None, experts=folder
    )


def make_encoder(given: LoadedRecipe, *, seed: int = 0) -> Encoder:
    encoder = Encoder(given.recipe.encoder, given.recipe.image)
    randomise(encoder, seed)
    return encoder


def about(given: LoadedRecipe, base_hash: str = "abc") -> dict[str, Any]:
    return description(given.recipe, "seg", base_hash)


def head() -> dict[str, Tensor]:
    return {
        "project.weight": torch.arange(6.0).reshape(2, 3),
        "norm.num_batches_tracked": torch.tensor(4097),  # no float16
    }


def written(folder: Path) -> Path:
    """Write an expert as training does; give its file."""
    given, path = loaded(folder), folder / "seg.safetensors"
    write_expert(path, encoder=make_encoder(given).weights(), head=head(), about=about(given))
    return path


def rewritten(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, dict(metadata))


def read(path: Path, **changes: Any) -> Expert:
    return read_expert(path, like=about(loaded(path.parent, **changes)))
