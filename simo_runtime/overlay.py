"""One picture of a whole scene: the photo, every prediction over it, and what the colours mean.

Everything is RGB, uint8. Panels stand in rows; under each are the names of classes beside their
colours, a bar with values in their unit, or a line of words.
"""

import math
from collections.abc import Mapping

import cv2
import numpy as np

from simo_runtime.draw import Limits, Pixels, blend, palette, range_of
from simo_runtime.predictor import Prediction
from simo_runtime.tasks import Kind, kind_named

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
    size = panel_size(photo.shape[0], photo.shape[1])
    small = np.asarray(cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    cells = [_cell(small, "photo", _paper(0, size[1]))]
    cells += [_task(one, small, every_class=every_class) for one in predictions]
    return _grid(cells)


def panel_size(high: int, wide: int) -> tuple[int, int]:
    """Give height and width of a panel for a photo: neither tiny nor huge, the same shape."""
    scale = min(max(wide, NARROWEST), WIDEST) / wide
    scale = min(scale, TALLEST / high)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _task(prediction: Prediction, photo: Pixels, *, every_class: bool) -> Pixels:
    kind = kind_named(prediction.task.kind)
    values = kind.resize(prediction.values, (photo.shape[0], photo.shape[1]))
    limits = range_of(values) if kind.scale else (0.0, 1.0)
    colours = kind.scale.colour(values, limits) if kind.scale else kind.colour(values)
    legend = _legend(prediction, kind, limits, photo.shape[1], every_class=every_class)
    return _cell(blend(photo, colours, opacity=OPACITY), prediction.task.name, legend)


def _legend(
    prediction: Prediction, kind: Kind, limits: Limits, wide: int, *, every_class: bool
) -> Pixels:
    if prediction.labels:
        return _classes(prediction, wide, every_class=every_class)
    if kind.scale is not None:
        return _bar(kind, limits, wide)
    return _words(kind.key or kind.unit, wide)


def _classes(prediction: Prediction, wide: int, *, every_class: bool) -> Pixels:
    """Name classes beside their colours, in columns; those that are seen, by their share."""
    names, colours = prediction.labels, palette(len(prediction.labels))
    counts = np.bincount(prediction.values.ravel(), minlength=len(names))[: len(names)]
    shown = [
        index
        for index in np.argsort(-counts, kind="stable")
        if counts[index] >= max(1.0, SEEN * prediction.values.size)
    ]
    if every_class:
        shown = list(range(len(names)))
    widest = max((_width(names[index]) for index in shown), default=0)
    columns = max(1, wide // (widest + 2 * LINE + MARGIN))
    paper = _paper(math.ceil(len(shown) / columns), wide)
    for place, index in enumerate(shown):
        x, y = (place % columns) * (wide // columns), (place // columns) * LINE
        _box(paper, x + 2, y + 3, colours[index])
        _write(paper, names[index], x + LINE, y)
    return paper


def _box(paper: Pixels, x: int, y: int, colour: Pixels) -> None:
    # As it looks over a grey photo, since that is how it is seen.
    seen = np.rint(OPACITY * colour + (1 - OPACITY) * 128)
    paper[y : y + LINE - 6, x : x + LINE - 6] = seen.astype(np.uint8)


def _bar(kind: Kind, limits: Limits, wide: int) -> Pixels:
    """Draw the scale of colours from low to high, with ticks in the unit."""
    assert kind.scale is not None  # the caller has looked
    low, high = limits
    paper = _paper(2, wide)
    ramp = np.linspace(low, high, wide - 2 * MARGIN, dtype=np.float32)[None]
    paper[3 : LINE - 3, MARGIN : wide - MARGIN] = kind.scale.colour(ramp, limits)
    texts = [kind.scale.tick(float(value)) for value in np.linspace(low, high, TICKS)]
    room = (wide - 2 * MARGIN) / max(1, max(_width(text) for text in texts) + MARGIN)
    step = 1 if room >= TICKS else 2 if room >= 3 else 4
    for index in range(0, TICKS, step):
        middle = MARGIN + index * (wide - 2 * MARGIN - 1) // (TICKS - 1)
        paper[LINE - 3 : LINE + 1, middle] = INK
        left = middle - _width(texts[index]) // 2
        left = min(max(left, 0), max(0, wide - _width(texts[index])))
        _write(paper, texts[index], left, LINE)
    return paper


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
    head = _paper(1, picture.shape[1])
    _write(head, title, 2, 0)
    return np.concatenate([head, picture, legend])


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
    cv2.putText(paper, _plain(text), at, FONT, SCALE, INK, 1, cv2.LINE_AA)


def _width(text: str) -> int:
    return int(cv2.getTextSize(_plain(text), FONT, SCALE, 1)[0][0])


def _plain(text: str) -> str:
    # OpenCV's font has the characters of ASCII.
    return text.encode("ascii", "replace").decode()
