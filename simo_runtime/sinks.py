"""Where predictions go: arrays, pictures, a video, lines of JSON, a function of the caller's.

Every file is written under another name and renamed when it is whole.
"""

import errno
import json
import re
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, SimoError, unknown
from simo_runtime.files import at, becoming, partial_name, write_image, write_npy
from simo_runtime.image import QUIET
from simo_runtime.overlay import compose
from simo_runtime.predictor import Prediction
from simo_runtime.sources import Frame, for_opencv
from simo_runtime.statistics import statistics
from simo_runtime.tasks import kind_named

Scene = Mapping[str, Prediction]

# What can be written for a picture and a task, or, `overlay`, for a picture.
FORMS = {
    "npy": "the values as they are",
    "png": "the values as pixels: classes in 8 bits, depth in 16 bits as millimetres, ...",
    "jpg": "the colours over the photo",
    "colour": "the colours alone, as .colour.png",
    "overlay": "one picture of the photo and all tasks, with legends, as <name>.overlay.png",
}
VIDEO_CODES = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}
RATE = 25.0  # pictures a second, where the source has none


class Sink(Protocol):
    """Takes scenes.

    One that is `ordered` is called by one thread, in the order of the frames; others by several at
    once. One that `draws` needs the photo itself, whole.
    """

    ordered: bool
    draws: bool

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        """Take one scene, and give the files that are there now."""
        ...

    def missed(self, frame: Frame, error: SimoError) -> None:
        """Be told that there is no scene for a frame."""
        ...

    def close(self) -> list[Path]:
        """Finish what has been begun; give the files that are there only now."""
        ...


class PerImage:
    """A sink of files that stand alone; nothing has to be finished."""

    ordered, draws = False, False

    def missed(self, frame: Frame, error: SimoError) -> None:
        """Nothing is written for a frame without a scene."""

    def close(self) -> list[Path]:
        return []


class Forms(PerImage):
    """Files for every picture and task, in one or more of FORMS."""

    def __init__(self, out: Path, forms: tuple[str, ...]) -> None:
        for form in forms:
            if form not in FORMS:
                raise unknown("form of output", form, FORMS)
        self._out, self._forms = out, forms
        self.draws = bool({"jpg", "overlay"} & set(forms))

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        if self._forms:
            self._out.mkdir(parents=True, exist_ok=True)
        try:
            return self._written(frame.name, scene)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ImageError(
                f"{frame.origin}: its name is too long for the files that are named after it; "
                "rename it"
            ) from error

    def _written(self, name: str, scene: Scene) -> list[Path]:
        files = [
            write_form(prediction, self._out, name, form)
            for prediction in scene.values()
            for form in self._forms
            if form != "overlay"
        ]
        if "overlay" in self._forms:
            picture = compose(scene)[..., ::-1]
            files.append(write_image(self._out / f"{name}.overlay.png", picture))
        return files


class Call(PerImage):
    """A function of the caller's; it is called with every frame and its scene, in order."""

    ordered, draws = True, True

    def __init__(self, function: Callable[[Frame, Scene], object]) -> None:
        self._function = function

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        self._function(frame, scene)
        return []


class Video:
    """A video of overlays; it is there when the sink is closed."""

    ordered, draws = True, True

    def __init__(self, path: Path, rate: float | None) -> None:
        if path.suffix.lower() not in VIDEO_CODES:
            raise ImageError(f"{path}: a video is one of {', '.join(VIDEO_CODES)}")
        for_opencv(str(path), str(path))
        self._path, self._rate = path, rate or RATE
        self._partial = partial_name(path)
        self._writer: Any = None
        self._size: tuple[int, int] | None = None
        self._written = 0

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        picture = compose(scene, every_class=True)
        size = (picture.shape[1] & ~1, picture.shape[0] & ~1)  # encoders want even sizes
        if self._writer is None:
            self._size, self._writer = size, self._begin(size)
        if size != self._size:
            raise ImageError(
                f"{frame.origin}: a picture of another shape than those before it; "
                f"one video cannot hold both ({self._path})"
            )
        with QUIET():
            self._writer.write(np.ascontiguousarray(picture[: size[1], : size[0], ::-1]))
        self._written += 1
        return []

    def _begin(self, size: tuple[int, int]) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        code = cv2.VideoWriter.fourcc(*VIDEO_CODES[self._path.suffix.lower()])
        with QUIET():
            writer = cv2.VideoWriter(str(self._partial), code, self._rate, size)
        if not writer.isOpened():
            self._partial.unlink(missing_ok=True)
            raise ImageError(f"{self._path}: OpenCV cannot write a video here")
        return writer

    def missed(self, frame: Frame, error: SimoError) -> None:
        """A video has no picture for a frame without a scene."""

    def close(self) -> list[Path]:
        if self._writer is None:
            return []
        with becoming(self._path, self._partial):
            with QUIET():
                self._writer.release()
            self._writer = None
            # When the disk is full OpenCV's writer only logs it.
            if not holds(self._partial, self._written):
                raise ImageError(
                    f"{self._path}: the video could not be written to its end and is not kept; is "
                    "the disk full?"
                )
        return [self._path]


def holds(path: Path, count: int) -> bool:
    """Tell whether a video was finished and has so many frames; they are not decoded."""
    with QUIET():
        capture = cv2.VideoCapture(str(path))
        capture.set(cv2.CAP_PROP_FORMAT, -1)  # FFmpeg gives packets then
        finished = capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        whole = finished and all(capture.grab() for _ in range(count))
        capture.release()
    return whole and (path.suffix.lower() != ".avi" or riff_is_whole(path))


def riff_is_whole(path: Path) -> bool:
    """Tell whether the parts of an AVI file are as long as they say: its last frame may be cut."""
    place, end = 0, path.stat().st_size
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            place += 8 + int.from_bytes(file.read(8)[4:], "little")  # a name and a length
    return place == end


class Lines:
    """A line of JSON for every frame, with statistics or with what is wrong with it.

    A file is there when the sink is closed, with the whole lines that there was room for; a stream
    of text gets its lines at once.
    """

    ordered, draws = True, False

    def __init__(self, target: Path | TextIO) -> None:
        self._path = target if isinstance(target, Path) else None
        self._stream = None if isinstance(target, Path) else target
        self._partial: Path | None = None
        self._file: FileIO | None = None

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        first = next(iter(scene.values()))
        tasks = {name: statistics(prediction) for name, prediction in scene.items()}
        self._line(frame, {"size": list(first.values.shape[:2]), "tasks": tasks})
        return []

    def missed(self, frame: Frame, error: SimoError) -> None:
        self._line(frame, {"error": str(error)})

    def _line(self, frame: Frame, found: Mapping[str, Any]) -> None:
        line = as_json({"name": frame.name, "origin": frame.origin, **found}) + "\n"
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()
            return
        assert self._path is not None  # one of the two is there
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._file is None:
                self._partial = partial_name(self._path)
                self._file = FileIO(self._partial, "w")
            append(self._file, line.encode())
        except OSError as error:
            raise at(self._path, error) from error

    def close(self) -> list[Path]:
        if self._path is None or self._partial is None or self._file is None:
            return []
        file, self._file = self._file, None
        if file.tell() == 0:  # there was no room for a line
            file.close()
            self._partial.unlink()
            return []
        with becoming(self._path, self._partial):
            file.close()
        return [self._path]


def as_json(value: Mapping[str, Any]) -> str:
    """Give a line of JSON; bytes of a file name that are no UTF-8 are spelled out in it."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: rf"\\u{ord(found[0]):04x}", text)


def append(file: FileIO, data: bytes) -> None:
    """Write all of the data or, where the disk is full, none of it."""
    start, left = file.tell(), data
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(start)
        file.seek(start)
        raise


def write_form(prediction: Prediction, out: Path, stem: str, form: str) -> Path:
    """Write one prediction in one of FORMS; give the file."""
    name = f"{stem}.{prediction.task.name}"
    if form == "npy":
        return write_npy(out / f"{name}.npy", prediction.values)
    if form == "png":
        return write_image(out / f"{name}.png", as_png(prediction))
    if form == "colour":
        return write_image(out / f"{name}.colour.png", prediction.colours()[..., ::-1])
    return write_image(out / f"{name}.jpg", prediction.overlay()[..., ::-1])


def as_png(prediction: Prediction) -> NDArray[np.generic]:
    """Encode values as pixels of 8 or 16 bits, as their kind does (`simo_runtime.pixels`)."""
    return np.asarray(kind_named(prediction.task.kind).encode(prediction.values))
