"""Where pictures come from: files, folders, patterns, videos, cameras, streams, pipes, arrays.

A source gives frames one after another and is walked through once, by one thread. A frame of a
file is not read yet, so that several can be decoded at a time; frames of a video, a camera or a
pipe come decoded, in their order.
"""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, listing
from simo_runtime.image import MAX_PIXELS, QUIET, Pixels

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
STREAMS = ("rtsp://", "rtsps://")
CAMERA, STDIN = "camera:", "-"
TIMEOUT_MS = 10_000  # of a stream that does not answer
WHOLE = 0.95  # of the pictures that a video claims: containers count roughly


@dataclass(frozen=True)
class Frame:
    """One picture: a file that is still to be read, or an array."""

    name: str  # the stem of what is written for it
    origin: str  # for people
    image: Path | Pixels
    colours: Literal["RGB", "BGR"] | None = None  # of an array


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, count: int, /) -> bytes | None:
        """Give at most `count` bytes; nothing at the end."""
        ...


class Source(Protocol):
    """Gives frames; `total` is how many, if that is known, and `live` whether they cannot wait."""

    total: int | None
    live: bool
    rate: float | None  # pictures a second, of what has a clock

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames; ImageError ends the source, for example when a camera is gone."""
        ...


class Files:
    """Picture files, in the order given."""

    live = False
    rate: float | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.total: int | None = len(self.paths)
        self._names = names_of(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for path, name in zip(self.paths, self._names, strict=True):
            yield Frame(name, str(path), path)


class Arrays:
    """Arrays (H, W, 3) uint8 of one colour order, from a list or from anything endless."""

    live = False
    rate: float | None = None

    def __init__(
        self, images: Iterable[NDArray[Any]], colours: Literal["RGB", "BGR"], name: str = "array"
    ) -> None:
        self._images, self._colours, self._name = images, colours, name
        self.total: int | None = len(images) if isinstance(images, Sequence) else None

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            yield Frame(numbered(self._name, index), f"{self._name} {index}", image, self._colours)


class Capture:
    """A video file, a camera or a stream, read by OpenCV."""

    def __init__(self, where: str, name: str, opened: Callable[[], Any], *, live: bool) -> None:
        self.where, self.live, self._name = where, live, name
        with QUIET():
            self._capture = opened()
        if not self._capture.isOpened():
            raise ImageError(f"{where}: cannot be opened{HINTS[live]}")
        size = [self._get(what) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if size[0] * size[1] > MAX_PIXELS:
            raise ImageError(
                f"{where}: {size[0]:.0f} x {size[1]:.0f} pixels; at most {MAX_PIXELS / 1e6:.0f} "
                "megapixels are read"
            )
        count = self._get(cv2.CAP_PROP_FRAME_COUNT)
        self.total: int | None = int(count) if 0 < count < 1e9 and not live else None
        rate = self._get(cv2.CAP_PROP_FPS)
        self.rate: float | None = rate if 0 < rate < 1000 else None
        if live:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not an old one

    def _get(self, what: int) -> float:
        return float(self._capture.get(what))

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        try:
            while True:
                found, image = self._capture.read()
                if not found:
                    break
                origin = f"{self.where}, frame {index}"
                yield Frame(numbered(self._name, index), origin, np.asarray(image), "BGR")
                index += 1
        finally:
            self._capture.release()
        if self.live:
            raise ImageError(
                f"{self.where}: no more pictures after {index}; it was unplugged, it was switched "
                "off, or another program took it"
            )
        if self.total is not None and index < WHOLE * self.total:
            raise ImageError(f"{self.where}: damaged, it ends after {index} of {self.total} frames")


HINTS = {
    False: "; it is not a video that FFmpeg can decode",
    True: "; is it there, and free of other programs?",
}


def video(path: Path) -> Capture:
    """Open a video file."""
    if not path.is_file():
        raise ImageError(f"{path}: no such file")
    return Capture(str(path), path.stem, lambda: cv2.VideoCapture(str(path)), live=False)


def camera(index: int) -> Capture:
    """Open a camera by its number."""
    return Capture(f"{CAMERA}{index}", f"camera{index}", lambda: cv2.VideoCapture(index), live=True)


def rtsp(url: str) -> Capture:
    """Open an RTSP stream; what is told of it is the address without user and password."""
    shown = url.split("://")[0] + "://" + url.split("://", 1)[1].rpartition("@")[2]
    waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
    return Capture(shown, "stream", lambda: cv2.VideoCapture(url, cv2.CAP_FFMPEG, waits), live=True)


class Pipe:
    """Raw frames from a pipe: RGB, 8 bits, of one size, nothing between them.

    `ffmpeg -i X -f rawvideo -pix_fmt rgb24 -` writes them.
    """

    live = False
    total: int | None = None
    rate: float | None = None

    def __init__(self, stream: Readable, size: tuple[int, int]) -> None:
        high, wide = size
        if high < 1 or wide < 1 or high * wide > MAX_PIXELS:
            raise ImageError(f"frames of {wide} x {high} pixels cannot be read")
        self._stream, self._size = stream, size

    def __iter__(self) -> Iterator[Frame]:
        high, wide = self._size
        needed, index = high * wide * 3, 0
        while data := read_fully(self._stream, needed):
            if len(data) < needed:
                raise ImageError(
                    f"standard input: ends inside frame {index}, after {len(data)} of {needed} "
                    f"bytes; are the frames {wide} x {high} pixels, RGB?"
                )
            image = np.frombuffer(data, np.uint8).reshape(high, wide, 3)
            yield Frame(numbered("stdin", index), f"standard input, frame {index}", image, "RGB")
            index += 1


class Chain:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        totals = [source.total for source in sources]
        self.total: int | None = None if None in totals else sum(t or 0 for t in totals)
        self.live = any(source.live for source in sources)
        self.rate: float | None = next((s.rate for s in sources if s.rate is not None), None)

    def __iter__(self) -> Iterator[Frame]:
        return chain.from_iterable(self._sources)


def find(
    what: Sequence[str], *, size: tuple[int, int] | None = None, stdin: Readable | None = None
) -> Source:
    """Tell files, folders, patterns, videos, cameras, streams and `-` apart, and open them.

    A folder gives the pictures in it by name. `size` (height, width) is that of raw frames from
    `stdin`. Raises ImageError where there is nothing, and for two pictures of one name.
    """
    sources: list[Source] = []
    files: list[Path] = []
    for one in what:
        special = _special(one, size, stdin)
        if special is not None:
            sources.append(special)
            continue
        try:
            paths = _paths(one)
        except (OSError, ValueError) as error:  # too long a name, one with a null byte, ...
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{one[:80]!r}: {reason}") from error
        for path in paths:
            if path.suffix.lower() in VIDEOS:
                sources.append(video(path))
            else:
                files.append(path)
    if files:
        sources.insert(0, Files(files))
    if not sources:
        raise ImageError("there is nothing to read; give files, folders, camera:0 or a stream")
    names_of([Path(s.where) for s in sources if isinstance(s, Capture)] + files)
    return sources[0] if len(sources) == 1 else Chain(sources)


def _special(one: str, size: tuple[int, int] | None, stdin: Readable | None) -> Source | None:
    """Open what is no file."""
    if one == STDIN:
        if size is None or stdin is None:
            raise ImageError("frames from standard input need their size: --frames WIDTHxHEIGHT")
        return Pipe(stdin, size)
    if one.startswith(STREAMS):
        return rtsp(one)
    if one.startswith(CAMERA):
        number = one.removeprefix(CAMERA)
        if not (number.isascii() and number.isdigit() and len(number) < 4):
            raise ImageError(f"{one}: a camera has a number, as in {CAMERA}0")
        return camera(int(number))
    return None


def _paths(one: str) -> list[Path]:
    """Give the files of a file, a folder or a pattern."""
    path = Path(one)
    if path.is_dir():
        inside = (p for p in path.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
        found = sorted(p for p in inside if not p.name.startswith("."))
        if not found:
            raise ImageError(f"{path}: no pictures in this folder ({', '.join(sorted(PICTURES))})")
        return found
    if glob.has_magic(one) and not path.exists():
        found = sorted(Path(p) for p in glob.glob(one, recursive=True))
        found = [p for p in found if p.is_file()]
        if not found:
            raise ImageError(f"{one}: no file matches")
        return found
    return [path]


def names_of(images: Sequence[Path]) -> list[str]:
    """Give every image the stem of its outputs; two images with one stem are refused."""
    stems = [image.stem for image in images]
    if len(set(stems)) < len(stems):
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        raise ImageError(
            f"several images would write the same files:\n{listing(twice)}\n"
            "Run them one after another, each with its own -o."
        )
    return stems


def numbered(name: str, index: int) -> str:
    """Name a frame of something that moves."""
    return f"{name}.{index:06d}"


def read_fully(stream: Readable, count: int) -> bytes:
    """Read `count` bytes, or fewer at the end: a pipe gives them in pieces."""
    parts, missing = [], count
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
