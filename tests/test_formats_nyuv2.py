"""NYUv2's own files: HDF5 as MATLAB writes it, and its two small level 5 files byte by byte."""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from simo_build.data import fingerprint, open_dataset
from simo_build.formats.matlab import read_matrix
from simo_build.formats.nyuv2 import TO_13
from simo_build.loading import LoadedRecipe
from simo_runtime.errors import DataError, ImageError, SimoError
from simo_runtime.metrics import IGNORE
from tests.datasets import greys, on, read

H, W = 2, 3
COUNT = 20
NAMES_13 = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)
TYPES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9}
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"


def element(kind: int, data: bytes) -> bytes:
    """Write an element by the format's specification; up to four bytes go into the tag."""
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(
    name: str, values: Any, dtype: str = "u2", *, matlab_class: int = 6, flags: int = 0
) -> bytes:
    array = np.array(values, f"<{dtype}")
    body = element(6, struct.pack("<II", matlab_class | flags, 0))
    body += element(5, struct.pack(f"<{array.ndim}i", *array.shape))
    body += element(1, name.encode()) + element(TYPES[dtype], array.tobytes(order="F"))
    return element(14, body)


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed


# Level 5 files


@pytest.mark.parametrize("pack", [compressed, bytes])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_matrix_is_read_by_its_name(
    dtype: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    values = [[1, 2, 3], [4, 5, 6]]
    data = pack(matrix("other", [[9]])) + pack(matrix("numbers", values, dtype))
    (tmp_path / "a.mat").write_bytes(HEADER + data)
    assert read_matrix(tmp_path / "a.mat", "numbers").tolist() == values


def test_the_start_of_the_published_splits_is_read(tmp_path: Path) -> None:
    # the first bytes of the element trainNdxs of splits.mat, whose shape is cut to 4 x 1
    body = bytes.fromhex(
        "0600000008000000"
        "0600000000000000"
        "0500000008000000"
        "0400000001000000"
        "0100000009000000"
        "747261696e4e6478"
        "7300000000000000"
        "0400000008000000"
        "0300040005000600"
    )
    data = HEADER + compressed(struct.pack("<II", 14, len(body)) + body)
    (tmp_path / "splits.mat").write_bytes(data)
    found = read_matrix(tmp_path / "splits.mat", "trainNdxs")
    assert found.tolist() == [[3], [4], [5], [6]]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a level 5 MATLAB file"),
        (HEADER[:126] + b"MI", "not a level 5 MATLAB file"),
        (HEADER + matrix("numbers", [[1, 2, 3]])[:-9], "damaged: an element of"),
        (HEADER + compressed(matrix("numbers", [[1]]))[:-4] + b"oops", "damaged: "),
        (HEADER + b"\x0e", "damaged: "),
        (
            HEADER + matrix("other", [[1]]),
            r"there is no numeric array numbers \(there are: other\)",
        ),
        (HEADER + matrix("numbers", [[1]], matlab_class=1), "there is no numeric array numbers"),
        (HEADER + matrix("numbers", [[1]], flags=0x0800), "there is no numeric array numbers"),
    ],
)
def test_a_file_that_cannot_be_is_refused(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.mat: {told}"):
        read_matrix(tmp_path / "a.mat", "numbers")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mat: cannot be read: No such file"):
        read_matrix(tmp_path / "a.mat", "numbers")


# The labelled images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images in MATLAB's order: every axis reversed."""
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        images = np.zeros((COUNT, 3, W, H), np.uint8)
        images += np.arange(COUNT, dtype=np.uint8)[:, None, None, None]
        images[:, 1, 2, 1] = 200  # green, third column, second row
        file["images"] = images
        depths = np.full((COUNT, W, H), 1.5, np.float32)
        depths[:, 2, 1] = 0
        file["depths"] = depths
        labels = np.zeros((COUNT, W, H), np.uint16)
        labels[:, :, 0] = 1, 2, 3
        labels[:, :, 1] = 4, 0, 1
        file["labels"] = labels
    numbers = np.arange(1, COUNT + 1)
    splits = matrix("trainNdxs", numbers[:5, None]) + matrix("testNdxs", numbers[5:, None])
    (tmp_path / "splits.mat").write_bytes(HEADER + splits)
    # the stored classes 1 to 4 are bed (4), floor (2), wall (1) and otherfurniture (39)
    classes = matrix("mapClass", [[4, 2, 1, 39]], "u1", matlab_class=9)
    (tmp_path / "classMapping40.mat").write_bytes(HEADER + compressed(classes))
    return tmp_path


def nyu(root: Path, **changes: Any) -> LoadedRecipe:
    tasks = {
        "seg": {
            "kind": "segmentation",
            "labels": NAMES_13,
            "target": {"folder": "labels", "map": "to13"},
        },
        "depth": {"kind": "depth", "target": {"folder": "depths"}},
    }
    return on(root, {"format": "nyuv2_mat"}, {**tasks, **changes}, (H, W))


def test_images_and_truths_are_turned_round(root: Path) -> None:
    samples = read(nyu(root))
    assert greys(samples) == [0, 1, 2, 3, 4]
    assert samples.images[3, 1, 2].tolist() == [3, 200, 3]
    assert samples.truths["depth"][0].tolist() == [[1.5, 1.5, 1.5], [1.5, 1.5, 0.0]]
    names = [[NAMES_13[c] if c != IGNORE else "" for c in row] for row in samples.truths["seg"][0]]
    assert names == [["bed", "floor", "wall"], ["furniture", "", "bed"]]


def test_there_are_40_classes_too(root: Path) -> None:
    labels = [str(number) for number in range(40)]
    target = {"folder": "labels", "map": "to40"}
    samples = read(nyu(root, forty={"kind": "segmentation", "labels": labels, "target": target}))
    assert samples.truths["forty"][0].tolist() == [[3, 1, 0], [38, IGNORE, 3]]


def test_test_images_are_parted_as_the_paper_does(root: Path) -> None:
    data = open_dataset(nyu(root))
    # 15 * 400 / 654 = 9.2
    assert (len(data.ids("val")), len(data.ids("test"))) == (9, 6)
    assert sorted([*data.ids("val"), *data.ids("test")]) == [f"{n:04d}" for n in range(6, 21)]
    assert sorted([*data.ids("realign"), *data.ids("select")]) == list(data.ids("val"))


def test_the_13_classes_are_those_of_the_40_by_name() -> None:
    # the first 24 of the 40 classes, and what SceneNet's list calls them
    of_40 = (
        *("wall", "floor", "furniture", "bed", "chair", "sofa", "table", "wall", "window"),
        *("furniture", "picture", "furniture", "window", "table", "furniture", "window"),
        *("furniture", "objects", "objects", "floor", "objects", "ceiling", "books", "furniture"),
    )
    assert tuple(NAMES_13[number - 1] for number in TO_13[:24]) == of_40
    assert NAMES_13[TO_13[24] - 1] == "tv"
    assert len(TO_13) == 40


def damage_labels(root: Path) -> None:
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        del file["labels"]
        file["labels"] = np.zeros((W, H))


def far_splits(root: Path) -> None:
    data = matrix("trainNdxs", [[1], [21]]) + matrix("testNdxs", [[2]])
    (root / "splits.mat").write_bytes(HEADER + data)


def odd_classes(root: Path) -> None:
    (root / "classMapping40.mat").write_bytes(HEADER + matrix("mapClass", [[0, 41]]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "nyu_depth_v2_labeled.mat").unlink(), "not a whole HDF5 file"),
        (lambda root: (root / "splits.mat").unlink(), r"splits\.mat: cannot be read"),
        (lambda root: (root / "classMapping40.mat").unlink(), r"Mapping40\.mat: cannot be read"),
        (damage_labels, "labels must have 3 axes"),
        (far_splits, r"splits\.mat: trainNdxs: images are numbered 1 to 20"),
        (odd_classes, r"mapClass must be classes, 1 to 40"),
    ],
)
def test_what_is_wrong_is_named(root: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(root)
    with pytest.raises(DataError, match=told):
        read(nyu(root))


def packed(root: Path, name: str) -> Path:
    """Store an array packed, every image for itself, and damage what is stored of image 2."""
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "a") as file:
        values = np.asarray(file[name])
        del file[name]
        chunks = (1, *values.shape[1:])
        file.create_dataset(name, data=values, chunks=chunks, compression="gzip")
    with h5py.File(path, "r") as file:
        chunk = file[name].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "failure"), [("images", ImageError), ("depths", DataError), ("labels", DataError)]
)
def test_what_is_damaged_is_told_with_its_array_and_number(
    root: Path, name: str, failure: type[SimoError]
) -> None:
    path = packed(root, name)
    with pytest.raises(failure, match=f"{path}: {name} of image 0002 cannot be read: Can't"):
        read(nyu(root))


def test_an_image_that_is_damaged_can_be_left_out(root: Path) -> None:
    packed(root, "images")
    tasks = {"depth": {"kind": "depth", "target": {"folder": "depths"}}}
    data = {"format": "nyuv2_mat", "skip_unreadable": True}
    assert greys(read(on(root, data, tasks, (H, W)))) == [0, 2, 3, 4]


def test_an_array_whose_own_description_is_damaged_is_told(root: Path) -> None:
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "r") as file:
        start = h5py.h5o.get_info(file["depths"].id).addr
    content = bytearray(path.read_bytes())
    content[start] ^= 0xFF  # the version of the array's description
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: depths is damaged: .*version"):
        read(nyu(root))


def test_an_array_that_ends_before_the_images_do_is_told(root: Path) -> None:
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        few = np.asarray(file["depths"])[:3]
        del file["depths"]
        file["depths"] = few
    with pytest.raises(DataError, match="depths has 3 entries and none of image 0004"):
        read(nyu(root))


def test_images_without_a_pixel_are_refused(root: Path) -> None:
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        del file["images"]
        file["images"] = np.zeros((COUNT, 3, 0, 0), np.uint8)
    with pytest.raises(DataError, match=r"images uint8 \(3, 0, 0\); an image is .* of them 0"):
        read(nyu(root))


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"kind": "normals", "target": {"folder": "normals"}}, "nyuv2_mat has no normals"),
        ({"kind": "depth", "target": {"folder": "depth"}}, "'depth'; did you mean 'depths'"),
        (
            {"kind": "segmentation", "labels": ["a", "b"], "target": {"folder": "labels"}},
            "894 classes need target.map, to40 or to13",
        ),
        (
            {
                "kind": "segmentation",
                "labels": ["a", "b"],
                "target": {"folder": "labels", "map": "to14"},
            },
            "'to14'; did you mean",
        ),
    ],
)
def test_a_task_that_the_file_does_not_have_is_refused(root: Path, task: Any, told: str) -> None:
    with pytest.raises(SimoError, match=told):
        read(nyu(root, wrong=task))


def test_without_h5py_one_is_told_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r'h5py is needed .* pip install "simo-runtime\[data\]"'):
        read(nyu(root))


@pytest.mark.parametrize("file", ["splits.mat", "classMapping40.mat"])
def test_the_fingerprint_changes_with_the_small_files(root: Path, file: str) -> None:
    before = fingerprint(nyu(root), ["seg"])
    data = bytearray((root / file).read_bytes())
    data[10] ^= 1  # as long as it was
    (root / file).write_bytes(data)
    assert fingerprint(nyu(root), ["seg"]) != before
