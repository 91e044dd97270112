"""Images in: read a photo safely.

Every image here is RGB, uint8, (H, W, 3).  A file is looked at before it is decoded: its first
bytes say what it really is, its header how many pixels it claims, and its structure whether the
end is there, so that neither a text file called .jpg, nor half a download, nor a decompression
bomb reaches the decoder.
"""

import re
import stat
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError

Pixels = NDArray[np.uint8]

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000
MAX_SIDE = 65_500  # of a JPEG, and predictions are drawn into one
ENOUGH = 2  # rows and columns of a reduced photo for each of the network's

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# A JPEG marker as libjpeg looks for it: not a stuffed zero, not a fill byte, not a restart.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = 0xD9
# Markers that start a frame and so carry its size; C4, C8 and CC mean other things.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})  # their lengths name the versions


@dataclass(frozen=True)
class Decoded:
    """A photo, or a smaller picture of it."""

    pixels: Pixels  # RGB (h, w, 3)
    size: tuple[int, int]  # the photo's own height and width, upright


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a JPEG, PNG, WebP or BMP file as RGB uint8 (H, W, 3), upright as its EXIF data says.

    Grey, palette, transparent and 16-bit images become 8-bit RGB; transparency is dropped.
    Raises ImageError for a file that is missing, of another type, too large, or damaged. Damage
    inside the compressed pixels of a JPEG or WebP cannot always be seen: they have no checksum.
    """
    data, _ = _looked_at(path, max_pixels)
    return _decode(data, path, cv2.IMREAD_COLOR)


def read_reduced(path: Path, target: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Read a photo as `read_image` does, a large JPEG at 1/2, 1/4 or 1/8 of its size.

    For a network whose image is `target` (height, width): the decoder leaves out what would be
    averaged away, and what it gives has at least twice as many rows and columns as the network
    wants. Only sizes that the reduction divides are reduced, so that nothing moves by a fraction
    of a pixel.
    """
    data, (width, height) = _looked_at(path, max_pixels)
    times = _reduction(width, height, target) if data.startswith(b"\xff\xd8\xff") else 1
    pixels = _decode(data, path, _REDUCED[times])
    high, wide = pixels.shape[:2]
    return Decoded(pixels, (high * times, wide * times))


def _reduction(width: int, height: int, target: tuple[int, int]) -> int:
    # EXIF may turn the photo, so the longer side of the target stands for both.
    needed = ENOUGH * max(target)
    for times in (8, 4, 2):
        fits = min(width, height) >= needed * times
        if fits and width % times == 0 and height % times == 0:
            return times
    return 1


def _looked_at(path: Path, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    """Read the bytes that the decoder needs, and (width, height), if they may be decoded."""
    data = _read_bytes(path)
    width, height = _claimed_size(data, path)
    if width < 1 or height < 1:
        raise ImageError(f"{path}: the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: the header says {width} x {height} = {width * height / 1e6:.0f} megapixels; "
            f"at most {max_pixels / 1e6:.0f} are read"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels; a side may have {MAX_SIDE}")
    return _essential(data), (width, height)


def _read_bytes(path: Path) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a device or a pipe may never end
            raise ImageError(f"{path}: not a file")
        if info.st_size > MAX_BYTES:
            raise ImageError(
                f"{path}: {info.st_size / 2**20:.0f} MiB; at most {MAX_BYTES >> 20} are read"
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a name with a null byte in it
        raise ImageError(f"{str(path)!r}: {error}") from error


def _claimed_size(data: bytes, path: Path) -> tuple[int, int]:
    """Find (width, height) in the header of a file, and see that its end is there."""
    if not data:
        raise ImageError(f"{path}: the file is empty")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg_size(data, path)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_size(data, path)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data, path)
        if data.startswith(b"BM") and _bmp_header(data) in _BMP_HEADERS:
            return _bmp_size(data, path)
    except struct.error as error:
        raise ImageError(f"{path}: truncated, the file ends inside a header") from error
    raise ImageError(f"{path}: not a JPEG, PNG, WebP or BMP image, whatever its name says")


def _jpeg_size(data: bytes, path: Path) -> tuple[int, int]:
    """Walk the segments and scans of a JPEG to its end marker; its first frame has the size."""
    at, size = 2, None
    while found := _JPEG_MARKER.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == _JPEG_END:
            break
        (length,) = struct.unpack(">H", data[at : at + 2])
        if marker in _JPEG_FRAMES and size is None:
            height, width = struct.unpack(">HH", data[at + 3 : at + 7])
            size = (width, height)
        at += length
    else:
        raise ImageError(f"{path}: truncated, the JPEG has no end")
    if size is None:
        raise ImageError(f"{path}: damaged, the JPEG has no frame header")
    return size


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Give the type and the bytes of every chunk, header and CRC included, up to the end chunk."""
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        yield kind, view[at : at + 12 + length]
        at += 12 + length


def _png_needed(kind: bytes) -> bool:
    # A capital letter marks the chunks without which the pixels cannot be decoded.
    return kind[:1].isupper() or kind == b"eXIf"


def _png_size(data: bytes, path: Path) -> tuple[int, int]:
    """Walk the chunks of a PNG to its end; those that matter must have the right checksum."""
    if data[12:16] != b"IHDR":
        raise ImageError(f"{path}: damaged, the PNG has no header")
    for kind, chunk in _png_chunks(data):
        (length,) = struct.unpack(">I", chunk[:4])
        if len(chunk) < 12 + length:
            raise ImageError(f"{path}: truncated, the PNG has no end")
        if _png_needed(kind) and chunk[-4:] != struct.pack(">I", zlib.crc32(chunk[4:-4])):
            raise ImageError(f"{path}: damaged, the checksum of a PNG chunk is wrong")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _webp_size(data: bytes, path: Path) -> tuple[int, int]:
    if 8 + struct.unpack("<I", data[4:8])[0] > len(data):
        raise ImageError(f"{path}: truncated, the WebP file is shorter than it says")
    kind = data[12:16]
    if kind == b"VP8X":
        low, high, wide, tall = struct.unpack("<HBHB", data[24:30])
        return 1 + low + (high << 16), 1 + wide + (tall << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"{path}: damaged, the WebP file does not start with an image")


def _bmp_header(data: bytes) -> int:
    return int.from_bytes(data[14:18], "little")


def _bmp_size(data: bytes, path: Path) -> tuple[int, int]:
    header = _bmp_header(data)
    (pixels_at,) = struct.unpack("<I", data[10:14])
    if not 14 + header <= pixels_at <= len(data):
        raise ImageError(f"{path}: damaged, the BMP's pixels cannot start at byte {pixels_at}")
    width, height = struct.unpack(*(("<HH", data[18:22]) if header == 12 else ("<ii", data[18:26])))
    return width, abs(height)  # a negative height means that the rows go down


def _essential(data: bytes) -> bytes:
    """Leave out the chunks of a PNG that say nothing of its pixels: libpng warns of bad ones."""
    if not data.startswith(b"\x89PNG"):
        return data
    return b"".join([data[:8], *(chunk for kind, chunk in _png_chunks(data) if _png_needed(kind))])


def _decode(data: bytes, path: Path, how: int) -> Pixels:
    try:
        with QUIET():
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImageError(f"{path}: damaged, it cannot be decoded")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


class Quiet:
    """Keeps OpenCV from logging what ImageError says already.

    The level belongs to the process, so the first thread to come in lowers it and the last to
    leave puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    cv2.utils.logging.setLogLevel(self._before)


QUIET = Quiet()
