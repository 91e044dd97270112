"""Cityscapes and MTAN's files: tiny files in each layout, read as recipes read them."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_build.data import fingerprint, open_dataset
from simo_build.formats.cityscapes import parts_of
from simo_build.loading import LoadedRecipe
from simo_runtime.errors import DataError, RecipeError, SimoError, UnknownNameError
from simo_runtime.metrics import IGNORE
from tests.datasets import Array, grey, greys, on, read, save

SIZE = (2, 3)
Make = Callable[[Path], LoadedRecipe]


# MTAN's files of NYUv2


def nyuv2(root: Path, **changes: Any) -> LoadedRecipe:
    tasks = {
        "seg": {"kind": "segmentation", "labels": ["a", "b"], "target": {"folder": "label"}},
        "depth": {"kind": "depth", "target": {"folder": "depth"}},
        "log": {"kind": "log_depth", "target": {"folder": "depth"}},
        "normals": {"kind": "normals", "target": {"folder": "normal", "signs": [1, -1, 1]}},
    }
    return on(root, {"format": "nyuv2_npy"}, {**tasks, **changes}, SIZE)


def write_npy(root: Path, half: str, number: int, **arrays: Array) -> None:
    image = np.full((*SIZE, 3), number / 255.0, np.float32)
    for folder, array in {"image": image, **arrays}.items():
        save(root / half / folder / f"{number}.npy", array)


def nyuv2_files(root: Path, half: str, number: int) -> None:
    write_npy(
        root,
        half,
        number,
        label=np.array([[-1, 0, 1], [1, 1, 1]], np.float32),
        depth=np.array([[0, 0.5, 1], [2, 2, 2]], np.float64)[..., None],
        normal=np.tile(np.array((0.6, 0.8, 0), np.float32), (*SIZE, 1)),
    )


@pytest.fixture
def mtan(tmp_path: Path) -> Path:
    for number in range(3):
        nyuv2_files(tmp_path, "train", number)
    for number in range(10, 21):  # as text, 9 would come after 10
        nyuv2_files(tmp_path, "val", number)
    nyuv2_files(tmp_path, "val", 9)
    return tmp_path


def test_mtans_nyuv2_is_read_by_kind(mtan: Path) -> None:
    samples = read(nyuv2(mtan))
    assert greys(samples) == [0, 1, 2]
    assert samples.truths["seg"][0].tolist() == [[IGNORE, 0, 1], [1, 1, 1]]
    assert samples.truths["depth"][0].tolist() == [[0.0, 0.5, 1.0], [2.0, 2.0, 2.0]]
    log = samples.truths["log"][0]
    assert math.isnan(log[0, 0])
    assert log[1, 0] == pytest.approx(math.log(1025) / math.log(65536))
    assert samples.truths["normals"][0, 0, 0].tolist() == pytest.approx([0.6, -0.8, 0], abs=1e-3)


def test_mtans_nyuv2_is_parted_as_the_paper_does(tmp_path: Path) -> None:
    import torch

    for half, count in (("train", 2), ("val", 654)):
        (tmp_path / half / "image").mkdir(parents=True)
        for number in range(count):
            (tmp_path / half / "image" / f"{number}.npy").touch()
    data = open_dataset(nyuv2(tmp_path))
    order = torch.randperm(654, generator=torch.Generator().manual_seed(42)).tolist()
    assert data.ids("train") == ["train/0", "train/1"]
    assert data.ids("val") == [f"val/{number}" for number in sorted(order[:400])]
    assert data.ids("test") == [f"val/{number}" for number in sorted(order[400:])]
    realign, select = data.ids("realign"), data.ids("select")
    assert (len(realign), len(select)) == (320, 80)
    assert sorted([*realign, *select]) == sorted(data.ids("val"))


def test_mtans_splits_are_in_the_order_of_their_numbers(mtan: Path) -> None:
    data = open_dataset(nyuv2(mtan))
    # 12 files: 12 * 400 / 654 = 7.3
    assert [len(data.ids(split)) for split in ("val", "test", "realign", "select")] == [7, 5, 6, 1]
    numbers = [int(name.split("/")[1]) for name in data.ids("val")]
    assert numbers == sorted(numbers)


# MTAN's files of Cityscapes


def cityscapes_npy(root: Path, **changes: Any) -> LoadedRecipe:
    tasks = {
        "seg": {"kind": "segmentation", "labels": ["a", "b"], "target": {"folder": "label_19"}},
        "parts": {"kind": "parts", "labels": ["rest", "torso"], "target": {"folder": "part_seg"}},
        "disparity": {"kind": "disparity", "target": {"folder": "depth"}},
    }
    return on(root, {"format": "cityscapes_npy"}, {**tasks, **changes}, SIZE)


@pytest.fixture
def mtan_streets(tmp_path: Path) -> Path:
    for half, count in (("train", 20), ("val", 2)):
        for number in range(count):
            write_npy(
                tmp_path,
                half,
                number,
                label_19=np.array([[-1, 0, 1], [1, 1, 1]]),
                part_seg=np.array([[0, 0, 1], [1, 1, 1]]),
                depth=np.array([[[0], [0.25], [0.5]], [[1], [1], [1]]], np.float32),
            )
    return tmp_path


def test_mtans_cityscapes_is_read_by_kind(mtan_streets: Path) -> None:
    samples = read(cityscapes_npy(mtan_streets), "test")
    assert greys(samples) == [0, 1]
    assert samples.truths["seg"][0].tolist() == [[IGNORE, 0, 1], [1, 1, 1]]
    assert samples.truths["parts"][0].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert samples.truths["disparity"][0].tolist() == [[0.0, 0.25, 0.5], [1.0, 1.0, 1.0]]


def test_cityscapes_keeps_a_fifth_of_train_to_validate(mtan_streets: Path) -> None:
    data = open_dataset(cityscapes_npy(mtan_streets))
    train, held = data.ids("train"), data.ids("val")
    assert (len(train), len(held)) == (16, 4)
    assert {*train, *held} == {f"train/{number}" for number in range(20)}
    assert (len(data.ids("realign")), len(data.ids("select"))) == (3, 1)
    assert {*data.ids("realign"), *data.ids("select")} == set(held)
    assert data.ids("test") == ["val/0", "val/1"]


# Cityscapes as it is published


def streets(root: Path, **changes: Any) -> LoadedRecipe:
    tasks = {
        "seg": {
            "kind": "segmentation",
            "labels": [f"class {n}" for n in range(19)],
            "target": {"folder": "gtFine"},
        },
        "seven": {
            "kind": "segmentation",
            "labels": ["flat", "construction", "object", "nature", "sky", "human", "vehicle"],
            "target": {"folder": "gtFine", "map": "to7"},
        },
        "parts": {
            "kind": "parts",
            "labels": [f"part {n}" for n in range(10)],
            "target": {"folder": "gtFinePanopticParts"},
        },
        "disparity": {"kind": "disparity", "target": {"folder": "disparity"}},
    }
    return on(root, {"format": "cityscapes"}, {**tasks, **changes}, SIZE)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    frames = [("train", "aachen", n) for n in range(5)] + [("train", "zurich", n) for n in (5, 6)]
    for half, city, number in [*frames, ("val", "lindau", 7)]:
        stem = f"{half}/{city}/{city}_{number:06d}_000019"
        save(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", grey(number))
        ids = np.array([[0, 7, 33], [8, 26, 4]], np.uint8)
        save(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)
        uids = np.array([[7, 24003, 2400104], [2600005, 2800301, 2400109]], np.int32)
        save(tmp_path / "gtFinePanopticParts" / f"{stem}_gtFinePanopticParts.tif", uids)
        disparity = np.array([[0, 1, 65535], [32257, 0, 0]], np.uint16)
        save(tmp_path / "disparity" / f"{stem}_disparity.png", disparity)
    return tmp_path


def test_cityscapes_is_read_by_kind(published: Path) -> None:
    samples = read(streets(published), "test")
    assert greys(samples) == [7]
    # road is 7, bicycle 33, sidewalk 8, car 26; 0 and 4 do not count
    assert samples.truths["seg"][0].tolist() == [[IGNORE, 0, 18], [1, 13, IGNORE]]
    assert samples.truths["seven"][0].tolist() == [[IGNORE, 0, 6], [0, 6, IGNORE]]
    # legs of a person; chassis of a car, windows of a bus; a person has no ninth part
    assert samples.truths["parts"][0].tolist() == [[0, 0, 4], [9, 5, 0]]
    # MTAN's file has 0.4922 where the PNG has 32257
    expected = [[0.0, 1 / 65535, 1.0], [0.4922, 0.0, 0.0]]
    np.testing.assert_allclose(samples.truths["disparity"][0], expected, atol=5e-5)


def test_cityscapes_has_the_splits_of_mtans_files(published: Path) -> None:
    data = open_dataset(streets(published))
    train, held = data.ids("train"), data.ids("val")
    assert (len(train), len(held)) == (6, 1)  # 0.8 * 7 = 5.6
    assert train[0].startswith("train/aachen/aachen_00000")
    assert data.ids("test") == ["val/lindau/lindau_000007_000019"]


@pytest.mark.parametrize(
    ("sid", "parts", "before"), [(24, 4, 0), (25, 4, 0), (26, 5, 4), (27, 5, 4), (28, 5, 4)]
)
def test_every_part_has_its_class(sid: int, parts: int, before: int) -> None:
    uids = np.array([[sid * 100_000 + 12 * 100 + part for part in range(parts + 2)]])
    expected = [[0, *range(before + 1, before + parts + 1), 0]]
    assert parts_of(uids, Path("p.tif")).tolist() == expected


@pytest.mark.parametrize("uid", [0, 26, 26001, 3300101, 3200001])
def test_what_has_no_parts_is_background(uid: int) -> None:
    assert parts_of(np.array([[uid]]), Path("p.tif")).tolist() == [[0]]


def test_uids_of_another_type_are_refused() -> None:
    with pytest.raises(DataError, match=r"p\.tif: float64 .*uids are whole"):
        parts_of(np.zeros((2, 2)), Path("p.tif"))


# Faults of all of them

SEG = {"kind": "segmentation", "labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("fixture", "make", "task", "told"),
    [
        ("mtan", nyuv2, {"kind": "disparity", "target": {"folder": "depth"}}, "no disparity"),
        (
            "mtan",
            nyuv2,
            {"kind": "depth", "target": {"folder": "depth", "scale": 2}},
            "scale: has no",
        ),
        (
            "mtan_streets",
            cityscapes_npy,
            {"kind": "depth", "target": {"folder": "depth"}},
            "no depth",
        ),
        ("published", streets, {"kind": "normals", "target": {"folder": "n"}}, "has no normals"),
        (
            "published",
            streets,
            {**SEG, "target": {"folder": "gtFine", "map": "to20"}},
            r"'to20' \(there are: to19, to7\)",
        ),
        (
            "published",
            streets,
            {**SEG, "target": {"folder": "gtfine"}},
            "target.folder is gtfine; segmentation is in gtFine",
        ),
    ],
)
def test_a_task_that_the_data_does_not_have_is_refused(
    fixture: str, make: Callable[..., LoadedRecipe], task: Any, told: str, request: Any
) -> None:
    with pytest.raises(SimoError, match=told):
        read(make(request.getfixturevalue(fixture), wrong=task))


@pytest.mark.parametrize(
    ("fixture", "make", "missing", "told"),
    [
        ("mtan", nyuv2, "val/image", r"val.image: there is no such folder"),
        ("published", streets, "leftImg8bit/val", r"leftImg8bit.val: there is no such folder"),
        ("mtan", nyuv2, "train/depth/1.npy", r"train.depth.1\.npy: there is no such file"),
        (
            "published",
            streets,
            "gtFine/val/lindau/lindau_000007_000019_gtFine_labelIds.png",
            "labelIds.png: there is no such file",
        ),
    ],
)
def test_what_is_missing_is_named(
    fixture: str, make: Make, missing: str, told: str, request: Any
) -> None:
    root = request.getfixturevalue(fixture)
    path = root / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(DataError, match=told):
        assert [read(make(root), role) for role in ("train", "test")]


@pytest.mark.parametrize(("fixture", "make"), [("mtan", nyuv2), ("published", streets)])
def test_an_unknown_split_gives_the_closest_one(fixture: str, make: Make, request: Any) -> None:
    with pytest.raises(UnknownNameError, match="'tset'; did you mean 'test'"):
        open_dataset(make(request.getfixturevalue(fixture))).ids("tset")


@pytest.mark.parametrize(
    ("fixture", "make", "task", "file"),
    [
        ("mtan", nyuv2, "depth", "train/depth/0.npy"),
        (
            "published",
            streets,
            "disparity",
            "disparity/val/lindau/lindau_000007_000019_disparity.png",
        ),
    ],
)
def test_the_fingerprint_changes_with_the_files_of_its_tasks(
    fixture: str, make: Make, task: str, file: str, request: Any
) -> None:
    root = request.getfixturevalue(fixture)
    before, other = fingerprint(make(root), [task]), fingerprint(make(root), ["seg"])
    assert fingerprint(make(root), [task]) == before
    (root / file).write_bytes(b"other")
    assert fingerprint(make(root), [task]) != before
    assert fingerprint(make(root), ["seg"]) == other


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 3, 3), np.uint8), r"0\.npy: uint8 .*images are float"),
        (np.full((2, 3, 3), 255.0), r"0\.npy: 255 to 255; images are 0 to 1"),
        (np.zeros((3, 2, 3, 1)), r"0\.npy: float64 \(3, 2, 3, 1\)"),
        (np.zeros((2, 3)), r"0\.npy: float64 \(2, 3\); images are float"),
        (np.zeros((0, 0, 3)), r"0\.npy: float64 \(0, 0, 3\); images .* at least one pixel"),
        (np.zeros((2, 0, 3)), r"0\.npy: float64 \(2, 0, 3\); images .* at least one pixel"),
    ],
)
def test_an_image_that_is_none_is_refused(mtan: Path, array: Array, told: str) -> None:
    np.save(mtan / "train" / "image" / "0.npy", array)
    with pytest.raises(DataError, match=told):
        read(nyuv2(mtan))


@pytest.mark.parametrize(
    ("folder", "shape"), [("label", (0, 0)), ("depth", (0, 0, 1)), ("normal", (0, 0, 3))]
)
def test_a_truth_without_a_pixel_is_refused(
    mtan: Path, folder: str, shape: tuple[int, ...]
) -> None:
    np.save(mtan / "train" / folder / "0.npy", np.zeros(shape))
    with pytest.raises(DataError, match=r"train/0: .* is \(0, 0\), its image is \(2, 3\)"):
        read(nyuv2(mtan))


def test_mtans_depth_in_whole_numbers_is_refused(mtan: Path) -> None:
    np.save(mtan / "train" / "depth" / "0.npy", np.full(SIZE, 1500, np.uint16))
    with pytest.raises(DataError, match=r"depth.0\.npy: uint16 .*depth is stored as float16 or"):
        read(nyuv2(mtan))


def test_an_image_that_is_damaged_can_be_left_out(mtan: Path) -> None:
    (mtan / "train" / "image" / "0.npy").write_bytes(b"damaged")
    tasks = {"depth": {"kind": "depth", "target": {"folder": "depth"}}}
    data = {"format": "nyuv2_npy", "skip_unreadable": True}
    assert greys(read(on(mtan, data, tasks, SIZE))) == [1, 2]


@pytest.mark.parametrize(
    ("folder", "file", "stored", "told"),
    [
        ("gtFine", "gtFine_labelIds.png", np.ones(SIZE, np.uint16), "is stored as uint8"),
        ("disparity", "disparity.png", np.ones(SIZE, np.uint8), "disparity is stored as uint16"),
    ],
)
def test_cityscapes_maps_of_another_type_are_refused(
    published: Path, folder: str, file: str, stored: Array, told: str
) -> None:
    save(published / folder / "val/lindau" / f"lindau_000007_000019_{file}", stored)
    with pytest.raises(DataError, match=told):
        read(streets(published), "test")


def test_a_file_without_a_number_is_named(mtan: Path) -> None:
    np.save(mtan / "train" / "image" / "a.npy", np.zeros((2, 3, 3)))
    with pytest.raises(DataError, match=r"a\.npy: files here are numbered"):
        read(nyuv2(mtan))


def test_a_kind_that_no_file_holds_stops_a_build_before_it_reads(mtan: Path) -> None:
    edges = {"kind": "edges", "target": {"folder": "e"}}
    with pytest.raises(RecipeError, match=r"r\.yaml: tasks\.edges: data of the format nyuv2_npy"):
        open_dataset(nyuv2(mtan, edges=edges))
