"""Fitting a photo to the network's size, and bringing predictions back to the photo's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simo_runtime.placement import Fit, Placement
from simo_runtime.tasks import KINDS

SIDES = st.integers(1, 300) | st.sampled_from([1000, 5000, 20_000])
TARGETS = st.tuples(st.integers(1, 96), st.integers(1, 96))
FITS = st.sampled_from(["stretch", "letterbox"])
bounded = settings(max_examples=150, deadline=None, derandomize=True)
few = settings(max_examples=40, deadline=None, derandomize=True)


class TestEveryPlacement:
    @bounded
    @given(source=st.tuples(SIDES, SIDES), target=TARGETS, fit=FITS)
    def test_shows_the_source_inside_the_target(
        self, source: tuple[int, int], target: tuple[int, int], fit: Fit
    ) -> None:
        top, left, high, wide = Placement(source, target, fit).inner
        assert (top >= 0, left >= 0, high >= 1, wide >= 1) == (True,) * 4
        assert (top + high <= target[0], left + wide <= target[1]) == (True, True)

    @bounded
    @given(source=st.tuples(SIDES, SIDES), target=TARGETS)
    def test_with_bars_is_centred_and_touches_two_sides(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        top, left, high, wide = Placement(source, target, "letterbox").inner
        assert high == target[0] or wide == target[1]
        assert target[0] - high - 2 * top in (0, 1)
        assert target[1] - wide - 2 * left in (0, 1)

    @bounded
    @given(source=st.tuples(SIDES, SIDES), target=TARGETS)
    def test_with_bars_keeps_the_aspect_ratio_to_half_a_pixel(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        _, _, high, wide = Placement(source, target, "letterbox").inner
        scale = min(target[0] / source[0], target[1] / source[1])
        assert high == pytest.approx(max(1.0, source[0] * scale), abs=0.5)
        assert wide == pytest.approx(max(1.0, source[1] * scale), abs=0.5)

    @few
    @given(
        source=st.tuples(st.integers(1, 120), st.integers(1, 120)) | st.just((1, 5000)),
        target=TARGETS,
        fit=FITS,
    )
    def test_has_nothing_but_source_inside_and_fill_outside(
        self, source: tuple[int, int], target: tuple[int, int], fit: Fit
    ) -> None:
        place = Placement(source, target, fit)
        placed = place.apply(np.full((*source, 3), 200, np.uint8), fill=(1, 2, 3))
        assert (placed.shape, placed.dtype) == ((*target, 3), np.uint8)
        np.testing.assert_array_equal(place.crop(placed), 200)
        top, left, high, wide = place.inner
        outside = np.ones(target, bool)
        outside[top : top + high, left : left + wide] = False
        np.testing.assert_array_equal(placed[outside], np.tile((1, 2, 3), (outside.sum(), 1)))

    @pytest.mark.parametrize("kind", KINDS)
    @few
    @given(source=st.tuples(SIDES, st.integers(1, 90)), target=TARGETS, fit=FITS)
    def test_brings_predictions_back_to_the_size_of_the_source(
        self, kind: str, source: tuple[int, int], target: tuple[int, int], fit: Fit
    ) -> None:
        place = Placement(source, target, fit)
        shape = (*target, 3) if KINDS[kind].channels == 3 else target
        of_network = np.ones(shape, np.uint8 if KINDS[kind].channels is None else np.float32)
        assert KINDS[kind].resize(place.crop(of_network), source).shape[:2] == source


class TestPlacementByHand:
    def test_stretch_fills_the_target(self) -> None:
        assert Placement((37, 91), (32, 48), "stretch").inner == (0, 0, 32, 48)

    @pytest.mark.parametrize(
        ("source", "inner"),
        [
            ((64, 96), (0, 0, 32, 48)),  # the same ratio: no bars
            ((100, 100), (0, 8, 32, 32)),  # scale 0.32; 48 - 32 = 16, 8 on each side
            ((20, 60), (8, 0, 16, 48)),  # scale 0.8; 32 - 16 = 16, 8 above and below
            ((33, 33), (0, 8, 32, 32)),
            ((1, 5000), (15, 0, 1, 48)),  # 0.0096 pixels high becomes 1; (32 - 1) // 2 = 15
            ((5000, 1), (0, 23, 32, 1)),
            ((1, 1), (0, 8, 32, 32)),
        ],
    )
    def test_letterbox(self, source: tuple[int, int], inner: tuple[int, int, int, int]) -> None:
        assert Placement(source, (32, 48), "letterbox").inner == inner

    def test_an_image_of_the_targets_size_is_left_as_it_is(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        place = Placement((64, 96), (64, 96), "letterbox")
        np.testing.assert_array_equal(place.apply(image, fill=(0, 0, 0)), image)

    def test_shrinking_averages_and_does_not_skip_pixels(self) -> None:
        # columns 0, 200, 0, 200, ...: every average is 100
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, 1::2] = 200
        placed = Placement((64, 64), (16, 16), "stretch").apply(image, fill=(0, 0, 0))
        np.testing.assert_array_equal(placed, 100)

    def test_crop_keeps_the_channels_of_a_map(self) -> None:
        values = np.arange(32 * 48 * 3, dtype=np.float32).reshape(32, 48, 3)
        cropped = Placement((100, 100), (32, 48), "letterbox").crop(values)
        np.testing.assert_array_equal(cropped, values[:, 8:40])
