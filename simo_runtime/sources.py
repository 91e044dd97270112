"""Where pictures come from: files, folders, patterns, videos, cameras, streams, pipes, arrays.

A source gives frames one after another and is walked through once, by one thread. A frame of a
file is not read yet, so that several can be decoded at a time; frames of a video, a camera or a
pipe come decoded, in their order.
"""

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, SimoError, listing
from simo_runtime.image import MAX_PIXELS, QUIET, Pixels

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})
STREAMS = ("rtsp://", "rtsps://")
CAMERA, STDIN = "camera:", "-"
TIMEOUT_MS = 10_000  # of a stream that does not answer
NUMBERED = re.compile(r"(.*)\.\d{6,}", re.DOTALL)  # what `numbered` makes
WHOLE = 0.95  # of the pictures that a video claims: containers count roughly


@dataclass(frozen=True)
class Frame:
    """One picture: a file that is still to be read, an array, or why there is none."""

    name: str  # the stem of what is written for it
    origin: str  # for people
    image: Path | Pixels
    colours: Literal["RGB", "BGR"] | None = None  # of an array
    error: SimoError | None = None


class Readable(Protocol):
    """What bytes can be read from."""

    def read(self, count: int, /) -> bytes | None:
        """Give at most `count` bytes; nothing at the end."""
        ...


class Source(Protocol):
    """Gives frames; `total` is how many, if that is known, and `live` whether they cannot wait."""

    where: str  # for people
    total: int | None
    live: bool
    rate: float | None  # pictures a second, of what has a clock

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames; ImageError ends the source, for example when a camera is gone."""
        ...


class Files:
    """Picture files, in the order given."""

    where = "pictures"
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
        self._images, self._colours, self.where = images, colours, name
        self.total: int | None = len(images) if isinstance(images, Sequence) else None

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            yield Frame(numbered(self.where, index), f"{self.where} {index}", image, self._colours)


class Capture:
    """A video file, a camera or a stream, read by OpenCV.

    It is open from `open`, or else from its first frame, to its last.
    """

    def __init__(self, where: str, name: str, opened: Callable[[], Any], *, live: bool) -> None:
        self.where, self.name, self.live = where, name, live
        self.total: int | None = None
        self.rate: float | None = None
        self._opened = opened
        self._capture: Any = None

    def open(self) -> None:
        """Open it and look what it is; ImageError if it cannot be opened."""
        if self._capture is not None:
            return
        with QUIET():
            self._capture = self._opened()
        try:
            self._look()
        except ImageError:
            self.close()
            raise

    def close(self) -> None:
        """Close it; it can be opened again."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def glance(self) -> None:
        """Learn length and rate, and close it; what cannot be opened is an error when it is read.

        That error is all that will come of it, so its length is 1.
        """
        try:
            self.open()
        except ImageError:
            self.total = 1
        finally:
            self.close()

    def _look(self) -> None:
        if not self._capture.isOpened():
            raise ImageError(f"{self.where}: cannot be opened{HINTS[self.live]}")
        size = [self._get(what) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if size[0] * size[1] > MAX_PIXELS:
            raise ImageError(
                f"{self.where}: {size[0]:.0f} x {size[1]:.0f} pixels; at most "
                f"{MAX_PIXELS / 1e6:.0f} megapixels are read"
            )
        count = self._get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(count) if 0 < count < 1e9 and not self.live else None
        rate = self._get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else None
        if self.live:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest picture, not an old one

    def _get(self, what: int) -> float:
        return float(self._capture.get(what))

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        self.open()
        try:
            while True:
                found, image = self._capture.read()
                if not found:
                    break
                origin = f"{self.where}, frame {index}"
                yield Frame(numbered(self.name, index), origin, np.asarray(image), "BGR")
                index += 1
        finally:
            self.close()
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
    """Give a video file, which is not open yet."""

    def opened() -> Any:
        if not path.is_file():
            raise ImageError(f"{path}: no such file")
        return cv2.VideoCapture(for_opencv(str(path), str(path)))

    return Capture(str(path), path.stem, opened, live=False)


def camera(index: int) -> Capture:
    """Give a camera by its number."""
    return Capture(f"{CAMERA}{index}", f"camera{index}", lambda: cv2.VideoCapture(index), live=True)


def rtsp(url: str, name: str = "stream") -> Capture:
    """Give an RTSP stream; what is told of it is the address without user, password and query."""
    shown = without_secrets(url)
    waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]

    def opened() -> Any:
        return cv2.VideoCapture(for_opencv(url, shown), cv2.CAP_FFMPEG, waits)

    return Capture(shown, name, opened, live=True)


def without_secrets(url: str) -> str:
    """Give an address without what stands before an @ or behind a ?: users and passwords.

    Where a ? stands before the last @ either may be part of the other, and nothing is told.
    """
    scheme, _, rest = url.partition("://")
    address, _, query = rest.partition("?")
    return f"{scheme}://{'...' if '@' in query else address.rpartition('@')[2]}"


def for_opencv(name: str, shown: str) -> str:
    """Give a name back that OpenCV can take: the process would die of one that is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{shown}: OpenCV needs a name in UTF-8; rename it") from error
    return name


class Pipe:
    """Raw frames from a pipe: RGB, 8 bits, of one size, nothing between them.

    `ffmpeg -i X -f rawvideo -pix_fmt rgb24 -` writes them.
    """

    where, name = "standard input", "stdin"
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
        while data := self._read(needed):
            if len(data) < needed:
                raise ImageError(
                    f"{self.where}: ends inside frame {index}, after {len(data)} of {needed} "
                    f"bytes; are the frames {wide} x {high} pixels, RGB?"
                )
            image = np.frombuffer(data, np.uint8).reshape(high, wide, 3)
            yield Frame(numbered(self.name, index), f"{self.where}, frame {index}", image, "RGB")
            index += 1

    def _read(self, count: int) -> bytes:
        try:
            return read_fully(self._stream, count)
        except OSError as error:
            raise ImageError(f"{self.where}: {error.strerror or error}") from error


class Chain:
    """Several sources, one after another; one that breaks is a frame with an error, if not live."""

    where = "several sources"

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        totals = [source.total for source in sources]
        self.total: int | None = None if None in totals else sum(t or 0 for t in totals)
        self.live = any(source.live for source in sources)
        self.rate: float | None = next((s.rate for s in sources if s.rate is not None), None)

    def __iter__(self) -> Iterator[Frame]:
        for source in self.sources:
            try:
                yield from source
            except ImageError as error:
                if source.live:
                    raise
                yield Frame(source.where, source.where, Path(source.where), error=error)


def find(
    what: Sequence[str], *, size: tuple[int, int] | None = None, stdin: Readable | None = None
) -> Source:
    """Tell files, folders, patterns, videos, cameras, streams and `-` apart.

    A folder gives the pictures in it by name. `size` (height, width) is that of raw frames from
    `stdin`. One video, camera or stream alone is open then; of several, each is opened when its
    turn comes. Raises ImageError where there is nothing, and for two pictures of one name.
    """
    moving: list[Capture | Pipe] = []
    files: list[Path] = []
    for one in what:
        special = _special(one, size, stdin)
        if special is not None:
            moving.append(special)
            continue
        try:
            paths = _paths(one)
        except (OSError, ValueError) as error:  # too long a name, one with a null byte, ...
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{one[:80]!r}: {reason}") from error
        for path in paths:
            if path.suffix.lower() in VIDEOS:
                moving.append(video(path))
            else:
                files.append(path)
    streams = [source for source in moving if source.where.startswith(STREAMS)]
    for number, source in enumerate(streams[1:], 2):
        source.name += str(number)
    refuse_twins([path.stem for path in files], [source.name for source in moving])
    return _together(files, moving)


def _together(files: Sequence[Path], moving: Sequence["Capture | Pipe"]) -> Source:
    """Make one source of what was found, pictures first."""
    sources: list[Source] = [*([Files(files)] if files else []), *moving]
    if not sources:
        raise ImageError("there is nothing to read; give files, folders, camera:0 or a stream")
    alone = len(sources) == 1
    for source in moving:
        if isinstance(source, Capture) and alone:
            source.open()
        elif isinstance(source, Capture) and not source.live:
            source.glance()
    return sources[0] if alone else Chain(sources)


def _special(
    one: str, size: tuple[int, int] | None, stdin: Readable | None
) -> Capture | Pipe | None:
    """Give the source of what is no file."""
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
    refuse_twins(stems, [])
    return stems


def refuse_twins(pictures: Sequence[str], moving: Sequence[str]) -> None:
    """Raise ImageError if two names are the same, or one is that of a frame of what moves."""
    counts = Counter([*pictures, *moving])
    twice = {name for name, count in counts.items() if count > 1}
    numbers = {name: NUMBERED.fullmatch(name) for name in pictures}
    twice |= {name for name, found in numbers.items() if found and found[1] in moving}
    if twice:
        raise ImageError(
            f"several images would write the same files:\n{listing(sorted(twice))}\n"
            "Run them one after another, each with its own -o."
        )


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
