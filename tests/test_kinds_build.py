"""Every kind of task, from a folder of one's own through training to a bundle's predictions."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from simo_build.base import load_base
from simo_build.build import build
from simo_build.checkpoints import write_tensors
from simo_build.encoder import Encoder, randomise
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_build.sources import UNTARGETED
from simo_runtime.bundle import Bundle
from simo_runtime.predictor import Predictor
from simo_runtime.sinks import write_form
from simo_runtime.tasks import KINDS
from tests.datasets import Array, save

SIZE = (32, 48)
LABELS = ["a", "b", "c"]
SPLITS = {"train": 0.4, "realign": 0.3, "select": 0.3}


def drawn(kind: str, draw: np.random.Generator) -> Array:
    """Draw a map as it is stored, with some pixels that have no truth."""
    if KINDS[kind].channels is None:
        return draw.choice([0, 1, 2, 255], SIZE).astype(np.uint8)
    if kind == "normals":
        return draw.integers(0, 256, (*SIZE, 3), np.uint8) * draw.integers(
            0, 2, (*SIZE, 1), np.uint8
        )
    if kind in ("edges", "keypoints"):
        values = draw.uniform(-1, 1, SIZE).astype(np.float32)
        return np.where(draw.random(SIZE) < 0.3, np.float32(np.nan), values)
    return draw.choice([0, 500, 2000, 30000], SIZE).astype(np.uint16)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    tasks: dict[str, Any] = {}
    for kind, entry in KINDS.items():
        tasks[kind] = {"kind": kind}
        if entry.channels is None:
            tasks[kind]["labels"] = LABELS
        if kind not in UNTARGETED:
            tasks[kind]["target"] = {"folder": kind}
    for number in range(10):
        save(folder / "images" / f"{number}.png", draw.integers(0, 256, (*SIZE, 3), np.uint8))
        for kind in set(KINDS) - UNTARGETED:
            suffix = ".npy" if kind in ("edges", "keypoints") else ".png"
            save(folder / kind / f"{number}{suffix}", drawn(kind, draw))
    phase = {"epochs": 1, "lr": 1e-3}
    content = {
        "name": "kinds",
        "encoder": {
            "model": "vit_tiny_patch16_224",
            "options": {"embed_dim": 16, "depth": 2, "num_heads": 2},
            "taps": [1, 2],
        },
        "base": "base.safetensors",
        "image": {"size": list(SIZE)},
        "data": {"format": "images", "root": ".", "splits": SPLITS},
        "tasks": tasks,
        "train_missing": True,
        "train": {
            "batch": 4,
            "head": phase,
            "full": phase,
            "scales": [1.0, 1.5],
            "jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
        },
        "merge": {"params": {"alpha": 0.1}},
        "realign": [{"step": "head", **phase}],
        "export": {"images": 3},
    }
    path = folder / "kinds.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    loaded = load_recipe(str(path))
    encoder = Encoder(loaded.recipe.encoder, loaded.recipe.image)
    randomise(encoder, 0)
    write_tensors(folder / "base.safetensors", encoder.weights(), {})
    load_base(loaded, encoder)
    return path


@pytest.fixture(scope="module")
def bundle(recipe: Path) -> Bundle:
    loaded = load_recipe(str(recipe), experts=recipe.parent / "experts")
    return build(loaded, recipe.parent / "bundle", progress=Silent())


def test_a_bundle_of_all_kinds_agrees_with_pytorch(bundle: Bundle) -> None:
    # had a graph differed, in its output or by its metric, there would be no bundle
    found = {one["task"]: one for one in bundle.manifest.provenance["gate"]["found"]}
    assert set(found) == set(KINDS)
    for one in found.values():
        assert np.isfinite(one["metric_torch"])
        assert one["metric_onnx"] == pytest.approx(one["metric_torch"], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_every_kind_are_drawn_and_written(
    bundle: Bundle, kind: str, tmp_path: Path
) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)
    with Predictor.open(bundle) as predict:
        prediction = predict(photo, tasks=[kind], colours="RGB")[kind]
    entry = KINDS[kind]
    assert prediction.values.dtype == (np.uint8 if entry.channels is None else np.float32)
    assert prediction.values.shape == ((50, 60, 3) if entry.channels == 3 else (50, 60))
    assert np.isfinite(prediction.values).all()
    assert prediction.summary()
    for form in ("npy", "png", "jpg", "colour"):
        assert write_form(prediction, tmp_path, "photo", form).stat().st_size > 0
    pixels = cv2.imread(str(tmp_path / f"photo.{kind}.png"), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    assert pixels.shape == prediction.values.shape
