"""Bytes of photos: every format that is read, some made by hand so that they can be wrong."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Write = Callable[[bytes], Path]  # of the fixture `file`
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
