"""What a task is, and what its kind means: units, how a prediction is resized, drawn and summed up.

A task has a short name (`seg`) and a kind (`segmentation`). KINDS is an open registry: a new kind
is one entry here and one loss in `simo_build.losses`.

Shapes: H x W pixels of the image. The arrays of a prediction are
    segmentation   (H, W)     uint8, class indices
    parts          (H, W)     uint8, class indices of the parts of things; background is a class
    depth          (H, W)     float32, metres along the optical axis
    log_depth      (H, W)     float32, the same on the scale of `scales.log_depth`, 0 to 1
    disparity      (H, W)     float32, 0 or more, on the scale of the data; large is near
    normals        (H, W, 3)  float32, unit vectors; x right, y down, z forward
    edges          (H, W)     float32, how strong an edge is, -1 (none) to 1
    keypoints      (H, W)     float32, how strong a keypoint is, -1 (none) to 1
    autoencoding   (H, W, 3)  float32, the image itself, RGB, -1 to 1
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_runtime.draw import (
    LEAST_SPAN,
    Limits,
    colour_depth,
    colour_disparity,
    colour_labels,
    colour_normals,
    colour_picture,
    colour_strength,
)
from simo_runtime.errors import unknown
from simo_runtime.metrics import IGNORE
from simo_runtime.pixels import (
    byte_labels,
    byte_normals,
    byte_picture,
    millimetres,
    sixteen_bits,
    sixteen_bits_signed,
)
from simo_runtime.scales import metres

FINER = 8  # precisions of a tick that are tried, each with a digit more

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One dense prediction: its name, its kind and what its channels mean."""

    name: str
    kind: str
    channels: int  # of the head's raw output: classes, 1 for values, 3 for vectors and colours
    metric: str
    labels: tuple[str, ...] = ()  # class names, in order; empty unless the kind has classes


@dataclass(frozen=True)
class Scale:
    """How maps of single values are drawn so that they can be compared, and what a value is called.

    `colour` draws a map over limits, `tick` names a value on the bar beside it, with its unit and
    with so many digits more than usual.
    """

    colour: Callable[[Array, Limits], NDArray[np.uint8]]
    tick: Callable[[float, int], str]

    def ticks(self, limits: Limits, count: int) -> list[str]:
        """Name values from limit to limit, with digits that make them differ; one if all are one.

        What differs by less than a colour does is one value.
        """
        low, high = limits
        if high - low < LEAST_SPAN:
            return [self.tick(low, 0)]
        values = [float(value) for value in np.linspace(low, high, count)]
        finer = ([self.tick(value, more) for value in values] for more in range(FINER))
        return next((texts for texts in finer if len(set(texts)) == count), [self.tick(low, 0)])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What all tasks of one kind share."""

    name: str
    unit: str
    channels: int | None  # None: one per label
    metrics: tuple[str, ...]  # the first is the default
    resize: Callable[[Array, tuple[int, int]], Array]  # to (height, width)
    colour: Callable[[Array], NDArray[np.uint8]]  # to RGB (H, W, 3)
    summary: Callable[[Array, tuple[str, ...]], str]
    encode: Callable[[Array], Array]  # to the pixels of a PNG file, BGR as OpenCV writes them
    empty: float = 0.0  # the truth of a pixel that has none; of a vector, in every component
    scale: Scale | None = None  # of kinds with one channel
    key: str = ""  # what colours mean, of kinds that have neither labels nor a scale


KINDS: dict[str, Kind] = {}


def register_kind(kind: Kind) -> Kind:
    """Add a kind of task; a name that is taken is refused."""
    if kind.name in KINDS:
        raise ValueError(f"the kind of task {kind.name!r} is there already")
    KINDS[kind.name] = kind
    return kind


def kind_named(name: str) -> Kind:
    """Look a kind of task up, or say which ones there are."""
    if name not in KINDS:
        raise unknown("kind of task", name, KINDS)
    return KINDS[name]


def resize_labels(labels_HW: Array, size: tuple[int, int]) -> Array:
    """Resize class indices to (height, width) without inventing new ones.

    Enlarging gives every pixel the class whose mask, enlarged linearly, is strongest there, so that
    borders become smooth lines and not stairs; shrinking takes the nearest pixel's.
    """
    classes = np.unique(labels_HW)
    shrinks = size[0] < labels_HW.shape[0] or size[1] < labels_HW.shape[1]
    if shrinks or len(classes) == 1:
        method = cv2.INTER_NEAREST_EXACT
        return np.asarray(cv2.resize(labels_HW, size[::-1], interpolation=method))
    resized_HW = np.full(size, classes[0], labels_HW.dtype)
    strongest_HW: Array = np.zeros(size, np.uint8)
    for index in classes:
        mask = np.where(labels_HW == index, np.uint8(255), np.uint8(0))
        mask_HW = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.copyto(resized_HW, index, where=mask_HW > strongest_HW)
        strongest_HW = np.maximum(strongest_HW, mask_HW)
    return resized_HW


def resize_values(values_HW: Array, size: tuple[int, int]) -> Array:
    """Resize a map of values to (height, width), linearly."""
    return np.asarray(cv2.resize(values_HW, size[::-1], interpolation=cv2.INTER_LINEAR))


def resize_normals(normals_HW3: Array, size: tuple[int, int]) -> Array:
    """Resize unit vectors to (height, width), linearly, and make them unit vectors again."""
    resized = cv2.resize(normals_HW3, size[::-1], interpolation=cv2.INTER_LINEAR)
    # In float32 and in place: a 12-megapixel photo has 36 million numbers here.
    length_HW = np.sqrt(np.einsum("hwc,hwc->hw", resized, resized))
    length_HW1 = np.maximum(length_HW, np.float32(1e-12))[..., None]
    return np.asarray(np.divide(resized, length_HW1, out=resized))


def without_truth(truth: Array, kind: Kind) -> NDArray[np.bool_]:
    """Tell which pixels (H, W) of a truth have none."""
    gone = np.isnan(truth) if np.isnan(kind.empty) else truth == kind.empty
    return np.asarray(gone.all(axis=-1) if truth.ndim == 3 else gone)


def summarise_labels(labels_HW: Array, labels: tuple[str, ...]) -> str:
    """Name the four classes that cover most of the image; pixels without a class have no name."""
    counts = np.bincount(labels_HW.ravel(), minlength=len(labels))[: len(labels)]
    top = [index for index in np.argsort(-counts, kind="stable")[:4] if counts[index]]
    shares = (f"{labels[index]} {counts[index] / labels_HW.size:.0%}" for index in top)
    return ", ".join(shares) or "no class"


def summarise_depth(depth_HW: Array, labels: tuple[str, ...]) -> str:
    """Give the range, from 1 to 99 percent of the pixels, and the median in metres."""
    known = depth_HW[np.isfinite(depth_HW)]
    if not known.size:
        return "no depth"
    low, middle, high = np.percentile(known, (1, 50, 99))
    return f"{low:.2f} to {high:.2f} m, median {middle:.2f} m"


def summarise_normals(normals_HW3: Array, labels: tuple[str, ...]) -> str:
    """Say how much of the image faces up, down, sideways and the camera."""
    x, y, z = (normals_HW3[..., axis] for axis in range(3))
    up, down = (y < -0.7).mean(), (y > 0.7).mean()
    side, facing = (np.abs(x) > 0.7).mean(), (z < -0.7).mean()
    return f"{up:.0%} faces up, {down:.0%} down, {side:.0%} sideways, {facing:.0%} the camera"


def summarise_disparity(disparity_HW: Array, labels: tuple[str, ...]) -> str:
    """Give the range, from 1 to 99 percent of the pixels, and the median."""
    known = disparity_HW[np.isfinite(disparity_HW)]
    if not known.size:
        return "no disparity"
    low, middle, high = np.percentile(known, (1, 50, 99))
    return f"{low:.4f} to {high:.4f}, median {middle:.4f}"


def summarise_log_depth(log_HW: Array, labels: tuple[str, ...]) -> str:
    """Give the range and the median in metres."""
    return summarise_depth(metres(log_HW), labels)


def tick_log_depth(value: float, more: int) -> str:
    """Name a value in metres, with two digits that count, or more."""
    metre = round(float(metres(np.asarray(value))), 4 + more) + 0.0  # no minus before a zero
    text = np.format_float_positional(metre, precision=2 + more, fractional=False, trim="-")
    return f"{text} m"


def summarise_strength(strength_HW: Array, labels: tuple[str, ...]) -> str:
    """Give the mean, and how much of the image is over the middle of the scale."""
    known = strength_HW[np.isfinite(strength_HW)]
    if not known.size:
        return "nothing"
    return f"mean {known.mean():.2f} on -1 to 1, {(known > 0).mean():.0%} over 0"


def summarise_picture(picture_HW3: Array, labels: tuple[str, ...]) -> str:
    """Give the mean colour as RGB, 0 to 255."""
    mean_3 = np.nan_to_num(picture_HW3).mean(axis=(0, 1))
    red, green, blue = (round(float(value)) for value in np.clip((mean_3 + 1) * 127.5, 0, 255))
    return f"mean colour {red}, {green}, {blue}"


CLASSES = Kind(
    name="segmentation",
    unit="class index",
    channels=None,
    metrics=("mean_iou",),
    resize=resize_labels,
    colour=colour_labels,
    summary=summarise_labels,
    encode=byte_labels,
    empty=IGNORE,
)
STRENGTH = Kind(
    name="edges",
    unit="strength, -1 to 1",
    channels=1,
    metrics=("value_error",),
    resize=resize_values,
    colour=colour_strength,
    summary=summarise_strength,
    encode=sixteen_bits_signed,
    empty=float("nan"),
    scale=Scale(colour_strength, lambda value, more: f"{value:+z.{2 + more}f}"),
)
register_kind(CLASSES)
register_kind(replace(CLASSES, name="parts"))
register_kind(
    Kind(
        name="depth",
        unit="m",
        channels=1,
        metrics=("absolute_error",),
        resize=resize_values,
        colour=colour_depth,
        summary=summarise_depth,
        encode=millimetres,
        scale=Scale(colour_depth, lambda value, more: f"{value:z.{1 + more}f} m"),
    )
)
register_kind(
    Kind(
        name="log_depth",
        unit="ln(1 + 512 m) / ln(65536)",
        channels=1,
        metrics=("value_error",),
        resize=resize_values,
        colour=colour_depth,
        summary=summarise_log_depth,
        encode=sixteen_bits,
        empty=float("nan"),
        scale=Scale(colour_depth, tick_log_depth),
    )
)
register_kind(
    Kind(
        name="disparity",
        unit="as in the data",
        channels=1,
        metrics=("disparity_error",),
        resize=resize_values,
        colour=colour_disparity,
        summary=summarise_disparity,
        encode=sixteen_bits,
        scale=Scale(colour_disparity, lambda value, more: f"{value:z.{3 + more}f}"),
    )
)
register_kind(
    Kind(
        name="normals",
        unit="unit vector (x right, y down, z forward)",
        channels=3,
        metrics=("mean_angle", "component_error"),
        resize=resize_normals,
        colour=colour_normals,
        summary=summarise_normals,
        encode=byte_normals,
        key="red faces right, green up, blue the camera",
    )
)
register_kind(STRENGTH)
register_kind(replace(STRENGTH, name="keypoints"))
register_kind(
    Kind(
        name="autoencoding",
        unit="RGB, -1 to 1",
        channels=3,
        metrics=("value_error",),
        resize=resize_values,
        colour=colour_picture,
        summary=summarise_picture,
        encode=byte_picture,
        empty=float("nan"),
        key="the image itself",
    )
)
