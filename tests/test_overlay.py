"""The overlay: one picture of a scene, with names of classes and values on the bar."""

from typing import Any

import cv2
import numpy as np
import pytest

from simo_runtime import overlay
from simo_runtime.draw import palette
from simo_runtime.overlay import OPACITY, compose, panel_size
from simo_runtime.predictor import Prediction
from simo_runtime.tasks import KINDS, TaskSpec

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
    high, wide = panel_size(120, 160)
    left = overlay.MARGIN + wide + overlay.MARGIN
    top = overlay.MARGIN + overlay.LINE + high
    np.testing.assert_array_equal(picture[top + 8, left + 5], expected)
    # the panel itself: the same colour, since the photo is that grey
    np.testing.assert_allclose(picture[top - 20, left + 40], expected, atol=1)


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=lambda kind: kind.name)
def test_every_kind_can_be_drawn(kind: Any) -> None:
    labels = ("a", "b") if kind.channels is None else ()
    spec = TaskSpec(
        name="x", kind=kind.name, channels=kind.channels or 2, metric=kind.metrics[0], labels=labels
    )
    shape = (120, 160, 3) if kind.channels == 3 else (120, 160)
    values = np.zeros(shape, np.uint8 if labels else np.float32)
    picture = compose({"x": Prediction(spec, values, PHOTO)})
    assert picture.dtype == np.uint8
    assert picture.ndim == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 20), (4000, 6000), (480, 640)])
def test_any_photo_gives_a_picture_of_a_reasonable_size(size: tuple[int, int]) -> None:
    photo = np.zeros((*size, 3), np.uint8)
    spec = seg(np.zeros(size, np.uint8)).task
    picture = compose({"seg": Prediction(spec, np.zeros(size, np.uint8), photo)})
    assert max(picture.shape) < 2200
    high, wide = panel_size(*size)
    assert high >= 1
    assert wide >= 1


def test_names_that_the_font_lacks_do_not_break_it(written: list[str]) -> None:
    compose({"seg": seg(np.zeros((120, 160), np.uint8), ("stühle", "b"))})
    assert "st?hle" in written
