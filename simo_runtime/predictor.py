"""The predictor: a photo in, one prediction a task out, one pass through the encoder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime import backends
from simo_runtime.bundle import Bundle
from simo_runtime.draw import blend
from simo_runtime.errors import BackendError, ImageError, UnknownNameError
from simo_runtime.golden import check_golden, fingerprint
from simo_runtime.image import Pixels, read_image, read_reduced
from simo_runtime.placement import Placement, fill_colour
from simo_runtime.remembered import recall, remember
from simo_runtime.tasks import TaskSpec, kind_named

ColourOrder = Literal["RGB", "BGR"]
SelfTest = bool | Literal["once"]


@dataclass(frozen=True)
class Prediction:
    """What one head says of one image, at the image's own size H x W.

    `values` is uint8 (H, W) class indices for segmentation, float32 (H, W) metres for depth, and
    float32 (H, W, 3) unit vectors for normals (x right, y down, z forward); `simo_runtime.tasks`
    says it of every kind.
    """

    task: TaskSpec
    values: NDArray[Any]
    photo: Pixels | Callable[[], Pixels] = field(repr=False)  # or what reads it

    @property
    def image(self) -> Pixels:
        """What was looked at: RGB uint8 (H, W, 3).

        A photo that was decoded at a reduced scale is read again, whole: ImageError if it is gone.
        """
        return self.photo() if callable(self.photo) else self.photo

    @property
    def unit(self) -> str:
        """The unit of `values`."""
        return kind_named(self.task.kind).unit

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their indices; empty unless the kind has classes."""
        return self.task.labels

    def summary(self) -> str:
        """Say in a line what was predicted, for people."""
        return kind_named(self.task.kind).summary(self.values, self.task.labels)

    def colours(self) -> Pixels:
        """Draw the prediction alone: RGB uint8 (H, W, 3)."""
        return kind_named(self.task.kind).colour(self.values)

    def overlay(self, *, opacity: float = 0.6) -> Pixels:
        """Draw the prediction over the image: RGB uint8 (H, W, 3)."""
        return blend(self.image, self.colours(), opacity=opacity)


Scene = dict[str, Prediction]


@dataclass(frozen=True)
class Prepared:
    """An image, brought to the network's size."""

    network: Pixels  # RGB, at the network's size
    place: Placement
    photo: Pixels | Callable[[], Pixels]


class Predictor:
    """Runs a bundle.  It may be called from several threads at once.

    with Predictor.open("bundles/rooms") as predict:
        depth_in_metres = predict("photo.jpg", tasks=["depth"])["depth"].values

    A call is `prepare`, `infer` and `finish`, which may also be called one by one, for example to
    run several images as one batch (`simo_runtime.pipeline` does).
    """

    def __init__(self, bundle: Bundle, session: backends.Session) -> None:
        self.bundle = bundle
        self._session = session

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        *,
        backend: str | backends.Backend | None = None,
        precision: str = "fp32",
        joint: backends.Joint = "auto",
        threads: int | None = None,
        arena: bool = True,
        self_test: SelfTest = "once",
    ) -> "Predictor":
        """Open a bundle, verified, on a backend (by default the first that can run here).

        `precision` is one that the bundle has, `joint` says whether all tasks at once run in one
        graph ("auto": what is faster here), `threads` how many CPU threads compute (by default as
        many as affinity and quota allow), and `arena=False` gives memory back after every run.
        Predictors of the same bundle share what they can. With `self_test` the bundle's golden
        outputs must come out on this machine, "once" for a bundle and a backend, or each time.

        Raises BundleError if the bundle is damaged, BackendError if the backend cannot run or an
        option is none, and UnknownNameError for a backend or a precision that is not there.
        """
        _check_options(threads=threads, joint=joint, arena=arena, self_test=self_test)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        chosen = backends.choose(backend)
        session = chosen.open(
            opened, threads=threads, precision=precision, joint=joint, arena=arena
        )
        if self_test:
            key = {
                "bundle": fingerprint(opened),
                "backend": chosen.name,
                "precision": precision,
                "joint": joint,
                **chosen.facts(),
                **session.identity(),
            }
            once = self_test == "once"
            if not (once and recall("self-test", key) is True):
                with ExitStack() as failing:
                    failing.callback(session.close)
                    tested = check_golden(session, opened, backend=chosen.name, precision=precision)
                    failing.pop_all()
                if tested and once:
                    remember("self-test", key, True)
        return cls(opened, session)

    def __call__(
        self,
        image: Path | str | NDArray[np.uint8],
        *,
        tasks: Sequence[str] | None = None,
        colours: ColourOrder | None = None,
        reduced: bool = False,
    ) -> Scene:
        """Predict `tasks` (by default all) for a photo, with a single pass through the encoder.

        `image` is a path, or a uint8 array (H, W, 3) whose colour order `colours` names: "RGB",
        or "BGR" as OpenCV reads it. With `reduced` a large JPEG is decoded at the scale that the
        network needs, and again, whole, when it is drawn. Raises ImageError for an image that
        cannot be used, UnknownNameError for a task that the bundle does not have, and BackendError
        if the device fails or gives what are no numbers.
        """
        specs = self.specs(tasks)
        prepared = self.prepare(image, colours=colours, reduced=reduced)
        return self.finish(prepared, self.infer([prepared], specs), specs)

    def prepare(
        self,
        image: Path | str | NDArray[np.uint8],
        *,
        colours: ColourOrder | None = None,
        reduced: bool = False,
    ) -> Prepared:
        """Read an image and bring it to the network's size."""
        manifest = self.bundle.manifest
        photo: Pixels | Callable[[], Pixels]
        if reduced and isinstance(image, (str, Path)):
            decoded = read_reduced(Path(image), manifest.image_size)
            pixels, size = decoded.pixels, decoded.size
            photo = pixels if pixels.shape[:2] == size else partial(read_image, Path(image))
        else:
            photo = pixels = as_rgb(image, colours)
            size = pixels.shape[:2]
        place = Placement(size, manifest.image_size, manifest.fit)
        return Prepared(place.apply(pixels, fill=fill_colour(manifest.mean)), place, photo)

    def infer(self, batch: Sequence[Prepared], tasks: Sequence[TaskSpec]) -> backends.Outputs:
        """Run a batch: every task's output at the network's size, the batch first."""
        if not batch:
            raise ImageError("the batch is empty; give it one image or more")
        pixels = [prepared.network for prepared in batch]
        stacked = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        outputs = self._session.run(stacked, [task.name for task in tasks])
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not _finite(values):
                raise BackendError(
                    f"{self.bundle.root}: {name} has values that are no numbers; the weights are "
                    "damaged, or the device computes wrongly in this precision"
                )
        return outputs

    def finish(
        self,
        prepared: Prepared,
        outputs: backends.Outputs,
        tasks: Sequence[TaskSpec],
        index: int = 0,
    ) -> Scene:
        """Bring the outputs of one image of a batch to the image's own size."""
        return {
            task.name: Prediction(
                task, restore(outputs[task.name][index], task, prepared.place), prepared.photo
            )
            for task in tasks
        }

    def specs(self, tasks: Sequence[str] | None) -> list[TaskSpec]:
        """Give the tasks of those names, each once; None gives all."""
        if tasks is None:
            return list(self.bundle.manifest.tasks)
        names = [tasks] if isinstance(tasks, str) else [str(name) for name in tasks]
        if not names:
            there = ", ".join(task.name for task in self.bundle.manifest.tasks)
            raise UnknownNameError(f"tasks is empty; give some of {there}, or None for all")
        return [self.bundle.manifest.task(name) for name in dict.fromkeys(names)]

    def close(self) -> None:
        """Let go of the models."""
        self._session.close()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_options(*, threads: object, joint: object, arena: object, self_test: object) -> None:
    """Refuse what is no option: engines would take it for something, or fail in their own words."""
    number = isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1
    if threads is not None and not number:
        raise BackendError(f"threads is {threads!r}; it must be 1 or more, or None for all")
    if not isinstance(joint, bool) and joint != "auto":
        raise BackendError(f'joint is {joint!r}; it must be True, False or "auto"')
    if not isinstance(arena, bool):
        raise BackendError(f"arena is {arena!r}; it must be True or False")
    if not isinstance(self_test, bool) and self_test != "once":
        raise BackendError(f'self_test is {self_test!r}; it must be True, False or "once"')


def _finite(values: NDArray[Any]) -> bool:
    """Tell whether all values are numbers; a sum that is one shows it in one pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def as_rgb(image: Path | str | NDArray[Any], colours: ColourOrder | None) -> Pixels:
    """Read a path, or check an array and bring it to RGB."""
    if isinstance(image, (str, Path)):
        if colours is not None:
            raise ImageError("colours= is for arrays; a file says itself how its colours lie")
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"the image is of the type {type(image).__name__}; it must be a path (str or Path), or "
            "a numpy array, uint8 (height, width, 3)"
        )
    if colours not in ("RGB", "BGR"):
        raise ImageError(f'an array needs colours="RGB" or colours="BGR"; got {colours!r}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"the array is {image.dtype} {image.shape}; it must be uint8 (height, width, 3)"
        )
    return np.ascontiguousarray(image if colours == "RGB" else image[..., ::-1])


def restore(output: NDArray[Any], spec: TaskSpec, place: Placement) -> NDArray[Any]:
    """Bring one head's output, (H, W) or (C, H, W), from the network's size to the image's."""
    if output.ndim == 3:  # planes to pixels, which OpenCV does several times as fast as numpy
        values = np.asarray(cv2.merge([place.crop(plane) for plane in output]))
    else:
        values = place.crop(output)
    if values.shape[:2] == place.source:
        return values
    return kind_named(spec.kind).resize(values, place.source)
