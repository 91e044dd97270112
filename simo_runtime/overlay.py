"""One picture of a whole scene: the photo, every prediction over it, and what the colours mean.

Everything is RGB, uint8. Panels stand in rows; under each are the names of classes beside their
colours, a bar with values in their unit, or a line of words.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import cv2
import numpy as np

from simo_runtime.draw import Limits, Pixels, blend, palette, range_of
from simo_runtime.predictor import Prediction
from simo_runtime.tasks import Scale, kind_named

WIDEST, NARROWEST = 640, 280  # pixels of a panel
TALLEST = 960
MARGIN, LINE, TICKS = 8, 18, 5
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
INK, PAPER = (20, 20, 20), (255, 255, 255)
OPACITY = 0.6
SEEN = 0.001  # of the picture, for a class to be named in it


def compose(scene: Mapping[str, Prediction], *, every_class: bool = False) -> Pixels:
    """Draw a scene. With `every_class` all classes are named, so that every frame is as large."""
    predictions = list(scene.values())
    photo = predictions[0].image
    size = photo_size(photo.shape[0], photo.shape[1])
    small = np.asarray(cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    wide = max(size[1], NARROWEST)  # a legend has this much room, however narrow the photo
    cells = [_cell(small, "photo", _paper(0, wide))]
    cells += [_task(one, small, wide, every_class=every_class) for one in predictions]
    return _grid(cells)


def photo_size(high: int, wide: int) -> tuple[int, int]:
    """Give height and width of a photo in its panel: neither tiny nor huge, the same shape."""
    scale = min(max(wide, NARROWEST), WIDEST) / wide
    scale = min(scale, TALLEST / high)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _task(prediction: Prediction, photo: Pixels, wide: int, *, every_class: bool) -> Pixels:
    kind = kind_named(prediction.task.kind)
    values = kind.resize(prediction.values, (photo.shape[0], photo.shape[1]))
    limits = range_of(values) if kind.scale else (0.0, 1.0)
    colours = kind.scale.colour(values, limits) if kind.scale else kind.colour(values)
    if prediction.labels:
        legend = _classes(prediction, None if every_class else values, wide)
    elif kind.scale is not None:
        legend = _bar(kind.scale, limits, wide)
    else:
        legend = _words(kind.key or kind.unit, wide)
    return _cell(blend(photo, colours, opacity=OPACITY), prediction.task.name, legend)


def _classes(prediction: Prediction, seen_HW: Pixels | None, wide: int) -> Pixels:
    """Name classes beside their colours, in columns: all, or by their share those seen."""
    names, colours = prediction.labels, palette(len(prediction.labels))
    shown = list(range(len(names))) if seen_HW is None else _by_share(seen_HW, len(names))
    widest = max((_width(names[index]) for index in shown), default=0)
    columns = max(1, wide // (widest + 2 * LINE + MARGIN))
    paper = _paper(math.ceil(len(shown) / columns), wide)
    for place, index in enumerate(shown):
        x, y = (place % columns) * (wide // columns), (place // columns) * LINE
        _box(paper, x + 2, y + 3, colours[index])
        _write(paper, names[index], x + LINE, y)
    return paper


def _by_share(labels_HW: Pixels, classes: int) -> list[int]:
    """List the classes that can be seen in a panel, the largest first."""
    counts = np.bincount(labels_HW.ravel(), minlength=classes)[:classes]
    least = max(1.0, SEEN * labels_HW.size)
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] >= least]


def _box(paper: Pixels, x: int, y: int, colour: Pixels) -> None:
    # As it looks over a grey photo, since that is how it is seen.
    seen = np.rint(OPACITY * colour + (1 - OPACITY) * 128)
    paper[y : y + LINE - 6, x : x + LINE - 6] = seen.astype(np.uint8)


def _bar(scale: Scale, limits: Limits, wide: int) -> Pixels:
    """Draw the scale of colours from low to high, with ticks in the unit."""
    paper = _paper(2, wide)
    ramp = np.linspace(*limits, wide - 2 * MARGIN, dtype=np.float32)[None]
    paper[3 : LINE - 3, MARGIN : wide - MARGIN] = scale.colour(ramp, limits)
    for middle, left, text in _ticks(scale, limits, wide):
        paper[LINE - 3 : LINE + 1, middle] = INK
        _write(paper, text, left, LINE)
    return paper


def _ticks(scale: Scale, limits: Limits, wide: int) -> list[tuple[int, int, str]]:
    """Place ticks below a bar: where each is, where its text starts, and the text.

    All five, or three, or the two ends: as many as have room beside each other.
    """
    texts = scale.ticks(limits, TICKS)
    if len(texts) == 1:
        return [(wide // 2, (wide - _width(texts[0])) // 2, texts[0])]
    ticks = []
    for index, text in enumerate(texts):
        middle = MARGIN + index * (wide - 2 * MARGIN - 1) // (TICKS - 1)
        left = min(middle - _width(text) // 2, wide - _width(text))
        ticks.append((middle, max(left, 0), text))
    return next((some for some in (ticks, ticks[::2]) if _fit(some)), ticks[::4])


def _fit(ticks: Sequence[tuple[int, int, str]]) -> bool:
    return all(
        left + _width(text) + MARGIN <= following
        for (_, left, text), (_, following, _) in pairwise(ticks)
    )


def _words(text: str, wide: int) -> Pixels:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer) > wide - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    paper = _paper(len(lines), wide)
    for index, line in enumerate(lines):
        _write(paper, line, 2, index * LINE)
    return paper


def _cell(picture: Pixels, title: str, legend: Pixels) -> Pixels:
    """Put a picture under its title and above its legend, which is as wide as the panel."""
    panel = np.full((picture.shape[0], legend.shape[1], 3), PAPER, np.uint8)
    panel[:, : picture.shape[1]] = picture
    head = _paper(1, legend.shape[1])
    _write(head, title, 2, 0)
    return np.concatenate([head, panel, legend])


def _grid(cells: list[Pixels]) -> Pixels:
    """Put cells of one width into rows, each as high as its highest."""
    columns = math.ceil(math.sqrt(len(cells)))
    wide = cells[0].shape[1]
    rows = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        high = max(cell.shape[0] for cell in row)
        paper = np.full((high + MARGIN, columns * (wide + MARGIN) + MARGIN, 3), PAPER, np.uint8)
        for place, cell in enumerate(row):
            left = MARGIN + place * (wide + MARGIN)
            paper[MARGIN : MARGIN + cell.shape[0], left : left + wide] = cell[: high + MARGIN]
        rows.append(paper)
    return np.concatenate(rows)


def _paper(lines: int, wide: int) -> Pixels:
    return np.full((lines * LINE, wide, 3), PAPER, np.uint8)


def _write(paper: Pixels, text: str, x: int, y: int) -> None:
    """Write one line whose box starts at (x, y)."""
    at = (x, y + LINE - 5)
    cv2.putText(paper, _printable(text), at, FONT, SCALE, INK, 1, cv2.LINE_AA)


def _width(text: str) -> int:
    return int(cv2.getTextSize(_printable(text), FONT, SCALE, 1)[0][0])


def _printable(text: str) -> str:
    # OpenCV breaks lines by itself, and crashes on half of a surrogate pair.
    return "".join(one if one.isprintable() else "?" for one in text)
