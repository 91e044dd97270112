"""A tiny recipe with everything it needs: two experts of a random base, and a few images."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from simo_build.base import load_base
from simo_build.checkpoints import description, write_expert, write_tensors
from simo_build.encoder import Encoder, randomise
from simo_build.heads import make_head
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.merging import check_recipe
from simo_build.progress import Silent
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.train import feature_shape
from simo_build.workshop import Workshop

SIZE = (32, 48)  # pixels: a grid of 2 x 3 patches
SPLITS = {"train": 2, "realign": 6, "select": 3, "test": 2}
TASKS = ("depth", "normals")
MERGE: dict[str, Any] = {"choose": {"alpha": [0.5, 1.0]}}


def write_data(folder: Path) -> None:
    """Write the images and truths of all splits; noise, the same every time."""
    draw, splits, number = np.random.default_rng(0), {}, 0
    for name in ("rgb", *TASKS):
        (folder / name).mkdir(parents=True)
    for split, count in SPLITS.items():
        splits[split] = list(range(number, number + count))
        number += count
    for image in range(number):
        rgb = draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "rgb" / f"{image:04d}.png"), rgb)
        depth = draw.integers(500, 4000, SIZE, dtype=np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{image:04d}.png"), depth)
        normals = draw.integers(1, 256, (*SIZE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "normals" / f"{image:04d}.png"), normals)
    (folder / "meta.json").write_text(json.dumps({"splits": splits}))


def write_recipe(
    folder: Path, tasks: tuple[str, ...] | dict[str, Any] = TASKS, **changes: Any
) -> Path:
    """Write a recipe on the files of `write_workplace`, with some keys changed.

    `tasks` are names, or what stands under the key.
    """
    if isinstance(tasks, tuple):
        tasks = {
            task: {"kind": task, "expert": f"{task}.safetensors", "target": {"folder": task}}
            for task in tasks
        }
    content = {
        "name": "tiny",
        "encoder": {
            "model": "vit_tiny_patch16_224",
            "options": {"embed_dim": 32, "depth": 2, "num_heads": 2},
            "taps": [1, 2],
        },
        "base": "base.safetensors",
        "image": {"size": list(SIZE)},
        "data": {"root": "data"},
        "tasks": tasks,
        "merge": {**MERGE, "images": 4},
        "realign": [{"step": "head", "epochs": 1, "lr": 1e-3}],
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_workplace(
    folder: Path, scales: Mapping[str, float] | None = None, **changes: Any
) -> Path:
    """Write data, base, experts that move by noise of some scale, and the recipe; give the last."""
    write_data(folder / "data")
    path = write_recipe(folder, **changes)
    loaded = load_recipe(str(path))
    encoder = Encoder(loaded.recipe.encoder, loaded.recipe.image)
    randomise(encoder, 0)
    write_tensors(folder / "base.safetensors", encoder.weights(), {})
    found = load_base(loaded, encoder)
    base = {name: tensor.clone() for name, tensor in encoder.weights().items()}
    for seed, task in enumerate(TASKS, start=1):
        scale = (scales or {}).get(task, 0.05)
        spec = loaded.recipe.specs()[task]
        name = loaded.recipe.tasks[task].head
        head = make_head(name, spec, feature_shape(encoder), seed=seed)
        write_expert(
            folder / f"{task}.safetensors",
            encoder=moved(base, seed=seed, scale=scale),
            head=head.state_dict(),
            about=description(loaded.recipe, task, found),
        )
    return path


def moved(base: StateDict, *, seed: int, scale: float) -> StateDict:
    """Move weights by noise."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in base.items()}


def opened(recipe: Path) -> Workshop:
    """Open the workshop of a recipe, its stages and what it trains beside it."""
    loaded: LoadedRecipe = load_recipe(str(recipe), experts=recipe.parent / "experts")
    check_recipe(loaded)
    return Workshop(loaded, Stages(recipe.parent / ".stages", Silent()))
