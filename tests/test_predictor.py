"""The predictor: one encoder pass, the heads asked for, arrays at the image's own size."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from simo_runtime import ImageError, Predictor, UnknownNameError, backends
from simo_runtime.backends import load_backend
from simo_runtime.backends.onnxruntime_graph import Settings, open_graph
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError
from simo_runtime.pipeline import Pipeline
from simo_runtime.sources import Arrays
from tests.scenes import plain


@pytest.fixture(scope="module")
def predict(rooms_bundle: Path) -> Predictor:
    return Predictor.open(rooms_bundle)


@pytest.fixture(scope="module")
def photo(rooms_data: Path) -> Path:
    return rooms_data / "rooms" / "rgb" / "0001.jpg"


def noise(height: int, width: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (123, 77), (480, 640), (120, 160)])
def test_predictions_have_the_images_own_size(predict: Predictor, height: int, width: int) -> None:
    scene = predict(noise(height, width), colours="RGB")
    assert scene["seg"].values.shape == (height, width)
    assert scene["seg"].values.dtype == np.uint8
    assert scene["depth"].values.shape == (height, width)
    assert scene["depth"].values.dtype == np.float32
    assert scene["normals"].values.shape == (height, width, 3)
    assert scene["normals"].values.dtype == np.float32


def test_values_are_what_their_kind_promises(predict: Predictor, photo: Path) -> None:
    scene = predict(photo)
    assert scene["seg"].values.max() < len(scene["seg"].labels)
    assert (scene["depth"].values >= 0).all()
    assert 0.5 < np.median(scene["depth"].values) < 10
    lengths = np.linalg.norm(scene["normals"].values, axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-4)


def test_predictions_are_near_the_truth(predict: Predictor, rooms_data: Path) -> None:
    right, error = [], []
    for name in range(33, 41):  # the test split
        scene = predict(rooms_data / "rooms" / "rgb" / f"{name:04d}.jpg")
        folder = rooms_data / "rooms"
        label = cv2.imread(str(folder / "label" / f"{name:04d}.png"), cv2.IMREAD_UNCHANGED)
        depth = cv2.imread(str(folder / "depth" / f"{name:04d}.png"), cv2.IMREAD_UNCHANGED)
        assert label is not None
        assert depth is not None
        right.append((scene["seg"].values == label).mean())
        error.append(np.abs(scene["depth"].values - depth / 1000).mean())
    assert np.mean(right) > 0.6
    assert np.mean(error) < 0.6


def test_a_prediction_says_what_it_is(predict: Predictor, photo: Path) -> None:
    scene = predict(photo)
    assert scene["depth"].unit == "m"
    assert "wall" in scene["seg"].labels
    assert " m, median " in scene["depth"].summary()
    for prediction in scene.values():
        height, width = prediction.values.shape[:2]
        assert prediction.overlay().shape == (height, width, 3)
        assert prediction.overlay().dtype == np.uint8
        assert prediction.colours().shape == (height, width, 3)


def test_an_array_and_its_file_give_the_same(predict: Predictor, photo: Path) -> None:
    bgr = cv2.imread(str(photo))
    assert bgr is not None
    expected = predict(photo)["depth"].values
    np.testing.assert_array_equal(predict(bgr, colours="BGR")["depth"].values, expected)
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    np.testing.assert_array_equal(predict(rgb, colours="RGB")["depth"].values, expected)


def test_a_task_alone_is_what_it_is_among_all(predict: Predictor, photo: Path) -> None:
    alone = predict(photo, tasks=["normals"])
    assert list(alone) == ["normals"]
    np.testing.assert_array_equal(alone["normals"].values, predict(photo)["normals"].values)


class Counting:
    """Passes on to a session and counts what is asked of it."""

    def __init__(self, session: backends.Session) -> None:
        self.session, self.calls = session, list[list[str]]()

    def run(self, pixels_BHW3: backends.Pixels, tasks: Sequence[str]) -> backends.Outputs:
        self.calls.append(list(tasks))
        return self.session.run(pixels_BHW3, tasks)

    def identity(self) -> Mapping[str, str]:
        return self.session.identity()

    def close(self) -> None:
        self.session.close()


def test_all_tasks_take_one_pass(rooms_bundle: Path) -> None:
    bundle = Bundle.open(rooms_bundle)
    session = Counting(backends.choose(None).open(bundle, threads=1))
    Predictor(bundle, session)(noise(50, 50), colours="RGB")
    assert session.calls == [["seg", "depth", "normals"]]


def test_only_the_heads_asked_for_are_loaded(rooms_bundle: Path) -> None:
    session = load_backend("onnxruntime-cpu").open(Bundle.open(rooms_bundle), threads=1)
    assert isinstance(session, OnnxRuntimeSession)
    session.run(np.zeros((1, 120, 160, 3), np.uint8), ["depth"])
    assert sorted(session._open or {}) == ["depth", "encoder"]


def test_a_batch_gives_what_its_images_give_alone(rooms_bundle: Path) -> None:
    session = backends.choose(None).open(Bundle.open(rooms_bundle), threads=1)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 120, 160, 3), dtype=np.uint8)
    together = session.run(pixels, ["depth", "normals"])
    for index in range(3):
        alone = session.run(pixels[index : index + 1], ["depth", "normals"])
        for task, values in together.items():
            np.testing.assert_allclose(values[index], alone[task][0], atol=1e-4)


def test_eight_threads_may_share_a_predictor(predict: Predictor) -> None:
    every: list[list[str] | None] = [["depth"], ["seg", "normals"], None]
    asked = [
        (np.full((60, 80, 3), shade, np.uint8), every[shade % 3]) for shade in range(0, 240, 5)
    ]
    expected = [predict(image, colours="RGB", tasks=tasks) for image, tasks in asked]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: predict(one[0], colours="RGB", tasks=one[1]), asked))
    for right, scene in zip(expected, found, strict=True):
        assert list(scene) == list(right)
        for task, prediction in scene.items():
            np.testing.assert_allclose(prediction.values, right[task].values, atol=1e-5)


@pytest.mark.parametrize("tasks", [["dept"], ["seg", "nothing"]])
def test_a_task_that_is_not_there_is_an_error(predict: Predictor, tasks: list[str]) -> None:
    with pytest.raises(UnknownNameError, match=r"there are: depth, normals, seg"):
        predict(noise(9, 9), colours="RGB", tasks=tasks)


@pytest.mark.parametrize("tasks", [[], (), set()], ids=str)
def test_no_tasks_are_refused_with_those_that_there_are(tasks: Sequence[str]) -> None:
    with pytest.raises(UnknownNameError, match="tasks is empty; give some of seg, depth, normals"):
        plain().specs(tasks)
    with pytest.raises(UnknownNameError, match="tasks is empty"):
        Pipeline(plain(), tasks=tasks)


def test_a_task_that_is_no_name_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'None'"):
        plain().specs([None])  # type: ignore[list-item]  # as a caller without types may


@pytest.mark.parametrize("image", [[1, 2], None, b"photo.jpg", 3.0], ids=repr)
def test_what_is_neither_path_nor_array_is_an_image_error(image: Any) -> None:
    with pytest.raises(ImageError, match=f"type {type(image).__name__}; it must be a path"):
        plain()(image, colours="RGB")


def test_a_frame_that_is_no_array_is_a_bad_frame_and_not_the_end() -> None:
    frames: list[Any] = [noise(9, 9), None, noise(9, 9)]
    errors = [outcome.error for outcome in Pipeline(plain()).run(Arrays(frames, "RGB"))]
    assert [type(error) for error in errors] == [type(None), ImageError, type(None)]


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("threads", 0, "1 or more, or None for all"),
        ("threads", -3, "1 or more, or None for all"),
        ("threads", "2", "1 or more, or None for all"),
        ("threads", True, "1 or more, or None for all"),
        ("joint", "yes", 'True, False or "auto"'),
        ("arena", "no", "True or False"),
        ("self_test", "twice", 'True, False or "once"'),
    ],
)
def test_an_option_that_is_none_is_refused(
    tmp_path: Path, option: str, value: Any, allowed: str
) -> None:
    with pytest.raises(BackendError, match=f"{option} is {value!r}; it must be {allowed}"):
        Predictor.open(tmp_path, **{option: value})


def test_an_array_must_say_how_its_colours_lie(predict: Predictor) -> None:
    with pytest.raises(ImageError, match='colours="RGB" or colours="BGR"'):
        predict(noise(9, 9))


def test_a_file_need_not_say_it(predict: Predictor, photo: Path) -> None:
    with pytest.raises(ImageError, match="is for arrays"):
        predict(photo, colours="RGB")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
        np.zeros((2, 9, 9, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_an_array_of_another_form_is_refused(
    predict: Predictor, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    with pytest.raises(ImageError, match=r"must be uint8 \(height, width, 3\)"):
        predict(array, colours="RGB")


def test_an_empty_batch_is_refused(predict: Predictor) -> None:
    with pytest.raises(ImageError, match="the batch is empty"):
        predict.infer([], predict.specs(None))


def test_an_unknown_backend_gets_the_closest_name(rooms_bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime-cpu'"):
        Predictor.open(rooms_bundle, backend="onnxruntime-gpu")
    with pytest.raises(UnknownNameError, match="unknown backend ''"):
        Predictor.open(rooms_bundle, backend="")


def test_a_graph_that_cannot_be_loaded_is_a_backend_error(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"not a graph")
    settings = Settings(providers=(("CPUExecutionProvider", ()),), threads=1)
    with pytest.raises(BackendError, match=r"encoder\.onnx: ONNX Runtime cannot load"):
        open_graph(path, "", settings)


def test_letterbox_keeps_the_aspect_ratio(rooms_copy: Path) -> None:
    import json

    path = rooms_copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fit": "letterbox"}))
    scene = Predictor.open(rooms_copy)(noise(300, 90), colours="RGB")
    assert scene["depth"].values.shape == (300, 90)
