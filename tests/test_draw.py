"""Colours: always RGB, uint8, (H, W, 3), and never a warning whatever the values."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_runtime.draw import (
    PALETTE_K3,
    blend,
    colour_depth,
    colour_disparity,
    colour_labels,
    colour_normals,
    colour_picture,
    colour_strength,
    palette,
)
from simo_runtime.tasks import KINDS, Kind

RAMP = np.linspace(-1.0, 1.0, 15, dtype=np.float32).reshape(3, 5)
VALUES = {
    "segmentation": np.arange(15, dtype=np.uint8).reshape(3, 5),
    "parts": np.arange(15, dtype=np.uint8).reshape(3, 5),
    "depth": np.linspace(0.5, 9.0, 15, dtype=np.float32).reshape(3, 5),
    "log_depth": (RAMP + 1) / 2,
    "disparity": (RAMP + 1) / 2,
    "normals": np.tile(np.array((0.0, -0.6, -0.8), np.float32), (3, 5, 1)),
    "edges": RAMP,
    "keypoints": RAMP,
    "autoencoding": np.repeat(RAMP[..., None], 3, axis=2),
}


Colour = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


def brightness(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    return colours.astype(np.int64).sum(axis=-1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_drawn_as_rgb_uint8_of_the_same_size(kind: Kind) -> None:
    colours = kind.colour(VALUES[kind.name])
    assert (colours.dtype, colours.shape) == (np.uint8, (3, 5, 3))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_drawn_without_writing_to_its_values(kind: Kind) -> None:
    before = VALUES[kind.name].copy()
    kind.colour(VALUES[kind.name])
    np.testing.assert_array_equal(VALUES[kind.name], before)


class TestPalette:
    @pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 40, 41, 255])
    def test_has_a_colour_for_every_class(self, count: int) -> None:
        colours = palette(count)
        assert (colours.dtype, colours.shape) == (np.uint8, (count, 3))

    def test_has_no_colour_twice_among_the_first_forty(self) -> None:
        assert len({tuple(colour) for colour in palette(40).tolist()}) == 40

    def test_keeps_the_first_twenty_apart_to_the_eye(self) -> None:
        # distances in CIELAB, where about 2 can just be told apart side by side
        lab = cv2.cvtColor(PALETTE_K3[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e3 * np.eye(20)
        assert apart.min() > 25

    def test_starts_again_darker_after_twenty(self) -> None:
        # (78, 121, 167) * 0.8 = (62.4, 96.8, 133.6), cut to whole numbers
        np.testing.assert_array_equal(palette(21)[20], (62, 96, 133))


class TestLabels:
    def test_have_the_colours_of_the_palette(self) -> None:
        np.testing.assert_array_equal(
            colour_labels(np.array([[0, 2]], np.uint8)), [[(78, 121, 167), (89, 161, 79)]]
        )

    def test_pixels_without_one_are_black(self) -> None:
        assert not colour_labels(np.full((2, 2), 255, np.uint8)).any()

    def test_every_class_up_to_254_has_some_light(self) -> None:
        assert colour_labels(np.arange(255, dtype=np.uint8)[None]).any(axis=-1).all()


class TestDepth:
    def test_near_is_brighter_than_far(self) -> None:
        light = brightness(colour_depth(VALUES["depth"])).ravel()
        assert (np.diff(light) < 0).all()

    def test_one_far_outlier_does_not_flatten_the_rest(self) -> None:
        depth = np.linspace(1.0, 2.0, 1000, dtype=np.float32).reshape(20, 50)
        depth[-1, -1] = 1000.0
        light = brightness(colour_depth(depth))
        assert light[0, 0] - light[-1, -2] > 300

    @pytest.mark.parametrize("value", [0.0, 2.5, 3e38])
    def test_that_is_constant_has_one_colour(self, value: float) -> None:
        colours = colour_depth(np.full((3, 4), value, np.float32))
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 1

    @pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
    def test_that_is_not_finite_is_black(self, hole: float) -> None:
        depth = VALUES["depth"].copy()
        depth[1, 2] = hole
        assert colour_depth(depth)[1, 2].tolist() == [0, 0, 0]

    @pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
    def test_beside_a_hole_keeps_its_colour(self, hole: float) -> None:
        depth = np.array([[1.0, 1.0, 3.0, 3.0]], np.float32)
        with_hole = np.append(depth, [[np.float32(hole)]], axis=1)
        np.testing.assert_array_equal(colour_depth(with_hole)[:, :4], colour_depth(depth))

    def test_without_a_finite_pixel_is_black(self) -> None:
        assert not colour_depth(np.full((2, 3), np.nan, np.float32)).any()


class TestDisparityAndStrength:
    @pytest.mark.parametrize("colour", [colour_disparity, colour_strength])
    def test_large_is_brighter_than_small(self, colour: Colour) -> None:
        assert (np.diff(brightness(colour(RAMP)).ravel()) > 0).all()

    def test_disparity_has_the_colours_of_its_depth(self) -> None:
        # 1 / depth is linear in the range only for two values: near and far
        depth = np.array([[1.0, 4.0]], np.float32)
        np.testing.assert_array_equal(colour_disparity(1 / depth), colour_depth(depth))

    @pytest.mark.parametrize("colour", [colour_disparity, colour_strength])
    def test_what_is_not_finite_is_black(self, colour: Colour) -> None:
        assert not colour(np.array([[1.0, np.nan, 2.0, np.inf]], np.float32))[0, 1::2].any()


class TestPictures:
    def test_are_shown_as_they_are(self) -> None:
        # (v + 1) * 127.5, rounded: 63.75 is 64, 127.5 is 128; outside it is cut
        picture = np.array([[[-1, -0.5, 1], [0, 2, -7], [np.nan, 0, 0]]], np.float32)
        expected = [[[0, 64, 255], [128, 255, 0], [0, 128, 128]]]
        np.testing.assert_array_equal(colour_picture(picture), expected)


class TestNormals:
    @pytest.mark.parametrize(
        ("normal", "colour"),
        [
            ((1, 0, 0), (255, 128, 128)),  # right: red
            ((0, -1, 0), (128, 255, 128)),  # up, y points down: green
            ((0, 0, -1), (128, 128, 255)),  # to the camera, z points away: blue
            ((-1, 1, 1), (0, 0, 0)),
            ((0, 0, 0), (128, 128, 128)),
        ],
    )
    def test_have_the_colours_of_the_field(
        self, normal: tuple[int, int, int], colour: tuple[int, int, int]
    ) -> None:
        found = colour_normals(np.array([[normal]], np.float32))
        np.testing.assert_array_equal(found, [[colour]])


class TestBlend:
    IMAGE = np.full((2, 3, 3), 100, np.uint8)
    COLOURS = np.full((2, 3, 3), 200, np.uint8)

    @pytest.mark.parametrize(("opacity", "value"), [(0.0, 100), (0.6, 160), (1.0, 200)])
    def test_lies_between_the_image_and_the_colours(self, opacity: float, value: int) -> None:
        # 0.6 * 200 + 0.4 * 100 = 160
        blended = blend(self.IMAGE, self.COLOURS, opacity=opacity)
        np.testing.assert_array_equal(blended, np.full((2, 3, 3), value))
