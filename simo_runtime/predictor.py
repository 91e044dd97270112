"""The predictor: a photo in, one prediction a task out, one pass through the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simo_runtime import backends
from simo_runtime.bundle import Bundle
from simo_runtime.draw import blend
from simo_runtime.errors import ImageError
from simo_runtime.image import Pixels, read_image
from simo_runtime.placement import Placement
from simo_runtime.tasks import TaskSpec, kind_named

ColourOrder = Literal["RGB", "BGR"]


@dataclass(frozen=True)
class Prediction:
    """What one head says of one image, at the image's own size H x W.

    `values` is uint8 (H, W) class indices for segmentation, float32 (H, W) metres for depth, and
    float32 (H, W, 3) unit vectors for normals (x right, y down, z forward); `simo_runtime.tasks`
    says it of every kind.
    """

    task: TaskSpec
    values: NDArray[Any]
    image: Pixels  # RGB (H, W, 3), what was looked at

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


class Predictor:
    """Runs a bundle.  It may be called from several threads at once.

    with Predictor.open("bundles/rooms") as predict:
        depth_in_metres = predict("photo.jpg", tasks=["depth"])["depth"].values
    """

    def __init__(self, bundle: Bundle, session: backends.Session) -> None:
        self.bundle = bundle
        self._session = session

    @classmethod
    def open(
        cls, bundle: Bundle | Path | str, *, backend: str | None = None, threads: int | None = None
    ) -> "Predictor":
        """Open a bundle, verified, on a backend (by default the first that can run here).

        Raises BundleError if the bundle is damaged, BackendError if the backend cannot run.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(opened, backends.choose(backend).open(opened, threads=threads))

    def __call__(
        self,
        image: Path | str | NDArray[np.uint8],
        *,
        tasks: Sequence[str] | None = None,
        colours: ColourOrder | None = None,
    ) -> dict[str, Prediction]:
        """Predict `tasks` (by default all) for a photo, with a single pass through the encoder.

        `image` is a path, or a uint8 array (H, W, 3) whose colour order `colours` names: "RGB",
        or "BGR" as OpenCV reads it. Raises ImageError for an image that cannot be used, and
        UnknownNameError for a task that the bundle does not have.
        """
        specs = self._specs(tasks)
        pixels = as_rgb(image, colours)
        manifest = self.bundle.manifest
        place = Placement(pixels.shape[:2], manifest.image_size, manifest.fit)
        red, green, blue = (round(255 * value) for value in manifest.mean)
        network = place.apply(pixels, fill=(red, green, blue))
        outputs = self._session.run(network[None], [spec.name for spec in specs])
        return {
            spec.name: Prediction(spec, restore(outputs[spec.name][0], spec, place), pixels)
            for spec in specs
        }

    def _specs(self, tasks: Sequence[str] | None) -> list[TaskSpec]:
        if tasks is None:
            return list(self.bundle.manifest.tasks)
        if isinstance(tasks, str):
            tasks = [tasks]
        return [self.bundle.manifest.task(name) for name in dict.fromkeys(tasks)]

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


def as_rgb(image: Path | str | NDArray[Any], colours: ColourOrder | None) -> Pixels:
    """Read a path, or check an array and bring it to RGB."""
    if isinstance(image, (str, Path)):
        if colours is not None:
            raise ImageError("colours= is for arrays; a file says itself how its colours lie")
        return read_image(Path(image))
    if colours not in ("RGB", "BGR"):
        raise ImageError(f'an array needs colours="RGB" or colours="BGR"; got {colours!r}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(
            f"the array is {image.dtype} {image.shape}; it must be uint8 (height, width, 3)"
        )
    return np.ascontiguousarray(image if colours == "RGB" else image[..., ::-1])


def restore(output: NDArray[Any], spec: TaskSpec, place: Placement) -> NDArray[Any]:
    """Bring one head's output, (H, W) or (C, H, W), from the network's size to the image's."""
    values = np.moveaxis(output, 0, -1) if output.ndim == 3 else output
    return kind_named(spec.kind).resize(place.crop(values), place.source)
