"""Photos that lie on their side come out upright, as their EXIF data says."""

from collections.abc import Callable

import numpy as np
import pytest

from simo_runtime.image import read_image
from tests.photos import Pixels, Write, jpeg_with_exif, png_with_exif, scene, tiff, webp_with_exif


class TestExifOrientation:
    # What a camera stores so that each orientation, 1 to 8, turns it upright.
    STORED = (
        lambda image: image,
        lambda image: image[:, ::-1],
        lambda image: image[::-1, ::-1],
        lambda image: image[::-1],
        lambda image: image.transpose(1, 0, 2),
        lambda image: np.rot90(image, 1),
        lambda image: image[::-1, ::-1].transpose(1, 0, 2),
        lambda image: np.rot90(image, -1),
    )

    @pytest.mark.parametrize("make", [jpeg_with_exif, png_with_exif, webp_with_exif])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_comes_out_upright(
        self, orientation: int, make: Callable[[Pixels, bytes], bytes], file: Write
    ) -> None:
        stored = np.ascontiguousarray(self.STORED[orientation - 1](scene()))
        image = read_image(file(make(stored, tiff(orientation))))
        np.testing.assert_allclose(image, scene(), atol=12)  # JPEG: +-12

    @pytest.mark.parametrize("exif", [b"", b"II*\0", b"junk" * 9, tiff(0), tiff(9), tiff(65535)])
    def test_that_means_nothing_is_ignored(self, exif: bytes, file: Write) -> None:
        image = read_image(file(jpeg_with_exif(scene(), exif)))
        np.testing.assert_allclose(image, scene(), atol=12)
