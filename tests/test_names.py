"""A loss that is not a number names the images that it was of, whatever was made of them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from simo_build import phases
from simo_build.build import realign
from simo_build.cli import train_command
from simo_build.merging import merge
from simo_build.names import Name, named
from simo_build.realign.joint import Lessons
from simo_runtime.errors import TrainError
from tests.tiny import SIZE, SPLITS, opened, write_workplace

COUNT = sum(SPLITS.values())
NAMES = [Name("far", f"{row:04d}") for row in range(6)]


def test_an_image_is_named_once_and_of_many_the_first() -> None:
    assert named(NAMES, [2, 0, 2]) == "the images 0002, 0000 of the split 'far'"
    assert (
        named(NAMES, range(6)) == "the images 0000, 0001, 0002, 0003 and 2 more of the split 'far'"
    )


def test_images_of_several_splits_are_told_apart() -> None:
    names = [*NAMES, Name("near", "0000")]
    told = "the images 0001, 0000 of the split 'far' and the image 0000 of the split 'near'"
    assert named(names, [1, 6, 0]) == told


def test_rows_without_names_are_told_by_their_numbers() -> None:
    assert named([], [4, 1]) == "the rows 4, 1 of images without names"


def grey_of(number: int) -> int:
    return 10 * (number + 1)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A workplace whose images are grey, each of its own, which no view changes."""
    write_workplace(tmp_path)
    for number in range(COUNT):
        image = np.full((*SIZE, 3), grey_of(number), np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "rgb" / f"{number:04d}.png"), image)
    return tmp_path


def images_in(batch: Tensor) -> set[str]:
    """Tell the images of a batch by their greys."""
    return {f"{int(image[0, 0, 0]) // 10 - 1:04d}" for image in batch}


def test_simo_train_names_the_image_past_those_that_were_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((place / "tiny.yaml").read_text())
    content["tasks"] = {"depth": {"kind": "depth", "target": {"folder": "depth"}}}
    content["data"] |= {"train": "realign", "skip_unreadable": True}
    content["train"] = {
        "batch": 1,
        **{phase: {"epochs": 1, "lr": 1e-3} for phase in ("head", "full")},
    }
    recipe = place / "train.yaml"
    recipe.write_text(yaml.safe_dump(content))
    (place / "data" / "rgb" / "0003.png").write_bytes(b"damaged")
    plain = phases.augmented

    def broken(images: Tensor, truths: Any, *more: Any) -> Any:
        images, truths = plain(images, truths, *more)
        if images_in(images) == {"0005"}:
            truths = {task: truth * torch.nan for task, truth in truths.items()}
        return images, truths

    monkeypatch.setattr(phases, "augmented", broken)
    told = CliRunner().invoke(
        train_command,
        ["--recipe", str(recipe), "--task", "depth", "--experts", str(place / "experts")],
    )
    assert told.exit_code == 1
    assert (
        "depth, all: the loss is nan in epoch 1, on the image 0005 of the split 'realign'; "
    ) in told.output


@pytest.mark.parametrize("flip", [False, True])
def test_views_and_mirror_images_are_named_as_their_image(
    place: Path, monkeypatch: pytest.MonkeyPatch, flip: bool
) -> None:
    content = yaml.safe_load((place / "tiny.yaml").read_text())
    change = {"views": 3, "scales": [1.0, 1.2], "flip": flip, "unlabelled": True}
    content["realign"] = [{"step": "distill", "epochs": 1, "lr": 1e-3, "batch": 3, **change}]
    content["data"]["unlabelled"] = "train"
    content["merge"] = {"params": {"alpha": 0.5}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(content))
    seen: list[set[str]] = []
    plain = Lessons.loss

    def broken(self: Lessons, joint: Any, index: Tensor, units: Any) -> Tensor:
        found = images_in(self.images[index])
        both = len({name < "0002" for name in found}) == 2  # images of `train` are the first two
        if not (both and index.max() >= len(self.images) // 2):
            return plain(self, joint, index, units)
        seen.append(found)
        return plain(self, joint, index, units) * torch.nan

    monkeypatch.setattr(Lessons, "loss", broken)
    work = opened(place / "tiny.yaml")
    with pytest.raises(TrainError, match="re-align: the loss is nan in epoch 1, on ") as stopped:
        realign(work, merge(work))
    line = str(stopped.value).split(", on ")[1].split(";")[0]
    for split, own in (
        ("train", [n for n in seen[0] if n < "0002"]),
        ("realign", [n for n in seen[0] if n >= "0002"]),
    ):
        (part,) = [part for part in line.split(" and ") if part.endswith(f"split '{split}'")]
        assert {word.strip(",") for word in part.split() if word[0] == "0"} == set(own)
