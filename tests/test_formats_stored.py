"""From stored numbers to truths: each kind against values worked by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simo_build.formats import FORMATS
from simo_build.formats.splits import parted, shuffled
from simo_build.formats.stored import DECODERS, Coding, decode, read_stored
from simo_build.recipe import TaskPart
from simo_build.sources import UNTARGETED, Target
from simo_runtime.errors import DataError
from simo_runtime.metrics import IGNORE
from simo_runtime.tasks import KINDS
from tests.datasets import Array, grey, save

WHERE = Path("map.png")
ANY = Target(folder="maps")
SEG = TaskPart(kind="segmentation", labels=("a", "b", "c"), target=ANY)


def task(kind: str) -> TaskPart:
    return TaskPart(kind=kind, target=ANY)


def found(kind: str, raw: Array, **coding: Any) -> Array:
    return decode(raw, WHERE, task(kind), Coding(**coding))


def test_every_kind_of_task_can_be_decoded() -> None:
    assert set(DECODERS) | UNTARGETED == set(KINDS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_kinds_that_exist(name: str) -> None:
    assert FORMATS[name].kinds
    assert FORMATS[name].kinds <= set(KINDS)
    assert FORMATS[name].keys <= set(Target.model_fields)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float32])
def test_negative_classes_have_none(dtype: type[np.generic]) -> None:
    raw = np.array([[-1, 0, 2]]).astype(dtype)
    assert decode(raw, WHERE, SEG, Coding()).tolist() == [[IGNORE, 0, 2]]


def test_classes_may_have_one_channel() -> None:
    assert decode(np.array([[[0], [1]]]), WHERE, SEG, Coding()).tolist() == [[0, 1]]


def test_invalid_classes_and_what_is_no_number_have_none() -> None:
    raw = np.array([[0.0, 1.0, math.nan, 255.0]])
    assert decode(raw, WHERE, SEG, Coding(invalid=0)).tolist() == [[IGNORE, 1, IGNORE, IGNORE]]


def test_classes_past_the_end_of_a_table_have_none() -> None:
    table = np.array([2, IGNORE, 0], np.uint8)
    raw = np.array([[0, 1, 2, 3, 60000]], np.uint16)
    expected = [[2, IGNORE, 0, IGNORE, IGNORE]]
    assert decode(raw, WHERE, SEG, Coding(table=table)).tolist() == expected


@pytest.mark.parametrize("kind", ["depth", "disparity"])
def test_values_are_scaled_and_0_where_there_is_none(kind: str) -> None:
    raw = np.array([[0, 1, 500, 65535]], np.uint16)
    truth = found(kind, raw, scale=0.01, invalid=65535)
    assert truth.dtype == np.float32
    assert truth[0].tolist() == pytest.approx([0.0, 0.01, 5.0, 0.0])


def test_floats_that_are_no_numbers_or_negative_are_no_depth() -> None:
    raw = np.array([[math.nan, math.inf, -1.0, 2.5]])
    assert found("depth", raw)[0].tolist() == [0.0, 0.0, 0.0, 2.5]


def test_log_depth_is_of_the_metres_and_nan_where_there_are_none() -> None:
    truth = found("log_depth", np.array([[0, 1024]], np.uint16), scale=1 / 512)
    assert truth.dtype == np.float32
    assert math.isnan(truth[0, 0])
    assert truth[0, 1] == pytest.approx(math.log(1 + 1024) / math.log(65536))


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_stored_normals_are_centred_on_half_of_the_highest(
    dtype: type[np.unsignedinteger[Any]], top: int
) -> None:
    # 1, 1, -1 has the length of sqrt(3); black is invalid, and so is the grey that 0 would be
    greys = [[top // 2] * 3, [top // 2 + 1] * 3]
    truth = found("normals", np.array([[[top, top, 0], [0, 0, 0], *greys]], dtype))
    assert truth.dtype == np.float32
    assert truth[0, 0].tolist() == pytest.approx([3**-0.5, 3**-0.5, -(3**-0.5)])
    assert not truth[0, 1:].any()


def test_classes_in_a_palette_are_its_indices(tmp_path: Path) -> None:
    path, indices = tmp_path / "0.png", np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([128, 0, 0, 0, 128, 0] + [7] * 762)
    image.save(path)
    raw = read_stored(path)
    assert raw.shape == (2, 3, 3)
    assert decode(raw, path, SEG, Coding()).tolist() == indices.tolist()
    save(path, grey(1))
    with pytest.raises(DataError, match="the class of every pixel, not its colour"):
        decode(read_stored(path), path, SEG, Coding())


def test_floats_are_normals_as_they_are_made_unit_and_turned_by_their_signs() -> None:
    raw = np.array([[[0.0, 3.0, 4.0], [0, 0, 0], [math.nan, 1, 0]]])
    truth = found("normals", raw, signs=(1.0, -1.0, -1.0))
    assert truth[0, 0].tolist() == pytest.approx([0.0, -0.6, -0.8])
    assert not truth[0, 1:].any()


def test_strength_reaches_from_one_end_of_its_span_to_the_other() -> None:
    raw = np.array([[0, 1000, 2000, 4000]], np.uint16)
    assert found("edges", raw, span=(0.0, 2000.0))[0].tolist() == [-1.0, 0.0, 1.0, 1.0]
    assert found("edges", raw, span=(1000.0, 3000.0))[0].tolist() == [-1.0, -1.0, 0.0, 1.0]


def test_strength_without_a_span_is_of_the_whole_type_or_as_it_is() -> None:
    assert found("keypoints", np.array([[0, 51, 255]], np.uint8))[0].tolist() == pytest.approx(
        [-1.0, -0.6, 1.0]
    )
    values = found("keypoints", np.array([[0.25, math.nan]]))
    assert values[0, 0] == 0.25
    assert math.isnan(values[0, 1])


def test_invalid_strength_is_nan() -> None:
    truth = found("edges", np.array([[0, 7]], np.uint8), invalid=7)
    assert truth[0, 0] == -1.0
    assert math.isnan(truth[0, 1])


@pytest.mark.parametrize(
    ("part", "raw", "told"),
    [
        (SEG, np.array([[3]]), r"class 3, but the recipe has 3 labels, 0 to 2 \(255 is for"),
        (SEG, np.array([[3, 9, 40]]), r"class 40 and 2 more, but the recipe has 3 labels"),
        (SEG, np.array([[300]]), "class 300; stored classes are 0 to 255"),
        (SEG, np.array([[0.5]]), "float64 with fractions; classes are whole numbers"),
        (
            SEG,
            np.zeros((2, 2, 3), np.uint8),
            r"uint8 \(2, 2, 3\); segmentation needs numbers .*, the class of every pixel, not its",
        ),
        (task("depth"), np.zeros((2, 2, 3)), r"\(2, 2, 3\); depth needs numbers \(height, width\)"),
        (task("depth"), np.zeros((2, 2), bool), "bool .*; depth needs numbers"),
        (task("normals"), np.zeros((2, 2)), r"\(2, 2\); normals need \(height, width, 3\)"),
        (task("normals"), np.zeros((2, 2, 4), np.uint8), r"normals need \(height, width, 3\)"),
        (task("normals"), np.zeros((2, 2, 3), np.int16), "int16 .*; normals need"),
        (task("edges"), np.zeros((2, 2, 3)), "edges needs numbers"),
    ],
)
def test_what_cannot_be_is_told_with_its_file(part: TaskPart, raw: Array, told: str) -> None:
    with pytest.raises(DataError, match=rf"map\.png: .*{told}"):
        decode(raw, WHERE, part, Coding())


def test_a_type_that_the_format_does_not_store_is_told() -> None:
    raw, coding = np.full((2, 2), 9, np.uint8), Coding(types=("uint16",))
    with pytest.raises(DataError, match=r"map\.png: uint8 \(2, 2\); depth is stored as uint16"):
        decode(raw, WHERE, task("depth"), coding)
    assert (decode(raw.astype(np.uint16), WHERE, task("depth"), coding) == 9).all()


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tif"])
def test_what_was_written_is_read(suffix: str, tmp_path: Path) -> None:
    raw = np.array([[1, 60000], [3, 4]], np.uint16)
    save(tmp_path / f"map{suffix}", raw)
    np.testing.assert_array_equal(read_stored(tmp_path / f"map{suffix}"), raw)


def test_colours_are_read_as_rgb(tmp_path: Path) -> None:
    raw = np.array([[[1, 2, 3]]], np.uint8)
    save(tmp_path / "map.png", raw)
    np.testing.assert_array_equal(read_stored(tmp_path / "map.png"), raw)


@pytest.mark.parametrize("name", ["map.npy", "map.png"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is no such file"):
        read_stored(tmp_path / name)
    (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=rf"{name}: not a"):
        read_stored(tmp_path / name)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"map\.npy: not a whole \.npy file of numbers"):
        read_stored(tmp_path / "map.npy")


# Splits


def test_names_are_shuffled_as_torch_splits_them() -> None:
    import torch
    from torch.utils.data import random_split

    names = [f"{n:03d}" for n in range(654)]
    held, test = random_split(
        range(654),  # type: ignore[arg-type]  # anything with a length and items
        [400, 254],
        generator=torch.Generator().manual_seed(42),
    )
    mixed = shuffled(names, 42)
    assert mixed[:400] == [names[index] for index in held.indices]
    assert mixed[400:] == [names[index] for index in test.indices]
    parts = parted(names, (400 / 654, 254 / 654), 42)
    assert parts == [sorted(mixed[:400]), sorted(mixed[400:])]


@pytest.mark.parametrize(("count", "sizes"), [(2975, [2380, 595]), (10, [8, 2]), (1, [1, 0])])
def test_shares_are_rounded(count: int, sizes: list[int]) -> None:
    names = [f"{n:04d}" for n in range(count)]
    parts = parted(names, (0.8, 0.2), 42)
    assert [len(part) for part in parts] == sizes
    assert sorted(parts[0] + parts[1]) == names


def test_what_no_share_takes_is_left_out() -> None:
    parts = parted([str(n) for n in range(10)], (0.3, 0.2), 0)
    assert [len(part) for part in parts] == [3, 2]
    assert not set(parts[0]) & set(parts[1])
