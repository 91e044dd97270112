"""What is particular to JPEG, PNG, WebP and BMP files, and how each is damaged."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from simo_runtime.errors import ImageError
from simo_runtime.image import read_image
from tests.photos import (
    GREEN,
    RED,
    WHITE,
    Write,
    bmp,
    chunk,
    encode,
    jpeg_with_exif,
    png,
    png_with_exif,
    scene,
    textured,
    tiff,
)


class TestJpeg:
    def test_grey_becomes_rgb(self, file: Write) -> None:
        image = read_image(file(encode(".jpg", np.full((8, 8), 90, np.uint8))))
        np.testing.assert_allclose(image, np.full((8, 8, 3), 90), atol=2)

    def test_the_end_of_its_thumbnail_is_not_its_end(self, file: Write) -> None:
        data = jpeg_with_exif(textured(), tiff(1) + encode(".jpg", scene()))
        with pytest.raises(ImageError, match="truncated, the JPEG has no end"):
            read_image(file(data[:-400]))

    def test_is_read_whole_if_it_has_a_thumbnail(self, file: Write) -> None:
        data = jpeg_with_exif(textured(), tiff(1) + encode(".jpg", scene()))
        assert read_image(file(data)).shape == (64, 96, 3)

    def test_fill_bytes_before_a_marker_are_skipped(self, file: Write) -> None:
        data = encode(".jpg", scene())
        image = read_image(file(data[:2] + b"\xff\xff\xff" + data[2:]))
        assert image.shape == scene().shape

    def test_without_a_frame_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match="the JPEG has no frame header"):
            read_image(file(b"\xff\xd8\xff\xd9"))

    def test_of_no_height_is_refused(self, file: Write) -> None:
        data = bytearray(encode(".jpg", scene()))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 2] = b"\0\0"
        with pytest.raises(ImageError, match="the header says 64 x 0 pixels"):
            read_image(file(bytes(data)))

    def test_cut_in_its_scan_with_a_false_end_keeps_its_size(self, file: Write) -> None:
        # The one damage that cannot be told from a photo with a grey lower half: a JPEG has no
        # checksum and OpenCV does not pass libjpeg's warning on.
        data = encode(".jpg", textured())
        assert read_image(file(data[: len(data) // 2] + b"\xff\xd9")).shape == (64, 96, 3)


class TestPng:
    ROW = b"\0" + bytes(range(30))

    def test_with_a_palette_is_read(self, file: Write) -> None:
        # bits per pixel 8, colour type 3; transparency of the palette is dropped
        extra = chunk(b"PLTE", bytes([*RED, *GREEN])) + chunk(b"tRNS", b"\0\x80")
        data = png(b"\0\0\1\0\1\0", size=(2, 2), colour=3, extra=extra)
        np.testing.assert_array_equal(read_image(file(data)), [[RED, GREEN], [GREEN, RED]])

    def test_of_one_bit_is_read(self, file: Write) -> None:
        # 0b01...: black, white
        data = png(b"\0\x40", size=(1, 2), depth=1, colour=0)
        np.testing.assert_array_equal(read_image(file(data)), [[(0, 0, 0), WHITE]])

    def test_of_16_bit_grey_keeps_the_upper_byte(self, file: Write) -> None:
        grey = np.array([[0x0000, 0x12FF, 0xFE00, 0xFFFF]], np.uint16)
        found = read_image(file(encode(".png", grey)))[..., 0]
        # rounding may give one more than the upper byte
        np.testing.assert_allclose(found, [[0x00, 0x12, 0xFE, 0xFF]], atol=1)

    @pytest.mark.parametrize("alpha", [0, 128, 255])
    def test_transparency_is_dropped(self, alpha: int, file: Write) -> None:
        extra = chunk(b"bKGD", struct.pack(">HHH", 9, 9, 9))
        data = png(b"\0" + bytes([10, 20, 30, alpha]), size=(1, 1), colour=6, extra=extra)
        np.testing.assert_array_equal(read_image(file(data)), [[(10, 20, 30)]])

    def test_shows_its_still_image_if_it_is_animated(self, file: Write) -> None:
        animation = chunk(b"acTL", struct.pack(">II", 1, 0))
        data = png(self.ROW * 4, size=(4, 10), extra=animation)
        frame = struct.pack(">IIIIIHHBB", 0, 2, 2, 0, 0, 1, 10, 0, 0)
        frames = chunk(b"fcTL", frame) + chunk(b"fdAT", b"\0\0\0\1" + zlib.compress(b"\0" * 14))
        data = data[:-12] + frames + data[-12:]
        expected = read_image(file(png(self.ROW * 4, size=(4, 10))))
        np.testing.assert_array_equal(read_image(file(data)), expected)

    @pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND", b"eXIf"])
    def test_with_a_wrong_checksum_is_refused(self, kind: bytes, file: Write) -> None:
        data = bytearray(png_with_exif(scene(), tiff(1)))
        at = data.index(kind)
        (length,) = struct.unpack(">I", data[at - 4 : at])
        data[at + 4 + length] ^= 1
        with pytest.raises(ImageError, match="the checksum of a PNG chunk is wrong"):
            read_image(file(bytes(data)))

    @pytest.mark.parametrize(
        "extra",
        [b"\0\0\0\4tEXtabcd----", chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20))],
        ids=["checksum", "colour-profile"],
    )
    def test_with_a_bad_remark_is_read_without_a_word(
        self, extra: bytes, file: Write, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert read_image(file(png(self.ROW * 2, size=(2, 10), extra=extra))).shape == (2, 10, 3)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("rows", [0, 1, 3])
    def test_with_missing_rows_is_refused(self, rows: int, file: Write) -> None:
        with pytest.raises(ImageError, match="damaged"):
            read_image(file(png(self.ROW * rows, size=(4, 10))))

    def test_without_a_header_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match="the PNG has no header"):
            read_image(file(b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b"")))

    def test_of_no_width_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match="the header says 0 x 4 pixels"):
            read_image(file(png(b"", size=(4, 0))))


class TestWebp:
    def test_with_another_chunk_first_is_refused(self, file: Write) -> None:
        data = encode(".webp", scene(), cv2.IMWRITE_WEBP_QUALITY, 90).replace(b"VP8 ", b"JUNK")
        with pytest.raises(ImageError, match="does not start with an image"):
            read_image(file(data))

    def test_whose_lengths_were_patched_after_a_cut_is_refused(self, file: Write) -> None:
        data = bytearray(encode(".webp", textured(), cv2.IMWRITE_WEBP_QUALITY, 90)[:200])
        data[4:8], data[16:20] = struct.pack("<I", 192), struct.pack("<I", 180)
        with pytest.raises(ImageError, match="damaged"):
            read_image(file(bytes(data)))


class TestBmp:
    def test_that_lies_top_down_is_read(self, file: Write) -> None:
        # rows from the top, BGR, each padded to four bytes
        rows = bytes([0, 0, 255, 0, 0, 255, 0, 0])
        image = read_image(file(bmp(rows, width=1, height=-2)))
        np.testing.assert_array_equal(image, [[RED], [GREEN]])

    def test_with_the_oldest_header_is_read(self, file: Write) -> None:
        header = struct.pack("<IHHHH", 12, 1, 2, 1, 24)
        rows = bytes([0, 255, 0, 0, 0, 0, 255, 0])
        data = b"BM" + struct.pack("<IHHI", 34, 0, 0, 26) + header + rows
        np.testing.assert_array_equal(read_image(file(data)), [[RED], [GREEN]])

    @pytest.mark.parametrize("pixels_at", [0, 53, 63, 2**31])
    def test_whose_pixels_lie_elsewhere_is_refused(self, pixels_at: int, file: Write) -> None:
        with pytest.raises(ImageError, match=f"cannot start at byte {pixels_at}"):
            read_image(file(bmp(bytes(8), width=1, height=2, pixels_at=pixels_at)))

    def test_of_negative_width_is_refused(self, file: Write) -> None:
        with pytest.raises(ImageError, match="the header says -1 x 2 pixels"):
            read_image(file(bmp(bytes(8), width=-1, height=2)))

    def test_a_text_that_starts_like_one_is_refused_as_foreign(self, file: Write) -> None:
        with pytest.raises(ImageError, match="not a JPEG, PNG, WebP or BMP image"):
            read_image(file(b"BMW is a maker of cars, and of motorcycles, in Munich."))
