"""The overlay: one picture of a scene, with names of classes and values on the bar."""

from typing import Any

import cv2
import numpy as np
import pytest

from simo_runtime import overlay
from simo_runtime.draw import palette
from simo_runtime.overlay import NARROWEST, OPACITY, compose, photo_size
from simo_runtime.predictor import Prediction
from simo_runtime.tasks import KINDS, Kind, TaskSpec

PHOTO = np.full((120, 160, 3), 128, np.uint8)


def seg(values: Any, labels: tuple[str, ...] = ("wall", "floor", "lamp")) -> Prediction:
    spec = TaskSpec(
        name="seg", kind="segmentation", channels=len(labels), metric="mean_iou", labels=labels
    )
    return Prediction(spec, values, PHOTO)


def depth(values: Any) -> Prediction:
    spec = TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error")
    return Prediction(spec, values, PHOTO)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is written into pictures."""
    texts: list[str] = []
    real = cv2.putText

    def put(paper: Any, text: str, *rest: Any) -> Any:
        texts.append(text)
        return real(paper, text, *rest)

    monkeypatch.setattr(overlay.cv2, "putText", put)
    return texts


def test_classes_that_are_seen_are_named_by_their_share(written: list[str]) -> None:
    values = np.zeros((120, 160), np.uint8)
    values[:100] = 2
    compose({"seg": seg(values)})
    assert written == ["photo", "lamp", "wall", "seg"]


def test_every_class_can_be_named_so_that_frames_are_as_large(written: list[str]) -> None:
    one = compose({"seg": seg(np.zeros((120, 160), np.uint8))}, every_class=True)
    other = compose({"seg": seg(np.full((120, 160), 2, np.uint8))}, every_class=True)
    assert one.shape == other.shape
    assert written[1:4] == ["wall", "floor", "lamp"]


def test_the_bar_of_depth_has_metres_from_near_to_far(written: list[str]) -> None:
    values = np.linspace(1.0, 5.0, 160, dtype=np.float32)[None].repeat(120, axis=0)
    compose({"depth": depth(values)})
    ticks = [text for text in written if text.endswith(" m")]
    assert ticks == ["1.0 m", "2.0 m", "3.0 m", "4.0 m", "5.0 m"]


def test_a_swatch_has_the_colour_of_its_class_over_grey() -> None:
    picture = compose({"seg": seg(np.ones((120, 160), np.uint8))})
    expected = np.rint(OPACITY * palette(3)[1] + (1 - OPACITY) * 128)
    high, wide = photo_size(120, 160)
    left = overlay.MARGIN + wide + overlay.MARGIN
    top = overlay.MARGIN + overlay.LINE + high
    np.testing.assert_array_equal(picture[top + 8, left + 5], expected)
    # the panel itself: the same colour, since the photo is that grey
    np.testing.assert_allclose(picture[top - 20, left + 40], expected, atol=1)


def of_kind(kind: Kind, size: tuple[int, int]) -> Prediction:
    """Predict nothing much of a grey photo."""
    labels = ("a", "b") if kind.channels is None else ()
    spec = TaskSpec(
        name="x", kind=kind.name, channels=kind.channels or 2, metric=kind.metrics[0], labels=labels
    )
    shape = (*size, 3) if kind.channels == 3 else size
    values = np.zeros(shape, np.uint8 if labels else np.float32)
    values.reshape(size[0], -1)[size[0] // 2 :] = 1
    return Prediction(spec, values, np.full((*size, 3), 128, np.uint8))


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 500), (700, 10), (3000, 20), (480, 640), (1200, 1600), (1, 60000), (60000, 1)],
    ids=lambda size: f"{size[1]}x{size[0]}",
)
def test_every_kind_of_any_photo_gives_a_picture_of_a_reasonable_size(
    kind: Kind, size: tuple[int, int]
) -> None:
    picture = compose({"x": of_kind(kind, size)})
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert max(picture.shape) < 2200
    assert picture.shape[1] >= 2 * NARROWEST


def test_a_photo_that_is_narrower_than_its_legend_stands_on_paper() -> None:
    picture = compose({"depth": of_kind(KINDS["depth"], (700, 10))})
    high, wide = photo_size(700, 10)
    assert wide < 20
    top, left = overlay.MARGIN + overlay.LINE, overlay.MARGIN
    assert (picture[top : top + high, left : left + wide] == 128).all()
    assert (picture[top : top + high, left + wide : left + NARROWEST] == 255).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.08, 1.14, ["1.08 m", "1.10 m", "1.11 m", "1.12 m", "1.14 m"]),
        (2.0, 2.0, ["2.0 m"]),
        (0.0, 4000.0, ["0.0 m", "1000.0 m", "2000.0 m", "3000.0 m", "4000.0 m"]),
    ],
)
def test_ticks_have_as_many_digits_as_make_them_differ(
    written: list[str], low: float, high: float, expected: list[str]
) -> None:
    values = np.full((480, 640), low, np.float32)
    values[240:] = high
    compose({"depth": Prediction(depth(values).task, values, np.zeros((480, 640, 3), np.uint8))})
    assert [text for text in written if text.endswith(" m")] == expected


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-0.3, 0.9), (0.5, 0.500002), (0.7, 123456.0)])
@pytest.mark.parametrize("wide", [NARROWEST, overlay.WIDEST])
@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k.scale], ids=lambda k: k.name)
def test_texts_of_ticks_differ_and_do_not_meet(
    kind: Kind, wide: int, limits: tuple[float, float]
) -> None:
    assert kind.scale is not None
    if kind.name == "log_depth":  # 2 would be billions of metres
        limits = (limits[0], min(limits[1], 1.0))
    ticks = overlay._ticks(kind.scale, limits, wide)
    texts = [text for _, _, text in ticks]
    assert len(set(texts)) == len(texts) >= 2
    assert not any("e" in text for text in texts)
    ends = [left + overlay._width(text) for _, left, text in ticks]
    assert all(end < left for end, (_, left, _) in zip(ends, ticks[1:], strict=False))
    assert ticks[0][1] >= 0
    assert ends[-1] <= wide


def test_names_are_written_in_their_own_letters(written: list[str]) -> None:
    compose({"seg": seg(np.zeros((120, 160), np.uint8), ("stühle", "b"))})
    assert "stühle" in written
    drawn = [overlay._paper(1, 80) for _ in range(2)]
    for paper, text in zip(drawn, ("stühle", "st?hle"), strict=True):
        overlay._write(paper, text, 0, 0)
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize("name", ["two\nlines", "half \ud800", "椅子", ""])
def test_no_name_breaks_it(name: str, written: list[str]) -> None:
    compose({"seg": seg(np.zeros((120, 160), np.uint8), (name, "b"))})
    assert all(text.isprintable() for text in written)
