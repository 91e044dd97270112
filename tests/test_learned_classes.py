"""Learning coefficients for a task of classes: from outputs, pseudo-labels, labels and entropy."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from simo_build.checkpoints import description, write_expert
from simo_build.heads import make_head
from simo_build.losses import TORCH_KINDS
from simo_build.merging import merge
from simo_build.train import feature_shape
from simo_build.workshop import Workshop
from tests.tiny import SIZE, moved, opened, write_recipe, write_workplace

CLASSES = ["floor", "wall", "bed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny workplace, with a task of classes beside its others."""
    folder = write_workplace(tmp_path_factory.mktemp("classes")).parent
    draw = np.random.default_rng(1)
    (folder / "data" / "seg").mkdir()
    for image in sorted((folder / "data" / "rgb").iterdir()):
        labels = draw.integers(0, len(CLASSES), SIZE, dtype=np.uint8)
        cv2.imwrite(str(folder / "data" / "seg" / image.name), labels)
    work = opened_with(folder, ("seg",), loss="outputs")
    spec = work.recipe.specs()["seg"]
    head = make_head("linear", spec, feature_shape(work.encoder), seed=5)
    torch.nn.init.normal_(head.get_parameter("project.weight"), std=1.0)  # some pixels are sure
    write_expert(
        folder / "seg.safetensors",
        encoder=moved(work.base, seed=7, scale=0.05),
        head=head.state_dict(),
        about=description(work.recipe, "seg", work.base_hash),
    )
    return folder


def opened_with(folder: Path, tasks: tuple[str, ...], **params: Any) -> Workshop:
    merging = {"method": "adamerging", "params": {"epochs": 4, "batch": 2, **params}, "images": 6}
    path = write_recipe(folder, tasks, merge=merging, realign=[])
    content = yaml.safe_load(path.read_text())
    content["tasks"]["seg"] |= {"kind": "segmentation", "labels": CLASSES}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    work = opened(path)
    for kept in work.stages.root.glob("*"):
        kept.unlink()
    return work


@pytest.mark.parametrize("loss", ["outputs", "pseudo", "features", "labels"])
def test_classes_are_learnt_beside_other_tasks(loss: str, place: Path) -> None:
    found = merge(opened_with(place, ("depth", "seg"), loss=loss, lr=0.03)).log["learned"]
    assert found["labels"] == (6 if loss == "labels" else 0)
    assert set(found["learnt"]) == {"depth", "seg"}
    assert found["history"][found["epoch"]] < found["history"][0]


def test_entropy_makes_predictions_more_certain(place: Path) -> None:
    work = opened_with(place, ("seg",), loss="entropy", lr=0.03)
    found = merge(work)
    history = found.log["learned"]["history"]
    assert history[found.log["learned"]["epoch"]] < history[0] <= np.log(len(CLASSES))
    # the held-out images of six are the second and the fifth
    held = torch.from_numpy(work.unlabelled(6).images[[1, 4]])
    work.encoder.load(found.tensors, source="merged")
    uncertainty = TORCH_KINDS["segmentation"].teaching.entropy
    assert uncertainty is not None
    with torch.no_grad():
        entropy = uncertainty(work.expert_heads()["seg"](work.encoder(held))).mean()
    assert float(entropy) == pytest.approx(min(history), rel=1e-5)


def test_a_share_of_sure_pixels_is_another_loss(place: Path) -> None:
    whole, half = (
        merge(opened_with(place, ("seg",), confidence=share)).log["learned"]["history"]
        for share in (1.0, 0.5)
    )
    assert whole != half
