"""Reading photos: every format, upright and RGB, and nothing damaged, foreign or oversized."""

import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from simo_runtime.errors import ImageError
from simo_runtime.image import MAX_BYTES, MAX_SIDE, read_image
from tests.photos import (
    BLUE,
    GREEN,
    LOSSLESS,
    RED,
    WHITE,
    Pixels,
    Write,
    bmp,
    encode,
    every_format,
    png,
    scene,
    textured,
    webp_with_exif,
)


def outcome(path: Path) -> str:
    try:
        read_image(path, max_pixels=10**6)
    except ImageError:
        return "refused"
    return "read"


class TestEveryFormat:
    @every_format
    def test_is_read_in_rgb_order(self, make: Callable[[Pixels], bytes], file: Write) -> None:
        image = read_image(file(make(scene())))
        corners = [image[4, 4], image[4, 60], image[28, 4], image[28, 60]]
        np.testing.assert_allclose(corners, [RED, GREEN, BLUE, WHITE], atol=12)  # lossy: +-12

    @pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS)
    def test_keeps_every_pixel_if_lossless(
        self, make: Callable[[Pixels], bytes], file: Write
    ) -> None:
        np.testing.assert_array_equal(read_image(file(make(textured()))), textured())

    @every_format
    def test_gives_contiguous_8_bit_pixels(
        self, make: Callable[[Pixels], bytes], file: Write
    ) -> None:
        image = read_image(file(make(textured())))
        assert (image.dtype, image.shape) == (np.uint8, (64, 96, 3))
        assert image.flags.c_contiguous

    @every_format
    def test_reads_a_single_pixel(self, make: Callable[[Pixels], bytes], file: Write) -> None:
        one = np.full((1, 1, 3), 200, np.uint8)
        np.testing.assert_allclose(read_image(file(make(one))), one, atol=3)  # lossy: +-3

    @every_format
    def test_cut_anywhere_is_refused(self, make: Callable[[Pixels], bytes], file: Write) -> None:
        data = make(textured())
        lengths = {*range(0, len(data), max(1, len(data) // 60)), *range(40), len(data) - 1}
        lengths |= {len(data) - 2, len(data) - 5, len(data) - 13}
        for length in sorted(lengths):
            with pytest.raises(ImageError, match=r"photo\.jpg: "):
                read_image(file(data[:length]))

    @every_format
    def test_says_one_thing_on_refusing_half_a_file(
        self, make: Callable[[Pixels], bytes], file: Write, capfd: pytest.CaptureFixture[str]
    ) -> None:
        data = make(textured())
        with pytest.raises(ImageError) as caught:
            read_image(file(data[: len(data) // 2]))
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    @every_format
    def test_with_any_byte_changed_is_read_or_refused_but_never_crashes(
        self, make: Callable[[Pixels], bytes], file: Write
    ) -> None:
        data = make(textured())
        for at in [*range(2, 60, 3), *range(60, len(data), max(1, len(data) // 25))]:
            changed = bytearray(data)
            changed[at] ^= 0x5A
            assert outcome(file(bytes(changed))) in ("read", "refused")

    @every_format
    def test_with_more_bytes_behind_its_end_is_read(
        self, make: Callable[[Pixels], bytes], file: Write
    ) -> None:
        # phones append videos and depth maps to their photos
        data = make(textured())
        expected = read_image(file(data))
        np.testing.assert_array_equal(read_image(file(data + b"\0more" * 20)), expected)


def huge_jpeg() -> bytes:
    data = bytearray(encode(".jpg", scene()))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 10_000, 10_000)
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(webp_with_exif(scene(), b""))
    data[24:30] = (9_999).to_bytes(3, "little") * 2
    return bytes(data)


HUGE = {
    "png": lambda: png(b"", size=(10_000, 10_000)),
    "jpeg": huge_jpeg,
    "webp": huge_webp,
    "bmp": lambda: bmp(b"", width=10_000, height=10_000),
}


class TestTooLarge:
    @pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
    def test_a_claim_of_100_megapixels_is_refused_before_decoding(
        self, make: Callable[[], bytes], file: Write
    ) -> None:
        path = file(make())
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with pytest.raises(ImageError, match="= 100 megapixels; at most 80 are read"):
                read_image(path)
            seconds.append(time.perf_counter() - start)
        # the decoder would clear 300 MB first, and call these files damaged
        assert min(seconds) < 0.02

    def test_a_second_frame_header_does_not_hide_the_first(self, file: Write) -> None:
        data = huge_jpeg()
        small = encode(".jpg", scene())
        at = small.index(b"\xff\xc0")
        with pytest.raises(ImageError, match="100 megapixels"):
            read_image(file(data[:-2] + small[at : at + 19] + data[-2:]))

    def test_a_limit_of_ones_own_is_kept(self, file: Write) -> None:
        path = file(encode(".png", scene()))
        assert read_image(path, max_pixels=32 * 64).shape == (32, 64, 3)
        with pytest.raises(ImageError, match="64 x 32"):
            read_image(path, max_pixels=32 * 64 - 1)

    def test_a_side_too_long_for_the_pictures_to_be_written_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match=f"65501 x 1 pixels; a side may have {MAX_SIDE}"):
            read_image(file(png(b"\0" + bytes(65501), size=(1, 65501), colour=0)))

    def test_a_file_of_too_many_bytes_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "film.jpg"
        with path.open("wb") as sparse:
            sparse.truncate(MAX_BYTES + 1)
        with pytest.raises(ImageError, match="256 MiB; at most 256 are read"):
            read_image(path)


class TestNotAnImage:
    @pytest.mark.parametrize(
        "data",
        [b"Dear Sir,\n", b"GIF89a" + bytes(40), b"\xff\xd8", b"RIFF\4\0\0\0WAVE", b"%PDF-1.7"],
    )
    def test_is_refused_whatever_its_name_says(self, data: bytes, file: Write) -> None:
        with pytest.raises(ImageError, match=r"photo\.jpg: not a JPEG, PNG, WebP or BMP image"):
            read_image(file(data))

    def test_an_empty_file_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match=r"photo\.jpg: the file is empty"):
            read_image(file(b""))

    def test_a_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="not a file"):
            read_image(tmp_path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
            read_image(tmp_path / "nowhere.png")

    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ImageError, match=r"pipe\.jpg: not a file"):
            read_image(tmp_path / "pipe.jpg")


class TestTheLogOfOpenCV:
    @pytest.fixture(autouse=True)
    def _restore(self) -> object:
        before = cv2.utils.logging.getLogLevel()
        yield
        cv2.utils.logging.setLogLevel(before)

    def test_level_is_afterwards_what_it_was(self, file: Write) -> None:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        read_image(file(encode(".png", scene())))
        assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_ERROR

    def test_level_is_what_it_was_after_threads_that_overlap(self, file: Write) -> None:
        path = file(encode(".bmp", textured())[:-1])
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

        def read() -> None:
            for _ in range(20):
                with pytest.raises(ImageError):
                    read_image(path)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_ERROR
