"""Pictures of a report: one range for all maps of values, and legends that say what is seen."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_build.data import Samples
from simo_build.pictures import WIDEST, jpeg, strip
from simo_runtime.draw import colour_depth, colour_labels
from simo_runtime.tasks import KINDS, TaskSpec, without_truth

Array = NDArray[Any]
SIZE = (24, 32)


def spec(kind: str, labels: tuple[str, ...] = ()) -> TaskSpec:
    entry = KINDS[kind]
    channels = len(labels) if entry.channels is None else entry.channels
    return TaskSpec(
        name="task", kind=kind, channels=channels, metric=entry.metrics[0], labels=labels
    )


def samples(truth: Array) -> Samples:
    images = np.full((len(truth), *SIZE, 3), 90, np.uint8)
    return Samples(images, {"task": truth})


def seen(data: bytes) -> NDArray[np.int64]:
    """The RGB pixels of an encoded picture."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[..., ::-1].astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_picture_for_every_model_and_something_to_read_it_by(kind: str) -> None:
    entry, draw = KINDS[kind], np.random.default_rng(0)
    labels = ("wall", "floor") if entry.channels is None else ()
    shape = (2, *SIZE, 3) if entry.channels == 3 else (2, *SIZE)
    truth = draw.integers(0, 2, shape).astype(np.uint8) if labels else draw.uniform(0.1, 1, shape)
    truth[:, :4] = 255 if labels else entry.empty
    if entry.channels == 3:
        truth = truth.astype(np.float16)  # as splits are kept
    predicted = {"expert": truth.copy(), "merged": truth.copy()}
    found = strip(spec(kind, labels), samples(truth), predicted)
    assert found.columns == ("input", "truth", "expert", "merged")
    assert [len(row) for row in found.rows] == [4, 4]
    assert all(seen(data).shape == (*SIZE, 3) for row in found.rows for data in row)
    assert seen(found.rows[0][1])[:2].max() < 24  # no truth is black
    legend = found.legend
    assert bool(legend.classes) + bool(legend.bar) + bool(legend.line) == 1
    assert bool(entry.scale) == bool(legend.bar) == (entry.channels == 1)


def test_maps_of_values_share_the_range_of_the_truth() -> None:
    truth = np.linspace(2.0, 4.0, 2 * 24 * 32, dtype=np.float32).reshape(2, *SIZE)
    truth[0, 0] = 0.0  # no truth: it must not stretch the range
    found = strip(spec("depth"), samples(truth), {"expert": truth + 1.0})
    low, high = np.percentile(truth[truth > 0], (1, 99))
    expected = colour_depth(truth[1] + 1.0, (float(low), float(high)))
    np.testing.assert_allclose(seen(found.rows[1][2]), expected, atol=24)  # a JPEG
    assert found.legend.ticks == ("2.1 m", "3.0 m", "4.0 m")  # 1 to 99 percent
    bar = seen(found.legend.bar)
    ends = colour_depth(np.array([[low, high]], np.float32), (float(low), float(high)))[0]
    np.testing.assert_array_equal(bar[0, [0, -1]], ends)


def test_log_depth_is_read_in_metres() -> None:
    truth = np.linspace(0.6, 0.7, 24 * 32, dtype=np.float32).reshape(1, *SIZE)
    ticks = strip(spec("log_depth"), samples(truth), {"expert": truth}).legend.ticks
    assert ticks == ("1.5 m", "2.6 m", "4.5 m")


def test_the_legend_has_the_classes_that_are_seen_in_their_colours() -> None:
    labels = ("wall", "floor", "bed", "lamp")
    truth = np.zeros((1, *SIZE), np.uint8)
    truth[0, :3] = 255
    found = strip(spec("segmentation", labels), samples(truth), {"expert": truth * 0 + 2})
    assert [name for name, _ in found.legend.classes] == ["wall", "bed"]
    red, green, blue = colour_labels(np.array([[2]]))[0, 0]
    assert found.legend.classes[1][1] == f"#{red:02x}{green:02x}{blue:02x}"


def test_a_large_picture_is_made_smaller() -> None:
    assert seen(jpeg(np.zeros((600, 800, 3), np.uint8))).shape == (240, WIDEST, 3)


def test_without_truth_is_what_metrics_pass_over() -> None:
    normals = np.zeros((2, 2, 3), np.float16)
    normals[0, 0] = (0, 1, 0)
    np.testing.assert_array_equal(
        without_truth(normals, KINDS["normals"]), [[False, True], [True, True]]
    )
    edges = np.array([[np.nan, 0.0]])
    np.testing.assert_array_equal(without_truth(edges, KINDS["edges"]), [[True, False]])
