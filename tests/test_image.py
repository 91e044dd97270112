"""Reading photos: every format, upright and RGB, and nothing damaged, foreign or oversized."""

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_runtime.errors import ImageError
from simo_runtime.image import MAX_BYTES, MAX_SIDE, read_image

Pixels = NDArray[np.uint8]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def scene() -> Pixels:
    """Red and green above blue and white: (32, 64, 3), so that every turn and mirror shows."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32], image[16:, 32:] = RED, GREEN, BLUE, WHITE
    return image


def textured() -> Pixels:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    smooth = np.stack([2 * x, 3 * y, x + y], axis=-1)
    return (smooth + random.integers(0, 20, smooth.shape)).astype(np.uint8)


def encode(suffix: str, rgb: NDArray[np.generic], *options: int) -> bytes:
    bgr = rgb[..., [2, 1, 0, *range(3, rgb.shape[2])]] if rgb.ndim == 3 else rgb
    return cv2.imencode(suffix, np.ascontiguousarray(bgr), list(options))[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    rows: bytes, *, size: tuple[int, int], depth: int = 8, colour: int = 2, extra: bytes = b""
) -> bytes:
    """Make a PNG by hand; `rows` each start with their filter byte, 0."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def tiff(orientation: int) -> bytes:
    """Make EXIF data that holds the orientation (tag 0x0112, one short) and nothing else."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def jpeg_with_exif(rgb: Pixels, exif: bytes) -> bytes:
    # full colour resolution, so that edges between blocks stay sharp
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    jpeg = encode(".jpg", rgb, *sampling)
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + jpeg[2:]


def png_with_exif(rgb: Pixels, exif: bytes) -> bytes:
    data = encode(".png", rgb)
    return data[:33] + chunk(b"eXIf", exif) + data[33:]


def webp_with_exif(rgb: Pixels, exif: bytes) -> bytes:
    high, wide = (side - 1 for side in rgb.shape[:2])
    canvas = wide.to_bytes(3, "little") + high.to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + canvas
    chunks += encode(".webp", rgb, cv2.IMWRITE_WEBP_QUALITY, 101)[12:]
    chunks += b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bmp(pixels: bytes, *, width: int, height: int, bits: int = 24, pixels_at: int = 54) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, pixels_at)
        + header
        + pixels
    )


def outcome(path: Path) -> str:
    try:
        read_image(path, max_pixels=10**6)
    except ImageError:
        return "refused"
    return "read"


LOSSLESS: dict[str, Callable[[Pixels], bytes]] = {
    "png": lambda rgb: encode(".png", rgb),
    "png-16-bit": lambda rgb: encode(".png", rgb.astype(np.uint16) * 257),
    "png-rgba": lambda rgb: encode(".png", np.dstack([rgb, rgb[..., 0]])),
    "png-rgba-16-bit": lambda rgb: encode(
        ".png", np.dstack([rgb, rgb[..., 0]]).astype(np.uint16) * 257
    ),
    "webp-lossless": lambda rgb: encode(".webp", rgb, cv2.IMWRITE_WEBP_QUALITY, 101),
    "webp-rgba": lambda rgb: encode(
        ".webp", np.dstack([rgb, rgb[..., 0] | 1]), cv2.IMWRITE_WEBP_QUALITY, 101
    ),
    "bmp": lambda rgb: encode(".bmp", rgb),
}
LOSSY: dict[str, Callable[[Pixels], bytes]] = {
    "jpeg": lambda rgb: encode(".jpg", rgb),
    "jpeg-progressive": lambda rgb: encode(".jpg", rgb, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg-restarts": lambda rgb: encode(".jpg", rgb, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "webp-lossy": lambda rgb: encode(".webp", rgb, cv2.IMWRITE_WEBP_QUALITY, 90),
}
FORMATS = LOSSLESS | LOSSY
every_format = pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes to a file whose suffix says nothing true."""

    def write(data: bytes) -> Path:
        path = tmp_path / "photo.jpg"
        path.write_bytes(data)
        return path

    return write


Write = Callable[[bytes], Path]


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
