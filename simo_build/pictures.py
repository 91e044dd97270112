"""Pictures for a report: what models say of a few images, beside the truth, as JPEG.

Shapes: n images, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.data import Samples
from simo_runtime.draw import Limits, Pixels, palette, range_of
from simo_runtime.tasks import Kind, TaskSpec, kind_named, without_truth

Array = NDArray[Any]
WIDEST = 320  # pixels of a picture in the report
QUALITY = 88
BAR = 128  # pixels of a bar of colours


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What the colours of a task's pictures mean: classes, or a bar with ticks, or a line."""

    classes: tuple[tuple[str, str], ...] = ()  # name, and colour as #rrggbb
    bar: bytes = b""  # PNG, from the first tick to the last
    ticks: tuple[str, ...] = ()
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The pictures of one task: a row for every image, a JPEG for every column."""

    task: str
    columns: tuple[str, ...]
    rows: tuple[tuple[bytes, ...], ...]
    legend: Legend


def strip(spec: TaskSpec, samples: Samples, predicted: Mapping[str, Array]) -> Strip:
    """Draw input, truth and the predictions (n, ...) of some models, by their names.

    All maps of values are drawn over one range, that of the truth, so that they can be compared;
    where there is no truth, over that of all predictions.
    """
    kind, truth = kind_named(spec.kind), samples.truths.get(spec.name)
    if truth is None:
        return _untrue(spec, samples, predicted)
    gone = np.stack([without_truth(one, kind) for one in truth])
    limits = limits_over(kind, truth, gone, predicted)
    drawn = [np.stack([draw(one, kind, limits) for one in _plain(truth)])]
    drawn[0][gone] = 0
    drawn += [np.stack([draw(one, kind, limits) for one in maps]) for maps in predicted.values()]
    columns = [samples.images, *drawn]
    return Strip(
        task=spec.name,
        columns=("input", "truth", *predicted),
        rows=tuple(tuple(jpeg(column[row]) for column in columns) for row in range(len(truth))),
        legend=legend(spec, kind, limits, [truth, *predicted.values()]),
    )


def _untrue(spec: TaskSpec, samples: Samples, predicted: Mapping[str, Array]) -> Strip:
    kind, maps = kind_named(spec.kind), list(predicted.values())
    limits = range_of(np.stack(maps)) if kind.scale is not None else (0.0, 1.0)
    drawn = [np.stack([draw(one, kind, limits) for one in found]) for found in maps]
    columns = [samples.images, *drawn]
    return Strip(
        task=spec.name,
        columns=("input", *predicted),
        rows=tuple(tuple(jpeg(column[row]) for column in columns) for row in range(len(samples))),
        legend=legend(spec, kind, limits, maps),
    )


def draw(values: Array, kind: Kind, limits: Limits) -> Pixels:
    """Colour one map; of single values over the limits."""
    return kind.colour(values) if kind.scale is None else kind.scale.colour(values, limits)


def limits_over(
    kind: Kind, truth: Array, gone: NDArray[np.bool_], predicted: Mapping[str, Array]
) -> Limits:
    """Give the range of the truth, or of the predictions where there is none."""
    if kind.scale is None:
        return 0.0, 1.0
    known = truth[~gone]
    return range_of(known if known.size else np.stack([*predicted.values()]))


def legend(spec: TaskSpec, kind: Kind, limits: Limits, maps: Sequence[Array]) -> Legend:
    """Say what the colours mean; of classes, those that are seen."""
    if kind.channels is None:
        seen = np.unique(np.concatenate([np.unique(one) for one in maps]))
        colours = palette(len(spec.labels))
        pairs = [(spec.labels[i], colours[i]) for i in map(int, seen) if i < len(spec.labels)]
        return Legend(classes=tuple((name, f"#{colour.tobytes().hex()}") for name, colour in pairs))
    if kind.scale is None:
        return Legend(line=kind.key)
    low, high = limits
    ramp = kind.scale.colour(np.linspace(low, high, BAR, dtype=np.float32)[None], limits)
    ticks = kind.scale.ticks(limits, 3)
    return Legend(bar=encoded(".png", np.repeat(ramp, 2, axis=0)), ticks=tuple(ticks))


def _plain(truth: Array) -> Array:
    """Bring a truth to the type of predictions: it may be kept in half precision."""
    return truth.astype(np.float32) if truth.dtype == np.float16 else truth


def jpeg(picture_HW3: Pixels) -> bytes:
    """Encode a picture, no wider than a report needs."""
    high, wide = picture_HW3.shape[:2]
    if wide > WIDEST:
        size = (WIDEST, max(1, round(high * WIDEST / wide)))
        picture_HW3 = np.asarray(cv2.resize(picture_HW3, size, interpolation=cv2.INTER_AREA))
    return encoded(".jpg", picture_HW3, cv2.IMWRITE_JPEG_QUALITY, QUALITY)


def encoded(suffix: str, picture_HW3: Pixels, *options: int) -> bytes:
    """Encode an RGB picture in memory."""
    done, data = cv2.imencode(suffix, np.ascontiguousarray(picture_HW3[..., ::-1]), [*options])
    assert done  # these two encoders are part of OpenCV
    return bytes(data)
