"""Where predictions go: arrays, pictures, a video, lines of JSON, a function of the caller's.

Every file is written under another name and renamed when it is whole.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, SimoError, unknown
from simo_runtime.files import partial_name, write_image, write_npy
from simo_runtime.overlay import compose
from simo_runtime.predictor import Prediction
from simo_runtime.sources import Frame
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
        files = [
            write_form(prediction, self._out, frame.name, form)
            for prediction in scene.values()
            for form in self._forms
            if form != "overlay"
        ]
        if "overlay" in self._forms:
            picture = compose(scene)[..., ::-1]
            files.append(write_image(self._out / f"{frame.name}.overlay.png", picture))
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
        self._path, self._rate = path, rate or RATE
        self._writer: Any = None
        self._size: tuple[int, int] | None = None

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
        self._writer.write(np.ascontiguousarray(picture[: size[1], : size[0], ::-1]))
        return []

    def _begin(self, size: tuple[int, int]) -> Any:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        code = cv2.VideoWriter.fourcc(*VIDEO_CODES[self._path.suffix.lower()])
        writer = cv2.VideoWriter(str(partial_name(self._path)), code, self._rate, size)
        if not writer.isOpened():
            raise ImageError(f"{self._path}: OpenCV cannot write a video here")
        return writer

    def missed(self, frame: Frame, error: SimoError) -> None:
        """A video has no picture for a frame without a scene."""

    def close(self) -> list[Path]:
        if self._writer is None:
            return []
        self._writer.release()
        self._writer = None
        partial_name(self._path).replace(self._path)
        return [self._path]


class Lines:
    """A line of JSON for every frame, with statistics or with what is wrong with it.

    A file is there when the sink is closed; a stream of text gets its lines at once.
    """

    ordered, draws = True, False

    def __init__(self, target: Path | TextIO) -> None:
        self._path = target if isinstance(target, Path) else None
        self._file: TextIO | None = None if isinstance(target, Path) else target

    def write(self, frame: Frame, scene: Scene) -> list[Path]:
        first = next(iter(scene.values()))
        tasks = {name: statistics(prediction) for name, prediction in scene.items()}
        self._line(frame, {"size": list(first.values.shape[:2]), "tasks": tasks})
        return []

    def missed(self, frame: Frame, error: SimoError) -> None:
        self._line(frame, {"error": str(error)})

    def _line(self, frame: Frame, found: Mapping[str, Any]) -> None:
        if self._file is None:
            assert self._path is not None  # one of the two is there
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = partial_name(self._path).open("w", encoding="utf-8")
        text = {"name": frame.name, "origin": frame.origin, **found}
        self._file.write(json.dumps(text, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> list[Path]:
        if self._path is None or self._file is None:
            return []
        self._file.close()
        self._file = None
        partial_name(self._path).replace(self._path)
        return [self._path]


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
