"""Taskonomy: tiny files of its layout, read as a recipe reads them."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_build.data import fingerprint, open_dataset
from simo_build.formats.taskonomy import BUILDINGS, IMAGES
from simo_build.loading import LoadedRecipe
from simo_runtime.errors import DataError, SimoError, UnknownNameError
from simo_runtime.metrics import IGNORE
from tests.datasets import Array, grey, greys, on, read, save


def rooms(root: Path, **changes: Any) -> LoadedRecipe:
    tasks = {
        "seg": {
            "kind": "segmentation",
            "labels": [f"class {n}" for n in range(17)],
            "target": {"folder": "segment_semantic"},
        },
        "depth": {"kind": "depth", "target": {"folder": "depth_zbuffer"}},
        "log": {"kind": "log_depth", "target": {"folder": "depth_zbuffer"}},
        "normals": {"kind": "normals", "target": {"folder": "normal"}},
        "edges": {"kind": "edges", "target": {"folder": "edge_texture"}},
        "keypoints": {"kind": "keypoints", "target": {"folder": "keypoints2d"}},
        "same": {"kind": "autoencoding"},
    }
    return on(root, {"format": "taskonomy"}, {**tasks, **changes}, (4, 5))


TYPES = {"segment_semantic": "segmentsemantic", "mask_valid": "depth_zbuffer"}


def domain(root: Path, folder: str, building: str, stem: str, array: Array) -> None:
    save(root / folder / building / f"{stem}_domain_{TYPES.get(folder, folder)}.png", array)


@pytest.fixture
def buildings(tmp_path: Path) -> Path:
    number = 0
    for split, count in (("train", 1), ("val", 5), ("test", 1)):
        for building in BUILDINGS[split]:
            for point in range(count):
                write_point(tmp_path, building, f"point_{point}_view_0", number)
                number += 1
    return tmp_path


def write_point(root: Path, building: str, stem: str, number: int) -> None:
    size = (4, 5)
    domain(root, "rgb", building, stem, grey(number, size))
    classes = np.full(size, 17, np.uint8)
    classes[0, :2] = 0, 1
    domain(root, "segment_semantic", building, stem, classes)
    depth = np.full(size, 1024, np.uint16)
    depth[0, 0] = 65535
    domain(root, "depth_zbuffer", building, stem, depth)
    domain(root, "normal", building, stem, np.full((*size, 3), (127, 127, 255), np.uint8))
    edges = np.full(size, 11041, np.uint16)
    edges[0, :3] = 0, 60000, 5520
    domain(root, "edge_texture", building, stem, edges)
    domain(root, "keypoints2d", building, stem, np.full(size, 3129, np.uint16))


def test_taskonomy_is_read_by_kind(buildings: Path) -> None:
    samples = read(rooms(buildings))
    truths = {task: truth[0] for task, truth in samples.truths.items()}
    assert greys(samples) == list(range(8))
    assert truths["seg"][0].tolist() == [IGNORE, 0, 16, 16, 16]
    # 1024 / 512 = 2 m
    assert truths["depth"][0].tolist() == [0.0, 2.0, 2.0, 2.0, 2.0]
    assert math.isnan(truths["log"][0, 0])
    assert truths["log"][0, 1] == pytest.approx(math.log(1025) / math.log(65536))
    # stored to the camera, read forward
    assert truths["normals"][0, 0].tolist() == pytest.approx([0, 0, -1], abs=5e-3)
    assert truths["edges"][0].tolist() == pytest.approx([-1, 1, 5520 / 5520.5 - 1, 1, 1], abs=1e-6)
    assert (truths["keypoints"] == 1).all()
    assert truths["same"][0, 0].tolist() == [-1, -1, -1]  # the first image is black


def test_a_mask_takes_truths_away_but_not_classes(buildings: Path) -> None:
    for building in BUILDINGS["train"]:
        mask = np.full((4, 5), 255, np.uint8)
        mask[3, 4] = 0
        domain(buildings, "mask_valid", building, "point_0_view_0", mask)
    truths = {task: truth[0] for task, truth in read(rooms(buildings)).truths.items()}
    known = np.ones((4, 5), bool)
    known[2:, 3:] = False  # the pixel and those beside it
    assert (truths["seg"][2:, 3:] == 16).all()
    assert np.array_equal(truths["depth"][1:] > 0, known[1:])
    assert np.array_equal(truths["normals"].any(axis=-1), known)
    for task in ("log", "edges", "keypoints"):
        assert np.array_equal(np.isfinite(truths[task])[1:], known[1:])
    assert np.array_equal(np.isfinite(truths["same"]).all(axis=-1), known)


def test_a_mask_that_is_not_there_is_named_before_anything_is_read(buildings: Path) -> None:
    first, *others = BUILDINGS["train"]
    for building in others:
        domain(buildings, "mask_valid", building, "point_0_view_0", np.ones((4, 5), np.uint8))
    with pytest.raises(DataError, match=rf"1 of the 8 images .*\n.*{first}.*depth_zbuffer\.png"):
        read(rooms(buildings))


def test_taskonomy_has_the_papers_buildings(buildings: Path) -> None:
    data = open_dataset(rooms(buildings))
    assert [name.split("/")[0] for name in data.ids("train")] == [
        "allensville",
        "coffeen",
        "collierville",
        "leonardo",
        "merom",
        "pinesdale",
        "ranchester",
        "stockman",
    ]
    assert {name.split("/")[0] for name in data.ids("val")} == {
        "beechwood",
        "corozal",
        "klickitat",
        "shelbyville",
    }
    assert {name.split("/")[0] for name in data.ids("test")} == {
        "ihlen",
        "mcdade",
        "onaga",
        "tolstoy",
    }
    assert (len(data.ids("realign")), len(data.ids("select"))) == (16, 4)
    assert sorted([*data.ids("realign"), *data.ids("select")]) == sorted(data.ids("val"))


def test_taskonomy_takes_the_first_images_by_name(
    buildings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for point in (10, 2):
        write_point(buildings, "ihlen", f"point_{point}_view_0", 90 + point)
    monkeypatch.setitem(IMAGES, "test", 2)
    names = [name for name in open_dataset(rooms(buildings)).ids("test") if "ihlen" in name]
    assert names == ["ihlen/point_0_view_0", "ihlen/point_10_view_0"]


def test_the_paper_takes_16000_images_to_train_on() -> None:
    assert sum(IMAGES[split] * len(every) for split, every in BUILDINGS.items()) == 24_000
    assert IMAGES["train"] * len(BUILDINGS["train"]) == 16_000


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"kind": "parts", "labels": ["a", "b"], "target": {"folder": "p"}}, "has no parts"),
        (
            {"kind": "edges", "target": {"folder": "edge_occlusion"}},
            "edge_occlusion: give target.range",
        ),
        (
            {"kind": "depth", "target": {"folder": "depth_euclidean"}},
            r"point_0_view_0_domain_depth_euclidean\.png: there is no such file",
        ),
        (
            {"kind": "depth", "target": {"folder": "depth_zbuffer", "scale": 2}},
            r"tasks\.wrong\.target\.scale: has no meaning in the format taskonomy",
        ),
    ],
)
def test_a_task_that_the_data_does_not_have_is_refused(
    buildings: Path, task: Any, told: str
) -> None:
    with pytest.raises(SimoError, match=told):
        read(rooms(buildings, wrong=task))


def test_another_domain_of_edges_is_read_by_its_range(buildings: Path) -> None:
    for building in BUILDINGS["train"]:
        raw = np.full((4, 5), 750, np.uint16)
        domain(buildings, "edge_occlusion", building, "point_0_view_0", raw)
    target = {"folder": "edge_occlusion", "range": [0, 1000]}
    samples = read(rooms(buildings, more={"kind": "edges", "target": target}))
    assert (samples.truths["more"] == 0.5).all()


def test_a_missing_building_is_named(buildings: Path) -> None:
    shutil.rmtree(buildings / "rgb" / "merom")
    with pytest.raises(DataError, match=r"rgb.merom: there is no such folder"):
        read(rooms(buildings))


def test_a_mask_of_another_size_is_refused(buildings: Path) -> None:
    for building in BUILDINGS["train"]:
        domain(buildings, "mask_valid", building, "point_0_view_0", np.ones((4, 6), np.uint8))
    with pytest.raises(
        DataError, match=r"point_0_view_0: its mask is \(4, 6\), its image is \(4, 5\)"
    ):
        read(rooms(buildings))


@pytest.mark.parametrize(
    ("folder", "stored", "told"),
    [
        ("depth_zbuffer", np.ones((4, 5), np.uint8), r"uint8 .*depth is stored as uint16"),
        ("normal", np.ones((4, 5, 3), np.uint16), r"uint16 .*normals is stored as uint8"),
        ("edge_texture", np.ones((4, 5), np.uint8), r"uint8 .*edges is stored as uint16"),
        ("segment_semantic", np.ones((4, 5), np.uint16), r"segmentation is stored as uint8"),
    ],
)
def test_a_domain_of_another_type_is_refused(
    buildings: Path, folder: str, stored: Array, told: str
) -> None:
    domain(buildings, folder, "allensville", "point_0_view_0", stored)
    with pytest.raises(DataError, match=rf"{folder}.allensville.*: .*{told}"):
        read(rooms(buildings))


def test_an_unknown_split_gives_the_closest_one(buildings: Path) -> None:
    with pytest.raises(UnknownNameError, match="'tset'; did you mean 'test'"):
        open_dataset(rooms(buildings)).ids("tset")


def test_the_fingerprint_changes_with_the_files_of_its_tasks(buildings: Path) -> None:
    before, other = (fingerprint(rooms(buildings), [task]) for task in ("normals", "depth"))
    assert fingerprint(rooms(buildings), ["normals"]) == before
    (buildings / "normal/merom/point_0_view_0_domain_normal.png").write_bytes(b"other")
    assert fingerprint(rooms(buildings), ["normals"]) != before
    assert fingerprint(rooms(buildings), ["depth"]) == other
