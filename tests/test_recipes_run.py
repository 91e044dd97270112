"""The recipes that ship, run on tiny files in the real formats: train, build, predict.

Only the encoder is smaller than the recipe says, and training shorter; with DPT heads, whose work
does not shrink with the encoder's, the image is smaller as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from simo_build.build import build
from simo_build.encoder import Encoder, randomise
from simo_build.formats.taskonomy import BUILDINGS
from simo_build.loading import find_recipe, load_recipe
from simo_build.plan import plan
from simo_build.progress import Silent
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.train import train_expert
from simo_runtime.predictor import Predictor
from tests.datasets import Array, save

HEADS = {"nyuv2": "linear", "cityscapes": "dpt_small", "taskonomy": "dpt_small"}  # the paper's
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
SMALL = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 2}


def nyuv2_files(root: Path) -> None:
    draw = np.random.default_rng(0)
    size = (288, 384)
    for half, count in (("train", 2), ("val", 6)):
        for number in range(count):
            normals = draw.normal(size=(*size, 3)).astype(np.float32)
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            arrays = {
                "image": draw.random((*size, 3), np.float32),
                "label": draw.integers(-1, 13, size).astype(np.float32),
                "depth": draw.uniform(0, 9, (*size, 1)).astype(np.float32),
                "normal": normals,
            }
            for folder, array in arrays.items():
                save(root / "nyuv2_npy" / half / folder / f"{number}.npy", array)


def cityscapes_files(root: Path) -> None:
    draw = np.random.default_rng(0)
    size = (256, 512)  # a quarter of the published ones' sides
    for half, count in (("train", 15), ("val", 1)):
        for number in range(count):
            parts = 2_400_001 + 100_000 * draw.integers(0, 3, size) + draw.integers(0, 4, size)
            arrays: dict[str, Array] = {
                "leftImg8bit/{}_leftImg8bit.png": draw.integers(0, 256, (*size, 3), np.uint8),
                "gtFine/{}_gtFine_labelIds.png": draw.integers(0, 34, size).astype(np.uint8),
                "gtFinePanopticParts/{}_gtFinePanopticParts.tif": parts.astype(np.int32),
                "disparity/{}_disparity.png": draw.integers(0, 2**15, size).astype(np.uint16),
            }
            for place, array in arrays.items():
                name = f"{half}/bonn/bonn_{number:06d}_000019"
                save(root / "cityscapes" / place.format(name), array)


def taskonomy_files(root: Path) -> None:
    draw = np.random.default_rng(0)
    size = (512, 512)
    for split, count in (("train", 1), ("val", 2), ("test", 1)):
        for building in BUILDINGS[split]:
            for point in range(count):
                arrays = {
                    "rgb": draw.integers(0, 256, (*size, 3), np.uint8),
                    "depth_zbuffer": draw.integers(100, 6000, size).astype(np.uint16),
                    "normal": draw.integers(1, 256, (*size, 3), np.uint8),
                    "keypoints2d": draw.integers(0, 4000, size).astype(np.uint16),
                    "edge_texture": draw.integers(0, 12_000, size).astype(np.uint16),
                }
                for domain, array in arrays.items():
                    name = f"point_{point}_view_0_domain_{domain}.png"
                    save(root / "taskonomy" / domain / building / name, array)


def published_base(path: Path) -> None:
    """Write weights as DINOv2's file names and shapes them, of a smaller encoder."""
    part = EncoderPart(model="vit_base_patch14_dinov2", options=SMALL)
    encoder = Encoder(part, ImagePart(size=(518, 518)))
    randomise(encoder, 0)
    torch.save({**encoder.weights(), "mask_token": torch.zeros(1, SMALL["embed_dim"])}, path)


def shortened(name: str, folder: Path) -> Path:
    """Write a shipped recipe with a smaller encoder and one epoch of everything."""
    content: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text())
    content["encoder"]["options"] = SMALL
    if HEADS[name] != "linear":
        content["image"]["size"] = [side // 4 for side in content["image"]["size"]]
    for phase in ("head", "full"):
        content["train"][phase]["epochs"] = 1
    (step,) = content["realign"]
    assert step["step"] == "head"
    step["epochs"] = 1
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("name", "write", "padded", "shapes"),
    [
        (
            "nyuv2",
            nyuv2_files,
            (280, 378),
            {"seg": (30, 40), "depth": (30, 40), "normals": (30, 40, 3)},
        ),
        (
            "cityscapes",
            cityscapes_files,
            (42, 70),
            {"seg": (30, 40), "parts": (30, 40), "disparity": (30, 40)},
        ),
        (
            "taskonomy",
            taskonomy_files,
            (70, 70),
            {
                "depth": (30, 40),
                "normals": (30, 40, 3),
                "keypoints": (30, 40),
                "edges": (30, 40),
                "autoencoding": (30, 40, 3),
            },
        ),
    ],
)
def test_a_shipped_recipe_goes_from_files_to_predictions(
    name: str,
    write: Callable[[Path], None],
    padded: tuple[int, int],
    shapes: dict[str, tuple[int, ...]],
    tmp_path: Path,
) -> None:
    write(tmp_path)
    published_base(tmp_path / "dinov2_vitb14_pretrain.pth")
    recipe = str(shortened(name, tmp_path))
    loaded = load_recipe(recipe, data=tmp_path, experts=tmp_path / "experts")
    assert {part.head for part in loaded.recipe.tasks.values()} == {HEADS[name]}
    before = plan(loaded, tmp_path / "bundle")
    assert [fault.split(": ")[1] for fault in before.faults] == [
        f"the expert of {task} is missing. Train it with `simo-train --recipe {recipe} "
        f"--task {task}`, or set `train_missing"
        for task in shapes
    ]
    for task in shapes:
        train_expert(loaded, task, Silent())
    bundle = build(loaded, tmp_path / "bundle", progress=Silent())
    tried = bundle.manifest.provenance["merge"]["tried"]
    assert [one["params"]["alpha"] for one in tried] == ALPHAS
    padding = "" if padded == loaded.recipe.image.size else f", padded to {padded[0]} x {padded[1]}"
    assert f"pixels{padding}: {padded[0] // 14} x {padded[1] // 14} patches" in before.lines[1]
    with Predictor.open(bundle.root) as predict:
        photo = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
        scene = predict(photo, colours="RGB")
    assert {task: scene[task].values.shape for task in shapes} == shapes
    after = plan(loaded, tmp_path / "bundle")
    assert not after.faults
    told = "\n".join(after.lines)
    assert told.count("[kept from an earlier build]") == 2
    assert "[is there]" in told
