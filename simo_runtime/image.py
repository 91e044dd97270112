"""Images in: read a photo safely, fit it to the network's size, and bring predictions back.

Every image here is RGB, uint8, (H, W, 3).  A file is looked at before it is decoded: its first
bytes say what it really is, and its header how many pixels it claims, so that neither a text
file called .jpg nor a decompression bomb reaches the decoder.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError

Pixels = NDArray[np.uint8]
Fit = Literal["stretch", "letterbox"]

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000

# JPEG markers that start a frame and so carry its size; C4, C8 and CC mean other things.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a JPEG, PNG, WebP or BMP file as RGB uint8 (H, W, 3), upright as its EXIF data says.

    Grey, palette, transparent and 16-bit images become 8-bit RGB; transparency is dropped.
    Raises ImageError for a file that is missing, of another type, too large, or damaged.
    """
    data = _read_bytes(path)
    width, height = _claimed_size(data, path)
    if width < 1 or height < 1:
        raise ImageError(f"{path}: the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: the header says {width} x {height} = {width * height / 1e6:.0f} megapixels; "
            f"at most {max_pixels / 1e6:.0f} are read"
        )
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ImageError(f"{path}: damaged, it cannot be decoded")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path}: {size / 2**20:.0f} MiB; at most {MAX_BYTES >> 20} are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error


def _claimed_size(data: bytes, path: Path) -> tuple[int, int]:
    """Find (width, height) in the header of a file, and see that its end is there."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg_size(data, path)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            if b"IEND" not in data[-64:] and b"IEND" not in data:
                raise ImageError(f"{path}: truncated, the PNG has no end")
            return struct.unpack(">II", data[16:24])
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data, path)
        if data.startswith(b"BM"):
            width, height = struct.unpack("<ii", data[18:26])
            return width, abs(height)
    except (struct.error, IndexError) as error:
        raise ImageError(f"{path}: truncated in the header") from error
    raise ImageError(f"{path}: not a JPEG, PNG, WebP or BMP image, whatever its name says")


def _jpeg_size(data: bytes, path: Path) -> tuple[int, int]:
    """Walk the segments of a JPEG to its frame; the end marker must follow the scan."""
    at, size = 2, None
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:
            at += 1  # fill bytes
        marker, (length,) = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])
        if data[at] != 0xFF or length < 2:
            raise ImageError(f"{path}: damaged, a JPEG segment does not start at byte {at}")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size = (width, height)
        if marker == 0xDA:
            break
        at += 2 + length
    if size is None:
        raise ImageError(f"{path}: damaged, the JPEG has no frame header")
    if data.rfind(b"\xff\xd9", at) < 0:
        raise ImageError(f"{path}: truncated, the JPEG has no end")
    return size


def _webp_size(data: bytes, path: Path) -> tuple[int, int]:
    if 8 + struct.unpack("<I", data[4:8])[0] > len(data):
        raise ImageError(f"{path}: truncated, the WebP file is shorter than it says")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = data[24:27], data[27:30]
        return 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    wide, high = struct.unpack("<HH", data[26:30])
    return wide & 0x3FFF, high & 0x3FFF


@dataclass(frozen=True)
class Placement:
    """Where an image of `source` (height, width) lies in the network's image, and how it got there.

    `stretch` fills the network's image and ignores the aspect ratio; `letterbox` keeps the aspect
    ratio, centres the image and fills the rest with the mean colour.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    fit: Fit

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """The part of the network's image that shows the source: (top, left, height, width)."""
        high, wide = self.target
        if self.fit == "stretch":
            return 0, 0, high, wide
        scale = min(high / self.source[0], wide / self.source[1])
        h = min(high, max(1, round(self.source[0] * scale)))
        w = min(wide, max(1, round(self.source[1] * scale)))
        return (high - h) // 2, (wide - w) // 2, h, w

    def apply(self, image_HW3: Pixels, *, fill: tuple[int, int, int]) -> Pixels:
        """Bring an image to the network's size; `fill` is the RGB colour of the bars."""
        top, left, h, w = self.inner
        shrinks = h * w < self.source[0] * self.source[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(image_HW3, (w, h), interpolation=method)
        if (h, w) == self.target:
            return np.asarray(resized, np.uint8)
        canvas = np.empty((*self.target, 3), np.uint8)
        canvas[:] = fill
        canvas[top : top + h, left : left + w] = resized
        return canvas

    def crop(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut the part that shows the source out of a map (H, W, ...) at the network's size."""
        top, left, h, w = self.inner
        return np.ascontiguousarray(values[top : top + h, left : left + w])
