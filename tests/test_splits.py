"""Splits: what they may share, and that what is missing is found before anything is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_build.data import fingerprint, load_split, open_dataset, say_overlaps
from simo_build.loading import LoadedRecipe
from simo_build.sources import DataPart
from simo_runtime.errors import DataError, ImageError
from tests.datasets import Array, grey, greys, on, read, save

SIZE = (4, 6)
SPLITS: dict[str, list[int]] = {"train": [0, 1, 2], "realign": [3, 4], "select": [5], "test": [6]}


class Said:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def detail(self, line: str) -> None: ...

    def track(self, items: Any, label: str, total: int | None = None) -> Any:
        yield from items


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images, known by their greys, with depth."""
    for number in range(7):
        save(tmp_path / "rgb" / f"{number:04d}.png", grey(10 * number, SIZE))
        save(tmp_path / "depth" / f"{number:04d}.png", np.full(SIZE, 1000, np.uint16))
    return split(tmp_path)


def split(root: Path, **changes: list[int]) -> Path:
    (root / "meta.json").write_text(json.dumps({"splits": {**SPLITS, **changes}}))
    return root


def recipe(root: Path, **data: Any) -> LoadedRecipe:
    return on(root, data, {"depth": {"kind": "depth", "target": {"folder": "depth"}}}, SIZE)


# What splits may share


@pytest.mark.parametrize("role", ["train", "realign", "select"])
def test_nothing_learns_or_chooses_from_the_split_that_test_names(role: str) -> None:
    with pytest.raises(ValueError, match=rf"{role}: is 'test', which `test` names too"):
        DataPart.model_validate({"root": "x", role: "test"})
    with pytest.raises(ValueError, match=rf"{role}: is 'other', which `test` names too"):
        DataPart.model_validate({"root": "x", role: "other", "test": "other"})


@pytest.mark.parametrize("role", ["train", "realign", "select"])
def test_images_of_test_in_another_split_are_named(root: Path, role: str) -> None:
    split(root, **{role: [*SPLITS[role], 6]})
    with pytest.raises(
        DataError,
        match=rf"1 image of the split '{role}' \(data\.{role}\) also in 'test'.*\n  0006$",
    ):
        open_dataset(recipe(root))


def test_at_most_five_of_them_are_named(root: Path) -> None:
    split(root, train=list(range(7)), test=list(range(7)))
    with pytest.raises(DataError, match=r"7 images .*(\n  000[0-4]){5}\n  and 2 more$"):
        open_dataset(recipe(root))


def test_a_data_set_without_a_test_split_can_be_learnt_from(root: Path) -> None:
    splits = {name: names for name, names in SPLITS.items() if name != "test"}
    (root / "meta.json").write_text(json.dumps({"splits": splits}))
    assert greys(read(recipe(root))) == [0, 10, 20]


@pytest.mark.parametrize(
    ("data", "changes", "told"),
    [
        ({}, {}, []),
        (
            {"realign": "train"},
            {},
            ["data: 3 of the 3 images of data.realign ('train') also in data.train ('train')"],
        ),
        (
            {},
            {"select": [4, 5]},
            ["data: 1 of the 2 images of data.select ('select') also in data.realign ('realign')"],
        ),
        (
            {},
            {"select": [2]},
            ["data: 1 of the 1 image of data.select ('select') also in data.train ('train')"],
        ),
        (
            {"unlabelled": "select"},
            {},
            ["data: 1 of the 1 image of data.select ('select') also in data.unlabelled ('select')"],
        ),
        ({"unlabelled": "train"}, {}, []),
    ],
)
def test_what_the_other_splits_share_is_said(
    root: Path, data: dict[str, str], changes: dict[str, list[int]], told: list[str]
) -> None:
    split(root, **changes)
    said = Said()
    say_overlaps(recipe(root, **data), said)
    assert said.lines == told


# What is missing


def test_an_image_that_is_listed_twice_is_named(root: Path) -> None:
    split(root, train=[0, 1, 1, 2])
    with pytest.raises(DataError, match=r"the split 'train' lists 1 image more than once\n  0001$"):
        read(recipe(root))


def test_listed_images_without_a_file_are_named_and_counted(root: Path) -> None:
    for number in (0, 2):
        (root / "rgb" / f"{number:04d}.png").unlink()
    with pytest.raises(
        DataError,
        match=r"2 of the 3 images of the split 'train' have no file\n.*0000\.jpg: there is no such "
        r"file\n.*0002\.jpg",
    ):
        read(recipe(root))


def test_missing_truths_are_named_and_counted(root: Path) -> None:
    split(root, train=list(range(6)), realign=[], select=[])
    for number in range(6):
        (root / "depth" / f"{number:04d}.png").unlink()
    with pytest.raises(
        DataError,
        match=r"6 of the 6 images of the split 'train' have no truth of depth"
        r"(\n  .*\.png: there is no such file){5}\n  and 1 more$",
    ):
        read(recipe(root))


# What cannot be read


def damage(root: Path, *numbers: int) -> None:
    for number in numbers:
        (root / "rgb" / f"{number:04d}.png").write_text("text")


def test_an_image_that_cannot_be_read_is_named_with_the_key_that_leaves_it_out(root: Path) -> None:
    damage(root, 1)
    with pytest.raises(ImageError, match=r"0001\.png: not a JPEG.*`skip_unreadable: true` in"):
        read(recipe(root))


def test_images_that_cannot_be_read_are_left_out_on_request_with_their_truths(root: Path) -> None:
    damage(root, 1)
    for number in range(3):
        save(root / "depth" / f"{number:04d}.png", np.full(SIZE, 1000 * (number + 1), np.uint16))
    said = Said()
    skipping = recipe(root, skip_unreadable=True)
    samples = load_split(skipping, "train", tasks=["depth"], progress=said)
    assert greys(samples) == [0, 20]
    assert samples.truths["depth"][:, 0, 0].tolist() == [1.0, 3.0]
    assert len(said.lines) == 1
    assert "the split 'train': 1 of 3 images left out, unreadable\n  0001: " in said.lines[0]


def test_an_image_without_a_file_is_left_out_on_request(root: Path) -> None:
    (root / "rgb" / "0000.png").unlink()
    assert greys(read(recipe(root, skip_unreadable=True))) == [10, 20]


def test_leaving_images_out_is_part_of_what_results_depend_on(root: Path) -> None:
    plain, skipping = recipe(root), recipe(root, skip_unreadable=True)
    assert fingerprint(plain, ["depth"]) != fingerprint(skipping, ["depth"])
    assert fingerprint(plain, ["depth"]) == open_dataset(plain).fingerprint({"depth"})


def test_a_split_of_which_nothing_can_be_read_is_refused(root: Path) -> None:
    damage(root, 0, 1, 2)
    with pytest.raises(DataError, match=r"the split 'train': no image of it can be read"):
        read(recipe(root, skip_unreadable=True))


def test_a_truth_that_cannot_be_read_is_never_left_out(root: Path) -> None:
    (root / "depth" / "0001.png").write_text("text")
    with pytest.raises(DataError, match=r"depth.0001\.png: missing, or not a PNG"):
        read(recipe(root, skip_unreadable=True))


# What holds no truth


def blank(root: Path, *numbers: int) -> None:
    for number in numbers:
        save(root / "depth" / f"{number:04d}.png", np.zeros(SIZE, np.uint16))


def test_images_without_any_truth_are_counted_and_said(root: Path) -> None:
    blank(root, 0, 2)
    said = Said()
    samples = load_split(recipe(root), "train", tasks=["depth"], progress=said)
    assert len(samples) == 3
    assert [line.partition("'train': ")[2] for line in said.lines] == [
        "2 of 3 images have no truth of depth: 0000, 0002"
    ]


@pytest.mark.parametrize(
    ("kind", "folder", "stored"),
    [
        ("depth", "depth", np.zeros(SIZE, np.uint16)),
        ("log_depth", "depth", np.zeros(SIZE, np.uint16)),
        ("normals", "n", np.zeros((*SIZE, 3), np.uint8)),
        ("segmentation", "label", np.full(SIZE, 255, np.uint8)),
    ],
)
def test_a_split_without_any_truth_is_refused(
    root: Path, kind: str, folder: str, stored: Array
) -> None:
    for number in range(3):
        save(root / folder / f"{number:04d}.png", stored)
    labels = {"labels": ["a", "b"]} if kind == "segmentation" else {}
    task = {"kind": kind, "target": {"folder": folder}, **labels}
    with pytest.raises(
        DataError, match=r"'train': no pixel of its 3 images has a truth of any; look at"
    ):
        read(on(root, {}, {"any": task}, SIZE))
