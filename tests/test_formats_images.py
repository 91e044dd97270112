"""A folder of one's own: splits by shares and by files, every key of `target`, and its faults."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_build.data import fingerprint, open_dataset
from simo_build.loading import LoadedRecipe
from simo_build.recipe import TaskPart
from simo_build.sources import DataPart, Target
from simo_runtime.errors import DataError, SimoError
from simo_runtime.metrics import IGNORE
from tests.datasets import Array, grey, greys, on, read, save

SIZE = (2, 3)
SHARES = {"train": 0.5, "realign": 0.2, "select": 0.2, "test": 0.1}
DEPTH = {"kind": "depth", "target": {"folder": "depth"}}


def mine(root: Path, tasks: dict[str, Any], **data: Any) -> LoadedRecipe:
    given = {"format": "images", "images": "photos", "splits": SHARES, **data}
    return on(root, given, tasks, SIZE)


def first(root: Path, kind: str, raw: Array, ending: str = ".png", **target: Any) -> Array:
    """Write one image and its map, and give the truth that is read."""
    for name in ("a", "b"):
        save(root / "photos" / f"{name}.png", grey(7))
        save(root / "maps" / f"{name}{ending}", raw)
    labels = {"labels": ["x", "y", "z"]} if kind in ("segmentation", "parts") else {}
    task = {"kind": kind, **labels, "target": {"folder": "maps", **target}}
    data = {"splits": {"train": 0.5, "select": 0.5}}
    return np.asarray(read(mine(root, {"task": task}, **data)).truths["task"][0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty photos in two folders, of all suffixes, with depth."""
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".JPG", ".PNG")
    for number in range(20):
        name = f"{'in' if number % 2 else 'out'}/photo {number:02d}"
        suffix = suffixes[number % len(suffixes)]
        save(tmp_path / "photos" / f"{name}{suffix}", grey(number * 10))
        save(tmp_path / "depth" / f"{name}.png", np.full(SIZE, 1000 * number + 1, np.uint16))
    return tmp_path


# Splits


def test_shares_part_all_images_and_maps_go_with_them(root: Path) -> None:
    loaded = mine(root, {"depth": DEPTH})
    found = {role: read(loaded, role) for role in ("train", "realign", "select", "test")}
    assert {role: len(samples) for role, samples in found.items()} == {
        "train": 10,
        "realign": 4,
        "select": 4,
        "test": 2,
    }
    numbers = [round(grey / 10) for samples in found.values() for grey in greys(samples)]
    assert sorted(numbers) == list(range(20))
    depths = np.concatenate([samples.truths["depth"][:, 0, 0] for samples in found.values()])
    assert depths.tolist() == pytest.approx([number + 0.001 for number in numbers])


def test_shares_follow_from_the_seed(root: Path) -> None:
    one, same, other = (
        open_dataset(mine(root, {"depth": DEPTH}, seed=seed)).ids("train") for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other


def test_files_list_names_with_or_without_their_suffix(root: Path) -> None:
    (root / "train.txt").write_text("# by hand\nout/photo 02.png\n\nin/photo 01\n")
    (root / "select.txt").write_text("out/photo 00.jpg\n")
    splits = {"train": "train.txt", "select": "select.txt"}
    data = open_dataset(mine(root, {"depth": DEPTH}, splits=splits))
    assert data.ids("train") == ["out/photo 02", "in/photo 01"]
    assert data.ids("select") == ["out/photo 00"]


def test_a_name_with_a_dot_in_it_is_a_name(root: Path) -> None:
    save(root / "photos" / "a.b.png", grey(1))
    (root / "train.txt").write_text("a.b\n")
    data = open_dataset(mine(root, {"depth": DEPTH}, splits={"train": "train.txt"}))
    assert data.ids("train") == ["a.b"]


# What the keys of target mean


def test_classes_are_as_stored(tmp_path: Path) -> None:
    raw = np.array([[0, 1, 2], [IGNORE, 1, 1]], np.uint8)
    assert first(tmp_path, "segmentation", raw).tolist() == raw.tolist()


def test_classes_are_listed_by_label_and_the_rest_has_none(tmp_path: Path) -> None:
    raw = np.array([[7, 300, 0], [1, 299, 301]], np.uint16)
    truth = first(tmp_path, "segmentation", raw, classes=[300, 7, 0])
    assert truth.tolist() == [[1, 0, 2], [IGNORE, IGNORE, IGNORE]]


def test_a_stored_class_may_be_invalid(tmp_path: Path) -> None:
    raw = np.array([[0, 1, 2], [0, 1, 1]], np.uint8)
    truth = first(tmp_path, "parts", raw, invalid=0)
    assert truth.tolist() == [[IGNORE, 1, 2], [IGNORE, 1, 1]]


@pytest.mark.parametrize(
    ("raw", "suffix", "target", "metres"),
    [
        (np.uint16(1500), ".png", {}, 1.5),
        (np.uint16(1500), ".tif", {"scale": 0.01}, 15.0),
        (np.float32(1.5), ".npy", {}, 1.5),
        (np.float32(1.5), ".tiff", {"scale": 2}, 3.0),
        (np.int32(1500), ".npy", {}, 1.5),
    ],
)
def test_depth_is_stored_times_scale(
    raw: Any, suffix: str, target: dict[str, Any], metres: float, tmp_path: Path
) -> None:
    truth = first(tmp_path, "depth", np.full(SIZE, raw), suffix, **target)
    assert truth[0].tolist() == pytest.approx([metres] * 3)


def test_a_stored_depth_may_be_invalid(tmp_path: Path) -> None:
    raw = np.array([[1500, 65535, 0], [2000, 1, 65535]], np.uint16)
    truth = first(tmp_path, "depth", raw, invalid=65535)
    assert truth.ravel().tolist() == pytest.approx([1.5, 0, 0, 2, 0.001, 0])


@pytest.mark.parametrize("kind", ["depth", "log_depth", "disparity"])
def test_values_in_8_bits_need_their_scale(tmp_path: Path, kind: str) -> None:
    raw = np.full(SIZE, 20, np.uint8)
    with pytest.raises(DataError, match=rf"uint8 \(2, 3\); {kind} in 8 bits has no usual scale"):
        first(tmp_path / "bare", kind, raw)
    assert (first(tmp_path / "scaled", kind, raw, scale=0.05) > 0).all()


def test_log_depth_is_of_the_same_metres(tmp_path: Path) -> None:
    truth = first(tmp_path, "log_depth", np.full(SIZE, 2000, np.uint16))
    assert truth[0, 0] == pytest.approx(math.log(1 + 512 * 2) / math.log(65536))


def test_disparity_is_a_share_of_the_highest_number(tmp_path: Path) -> None:
    truth = first(tmp_path, "disparity", np.full(SIZE, 13107, np.uint16))
    assert truth[0, 0] == pytest.approx(0.2)


def test_normals_are_turned_by_their_signs(tmp_path: Path) -> None:
    raw = np.full((*SIZE, 3), (255, 255, 0), np.uint8)
    truth = first(tmp_path, "normals", raw, signs=[1, -1, -1])
    assert truth[0, 0].tolist() == pytest.approx([3**-0.5, -(3**-0.5), 3**-0.5], abs=1e-3)


def test_strength_has_a_range(tmp_path: Path) -> None:
    raw = np.array([[0, 100, 200], [50, 300, 0]], np.uint16)
    truth = first(tmp_path, "keypoints", raw, range=[0, 200])
    assert truth.tolist() == [[-1.0, 0.0, 1.0], [-0.5, 1.0, -1.0]]


def test_a_map_may_end_otherwise_than_its_image(tmp_path: Path) -> None:
    raw = np.ones(SIZE, np.uint8)
    assert (first(tmp_path, "segmentation", raw, "_mask.png", suffix="_mask.png") == 1).all()


def test_autoencoding_needs_no_map(root: Path) -> None:
    samples = read(mine(root, {"same": {"kind": "autoencoding"}}))
    np.testing.assert_allclose(
        samples.truths["same"], samples.images / 127.5 - 1.0, atol=0.5 / 127.5
    )


# Faults

Break = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "photos").rename(root / "other"), r"photos: there is no such folder"),
        (
            lambda root: [path.unlink() for path in (root / "photos").rglob("*.*")],
            r"photos: there is no image in it \(\.jpg",
        ),
        (
            lambda root: save(root / "photos" / "in" / "photo 01.bmp", grey(0)),
            r"photo 01\.jpeg: photo 01\.bmp has the same name; keep one of them",
        ),
        (
            lambda root: (root / "depth" / "in" / "photo 01.png").unlink(),
            r"depth.in.photo 01: 0 files that end with \.png, \.npy, \.tif, \.tiff; there must",
        ),
        (
            lambda root: save(root / "depth" / "in" / "photo 01.npy", np.zeros(SIZE)),
            r"depth.in.photo 01: 2 files that end with",
        ),
        (
            lambda root: save(root / "depth" / "in" / "photo 01.png", np.ones((3, 3), np.uint16)),
            r"in/photo 01: depth is \(3, 3\), its image is \(2, 3\)",
        ),
    ],
)
def test_what_is_wrong_is_named(root: Path, damage: Break, told: str) -> None:
    damage(root)
    with pytest.raises(SimoError, match=told):
        read(mine(root, {"depth": DEPTH}, splits={"train": 1}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"train\.txt: cannot be read as a list of names"),
        ("in/photo 01\nin/photo 99\n", r"train\.txt: not in .*photos:\n  in/photo 99$"),
        ("in/photo 01\nin/photo 01.jpeg\n", r"train\.txt: names that stand twice:\n  in/photo 01$"),
        ("# nothing\n", r"the split 'train' is empty"),
    ],
)
def test_a_list_that_is_wrong_is_named(root: Path, text: str | None, told: str) -> None:
    if text is not None:
        (root / "train.txt").write_text(text)
    with pytest.raises(DataError, match=told):
        read(mine(root, {"depth": DEPTH}, splits={"train": "train.txt"}))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "splits: must give each split a share, as in"),
        ({"splits": {"train": 0.5, "test": "test.txt"}}, "splits: must give each split a share"),
        ({"splits": {"train": 0.7, "test": 0.4}}, "shares must be over 0 and not more than 1"),
        ({"splits": {"train": 0.0}}, "shares must be over 0"),
        (
            {"format": "folder", "images": "rgb"},
            "images: is a key of the format images, not folder",
        ),
        ({"format": "cityscapes", "splits": {"train": 1}}, "splits: is a key of the format images"),
    ],
)
def test_splits_that_cannot_be_are_refused(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DataPart.model_validate({"format": "images", "root": "mine", **data})


@pytest.mark.parametrize(
    ("kind", "target", "told"),
    [
        ("depth", {"range": [0, 1]}, "target.range has no meaning for kind depth"),
        ("edges", {"scale": 2}, "target.scale has no meaning for kind edges"),
        ("normals", {"invalid": 0}, "target.invalid has no meaning for kind normals"),
        ("depth", {"map": "to13"}, "target.map has no meaning for kind depth"),
        ("segmentation", {"signs": [1, 1, 1]}, "target.signs has no meaning"),
        ("segmentation", {"classes": [1]}, "target.classes must be 2 different numbers"),
        ("segmentation", {"classes": [1, 1]}, "target.classes must be 2 different numbers"),
    ],
)
def test_keys_that_would_have_no_effect_are_refused(
    kind: str, target: dict[str, Any], told: str
) -> None:
    labels = {"labels": ["a", "b"]} if kind == "segmentation" else {}
    with pytest.raises(ValueError, match=told):
        TaskPart.model_validate({"kind": kind, **labels, "target": {"folder": "m", **target}})


@pytest.mark.parametrize(
    "target",
    [
        {"range": [1, 1]},
        {"range": [2, 1]},
        {"scale": 0},
        {"scale": -1},
        {"signs": [1, 1]},
        {"signs": [1, 1, 0.5]},
        {"classes": [-1]},
        {"classes": [65536]},
    ],
)
def test_values_that_cannot_be_are_refused(target: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(target))):
        Target.model_validate({"folder": "m", **target})


def test_the_fingerprint_changes_with_splits_lists_and_files(root: Path) -> None:
    (root / "train.txt").write_text("in/photo 01\n")
    (root / "other.txt").write_text("in/photo 03\n")
    seen = {
        fingerprint(mine(root, {"depth": DEPTH}, **data), ["depth"])
        for data in (
            {},
            {"seed": 1},
            {"splits": {"train": 1.0}},
            {"splits": {"train": "train.txt"}},
            {"splits": {"train": "other.txt"}},
        )
    }
    assert len(seen) == 5
    (root / "train.txt").write_text("in/photo 05\n")  # as long as it was
    again = mine(root, {"depth": DEPTH}, splits={"train": "train.txt"})
    assert fingerprint(again, ["depth"]) not in seen


def test_the_fingerprint_is_of_the_images_and_the_maps_of_the_tasks_alone(root: Path) -> None:
    loaded = mine(root, {"depth": DEPTH, "same": {"kind": "autoencoding"}})
    before = {task: fingerprint(loaded, [task]) for task in ("depth", "same")}
    save(root / "experts" / "of another task.png", grey(0))
    save(root / "depth" / "in" / "photo 01.png", np.zeros((40, 40), np.uint16))
    assert fingerprint(loaded, ["depth"]) != before["depth"]
    assert fingerprint(loaded, ["same"]) == before["same"]
    save(root / "photos" / "more.png", grey(0))
    assert fingerprint(loaded, ["same"]) != before["same"]


def test_keys_that_are_not_given_are_not_in_what_an_experts_name_is_made_of() -> None:
    old = {"folder": "label40", "map": "to13"}
    assert Target.model_validate(old).model_dump(mode="json") == old
    assert Target(folder="depth").model_dump(mode="json") == {"folder": "depth", "map": None}
    assert Target(folder="depth", scale=2).model_dump(mode="json") == {
        "folder": "depth",
        "map": None,
        "scale": 2.0,
    }
