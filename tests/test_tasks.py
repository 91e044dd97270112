"""Kinds of task: what the registry promises of each, and names that are not in it."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simo_runtime.errors import SimoError, UnknownNameError, listing, unknown
from simo_runtime.metrics import METRICS
from simo_runtime.scales import log_depth, metres
from simo_runtime.tasks import (
    KINDS,
    Kind,
    kind_named,
    register_kind,
    resize_labels,
    resize_normals,
    resize_values,
    summarise_depth,
    summarise_disparity,
    summarise_labels,
    summarise_log_depth,
    summarise_normals,
    summarise_picture,
    summarise_strength,
)

LABELS = ("wall", "floor", "chair")
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
bounded = settings(max_examples=60, deadline=None, derandomize=True)


def values_of(kind: Kind, size: tuple[int, int]) -> NDArray[Any]:
    """Make a prediction of a kind, of the type that the module's docstring states."""
    random = np.random.default_rng(size[0] + 100 * size[1])
    if kind.channels is None:
        return random.choice([0, 2], size).astype(np.uint8)
    if kind.name == "depth":
        return random.uniform(0.5, 9, size).astype(np.float32)
    if kind.name in ("disparity", "log_depth"):
        return random.uniform(0.01, 1, size).astype(np.float32)
    if kind.name == "normals":
        vectors = random.normal(size=(*size, 3))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    shape = size if kind.channels == 1 else (*size, 3)
    return random.uniform(-1, 1, shape).astype(np.float32)


def test_the_registry_has_these_kinds() -> None:
    assert sorted(KINDS) == [
        "autoencoding",
        "depth",
        "disparity",
        "edges",
        "keypoints",
        "log_depth",
        "normals",
        "parts",
        "segmentation",
    ]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestEveryKind:
    def test_is_found_by_its_own_name(self, kind: Kind) -> None:
        assert kind_named(kind.name) is kind

    def test_has_metrics_that_exist(self, kind: Kind) -> None:
        assert kind.metrics
        assert set(kind.metrics) <= set(METRICS)

    def test_is_not_registered_twice(self, kind: Kind) -> None:
        with pytest.raises(ValueError, match=f"'{kind.name}' is there already"):
            register_kind(kind)

    @bounded
    @given(source=SIZES, target=SIZES)
    def test_is_resized_to_the_size_asked_for_in_its_own_type(
        self, kind: Kind, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        values = values_of(kind, source)
        resized = kind.resize(values, target)
        assert (resized.dtype, resized.shape) == (values.dtype, (*target, *values.shape[2:]))

    def test_is_the_same_after_resizing_to_its_own_size(self, kind: Kind) -> None:
        values = values_of(kind, (9, 14))
        np.testing.assert_allclose(kind.resize(values, (9, 14)), values, atol=1e-6)

    def test_is_resized_without_writing_to_its_values(self, kind: Kind) -> None:
        values = values_of(kind, (9, 14))
        before = values.copy()
        kind.resize(values, (5, 20))
        np.testing.assert_array_equal(values, before)

    def test_is_written_as_pixels_of_8_or_16_bits(self, kind: Kind) -> None:
        values = values_of(kind, (9, 14))
        pixels = kind.encode(values)
        assert pixels.dtype in (np.uint8, np.uint16)
        assert pixels.shape == values.shape

    def test_is_written_without_writing_to_its_values(self, kind: Kind) -> None:
        values = values_of(kind, (9, 14))
        before = values.copy()
        kind.encode(values)
        np.testing.assert_array_equal(values, before)

    def test_a_pixel_without_truth_is_counted_by_none_of_its_metrics(self, kind: Kind) -> None:
        dtype = np.uint8 if kind.channels is None else np.float32
        shape = (1, 4, 5) if kind.channels != 3 else (1, 4, 5, 3)
        for metric in kind.metrics:
            accumulator = METRICS[metric].start(3)
            accumulator.update(values_of(kind, (4, 5))[None], np.full(shape, kind.empty, dtype))
            assert np.isnan(accumulator.result())

    def test_has_a_summary_of_one_line(self, kind: Kind) -> None:
        summary = kind.summary(values_of(kind, (9, 14)), LABELS)
        assert summary == summary.strip() != ""
        assert "\n" not in summary


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "hint"),
        [("segmantation", "segmentation"), ("dept", "depth"), ("normal", "normals")],
    )
    def test_are_refused_with_the_closest_kind(self, name: str, hint: str) -> None:
        with pytest.raises(UnknownNameError) as caught:
            kind_named(name)
        assert str(caught.value) == (
            f"unknown kind of task '{name}'; did you mean '{hint}'? "
            "(there are: autoencoding, depth, disparity, edges, keypoints, log_depth, normals, "
            "parts, segmentation)"
        )

    def test_are_refused_without_a_hint_if_none_is_close(self) -> None:
        assert str(unknown("task", "xyz", ["seg"])) == "unknown task 'xyz' (there are: seg)"

    def test_can_be_caught_with_every_other_error_of_the_project(self) -> None:
        assert isinstance(unknown("task", "xyz", ["seg"]), SimoError)


class TestListing:
    def test_indents_what_it_lists(self) -> None:
        assert listing(["a", "b"]) == "  a\n  b"

    def test_counts_what_is_too_much(self) -> None:
        assert listing("abcdefg") == "  a\n  b\n  c\n  d\n  e\n  and 2 more"


class TestResizedLabels:
    @bounded
    @given(source=SIZES, target=SIZES)
    def test_have_no_class_that_was_not_there(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        # 0 and 200 alone: linear interpolation would give all that lies between
        labels = 200 * values_of(KINDS["segmentation"], source).clip(0, 1)
        assert set(np.unique(resize_labels(labels, target))) <= set(np.unique(labels))

    def test_double_every_pixel_at_twice_the_size(self) -> None:
        labels = np.array([[1, 2], [3, 4]], np.uint8)
        np.testing.assert_array_equal(
            resize_labels(labels, (4, 4)), labels.repeat(2, axis=0).repeat(2, axis=1)
        )


class TestResizedValues:
    @bounded
    @given(source=SIZES, target=SIZES)
    def test_stay_within_their_range(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        values = values_of(KINDS["depth"], source)
        resized = resize_values(values, target)
        # float32 sums of weights that are 1 to the last bits
        assert values.min() - 1e-5 <= resized.min() <= resized.max() <= values.max() + 1e-5

    def test_are_interpolated_between_pixel_centres(self) -> None:
        # centres at 0.5 and 1.5 of two pixels; four pixels have theirs at 0.25, 0.75, 1.25, 1.75:
        # 1 (border), 1 + 0.25 * 2, 1 + 0.75 * 2, 3 (border)
        resized = resize_values(np.array([[1.0, 3.0]], np.float32), (1, 4))
        np.testing.assert_allclose(resized, [[1.0, 1.5, 2.5, 3.0]], atol=1e-6)


class TestResizedNormals:
    @bounded
    @given(source=SIZES, target=SIZES)
    def test_stay_of_unit_length(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        # all of them face the camera, so that no sum of two can vanish
        normals = values_of(KINDS["normals"], source)
        normals[..., 2] = -np.abs(normals[..., 2]) - 0.1
        length = np.linalg.norm(resize_normals(normals, target), axis=-1)
        np.testing.assert_allclose(length, 1.0, atol=1e-6)

    def test_stay_finite_where_they_vanish(self) -> None:
        # the middle of (1, 0, 0) and (-1, 0, 0) is no direction
        normals = np.array([[[1, 0, 0], [-1, 0, 0]]], np.float32)
        assert np.isfinite(resize_normals(normals, (1, 3))).all()

    def test_stay_zero_where_they_are_zero(self) -> None:
        assert not resize_normals(np.zeros((2, 3, 3), np.float32), (5, 4)).any()

    def test_turn_from_one_to_the_next(self) -> None:
        # x at 0.5, y at 1.5; the middle of three pixels lies at 1.0: (1, 1, 0) / sqrt(2)
        normals = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
        middle = resize_normals(normals, (1, 3))[0, 1]
        np.testing.assert_allclose(middle, [0.5**0.5, 0.5**0.5, 0.0], atol=1e-6)


class TestSummaries:
    def test_of_labels_names_the_most_frequent_first(self) -> None:
        labels = np.array([[2, 2, 2, 0]], np.uint8)
        assert summarise_labels(labels, LABELS) == "chair 75%, wall 25%"

    def test_of_labels_names_four_at_most(self) -> None:
        labels = np.arange(6, dtype=np.uint8)[None]
        assert summarise_labels(labels, tuple("abcdef")) == "a 17%, b 17%, c 17%, d 17%"

    def test_of_labels_leaves_out_pixels_without_one(self) -> None:
        assert summarise_labels(np.array([[1, 255]], np.uint8), LABELS) == "floor 50%"

    def test_of_no_label_at_all_says_so(self) -> None:
        assert summarise_labels(np.full((2, 2), 255, np.uint8), LABELS) == "no class"

    def test_of_depth_gives_the_range_and_the_median(self) -> None:
        # 1 to 3 in steps of 0.02: the percentiles 1, 50 and 99 are 1.02, 2 and 2.98
        depth = np.linspace(1.0, 3.0, 101, dtype=np.float32)[None]
        assert summarise_depth(depth, ()) == "1.02 to 2.98 m, median 2.00 m"

    def test_of_depth_leaves_out_what_is_not_finite(self) -> None:
        depth = np.array([[2.0, np.nan, np.inf]], np.float32)
        assert summarise_depth(depth, ()) == "2.00 to 2.00 m, median 2.00 m"

    def test_of_no_depth_at_all_says_so(self) -> None:
        assert summarise_depth(np.full((2, 2), np.nan, np.float32), ()) == "no depth"

    def test_of_normals_tells_the_sides(self) -> None:
        # up, down, left, to the camera
        normals = np.array([[[0, -1, 0], [0, 1, 0], [-1, 0, 0], [0, 0, -1]]], np.float32)
        assert summarise_normals(normals, ()) == (
            "25% faces up, 25% down, 25% sideways, 25% the camera"
        )

    def test_of_disparity_gives_the_range_and_the_median(self) -> None:
        # 0 to 0.5 in steps of 0.005: the percentiles 1, 50 and 99 are 0.005, 0.25 and 0.495
        disparity = np.linspace(0.0, 0.5, 101, dtype=np.float32)[None]
        assert summarise_disparity(disparity, ()) == "0.0050 to 0.4950, median 0.2500"

    def test_of_no_disparity_at_all_says_so(self) -> None:
        assert summarise_disparity(np.full((2, 2), np.nan, np.float32), ()) == "no disparity"

    def test_of_log_depth_is_in_metres(self) -> None:
        # ln(1 + 512 * 2) / ln(65536) = 6.9324 / 11.0904
        depth = np.full((2, 2), np.log(1025.0) / np.log(65536.0), np.float32)
        assert summarise_log_depth(depth, ()) == "2.00 to 2.00 m, median 2.00 m"

    def test_of_strength_gives_the_mean_and_what_is_over_the_middle(self) -> None:
        strength = np.array([[-1.0, -0.5, -0.5, 1.0, np.nan]], np.float32)
        assert summarise_strength(strength, ()) == "mean -0.25 on -1 to 1, 25% over 0"

    def test_of_no_strength_at_all_says_so(self) -> None:
        assert summarise_strength(np.full((1, 2), np.nan, np.float32), ()) == "nothing"

    def test_of_a_picture_gives_the_mean_colour(self) -> None:
        # (-1 + 0) / 2 = -0.5 is 63.75 of 255; 1 is 255; -3 is outside
        picture = np.array([[[-1, 1, -3], [0, 1, -3]]], np.float32)
        assert summarise_picture(picture, ()) == "mean colour 64, 255, 0"


class TestLogDepth:
    @pytest.mark.parametrize("z", [0.001, 0.5, 1.0, 9.7, 127.99])
    def test_is_the_formula_in_float64(self, z: float) -> None:
        assert log_depth(np.float64(z)) == pytest.approx(math.log(1 + 512 * z) / math.log(65536))

    def test_goes_from_0_to_1_over_the_16_bits_of_the_stored_depth(self) -> None:
        # 65535 steps of 1/512 m
        assert log_depth(np.array([0.0, 65535 / 512])).tolist() == [0.0, 1.0]

    def test_and_back(self) -> None:
        depth = np.array([0.01, 0.5, 3.0, 80.0])
        np.testing.assert_allclose(metres(log_depth(depth)), depth, rtol=1e-5)
