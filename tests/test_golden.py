"""The self-test: what a bundle said when it was built comes out again, or the bundle is not run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_runtime import BackendError, BundleError, Predictor, golden
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession
from simo_runtime.bundle import MANIFEST, Bundle, sha256_of
from simo_runtime.golden import GOLDEN, differences, golden_image, read_golden
from simo_runtime.remembered import cache_root
from tests.scenes import manifest

HEAD = '{"schema": "simo.golden/1", "step": 16, "tasks":'


def rehash(bundle: Path) -> None:
    """Make the manifest name the files as they are, as somebody who means it would."""
    data = json.loads((bundle / MANIFEST).read_text())
    for name, entry in data["files"].items():
        path = bundle / name
        entry |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (bundle / MANIFEST).write_text(json.dumps(data))


def change_weights(path: Path, number: float) -> None:
    weights = np.fromfile(path, np.float32)
    weights[: weights.size // 2] = number
    weights.tofile(path)
    rehash(path.parent)


def test_the_picture_is_the_same_on_every_machine() -> None:
    picture = golden_image((24, 32))
    assert (picture.shape, str(picture.dtype)) == ((24, 32, 3), "uint8")
    found = hashlib.sha256(picture.tobytes()).hexdigest()
    assert found == "fb6ea4948073df5e3deefea89b062010d5261e7a09356710b2ff5838c306e497"


def test_a_build_keeps_what_every_task_said(rooms_bundle: Path) -> None:
    found = read_golden(Bundle.open(rooms_bundle))
    assert found is not None
    shapes = {name: values.shape for name, values in found.items()}
    assert shapes == {"seg": (8, 10), "depth": (8, 10), "normals": (3, 8, 10)}
    assert (rooms_bundle / GOLDEN).stat().st_size < 20_000


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give a list that grows by one with every self-test."""
    runs: list[int] = []
    real = golden.sampled
    monkeypatch.setattr(golden, "sampled", lambda *rest: runs.append(1) or real(*rest))
    return runs


def test_opening_tests_once_for_a_bundle_and_a_backend(
    rooms_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    Predictor.open(rooms_bundle, joint=False)
    Predictor.open(rooms_bundle, joint=False)
    assert len(runs) == 1
    Predictor.open(rooms_bundle, joint=True)  # another graph, another test
    assert len(runs) == 2
    Predictor.open(rooms_bundle, joint=False, self_test=True)
    assert len(runs) == 3
    Predictor.open(rooms_bundle, joint=True, self_test=False)
    assert len(runs) == 3


def test_another_device_or_driver_is_tested_again(
    rooms_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    for driver in ("13.0", "13.0", "13.1"):
        monkeypatch.setattr(OnnxRuntimeSession, "identity", lambda self, told=driver: {"gpu": told})
        Predictor.open(rooms_bundle, joint=False)
    assert len(runs) == 2


@pytest.mark.parametrize("joint", [True, False])
def test_weights_that_compute_something_else_are_refused(rooms_copy: Path, joint: bool) -> None:
    change_weights(rooms_copy / "depth.bin", 0.5)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(BackendError, match=r"self-test failed on .*-cpu in fp32\n  depth: dif"):
            Predictor.open(rooms_copy, joint=joint)
    assert not list(cache_root().rglob("self-test-*"))
    Predictor.open(rooms_copy, joint=joint, self_test=False)


def test_a_session_that_fails_the_test_is_closed(
    rooms_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxRuntimeSession] = []
    monkeypatch.setattr(OnnxRuntimeSession, "close", lambda self: closed.append(self))
    Predictor.open(rooms_copy)
    assert not closed
    change_weights(rooms_copy / "depth.bin", 0.5)
    with pytest.raises(BackendError, match="self-test failed"):
        Predictor.open(rooms_copy)
    assert len(closed) == 1


def test_weights_that_are_no_numbers_are_refused(rooms_copy: Path) -> None:
    change_weights(rooms_copy / "depth.bin", float("nan"))
    with pytest.raises(BackendError, match="depth: differs by nan"):
        Predictor.open(rooms_copy)
    with (
        Predictor.open(rooms_copy, self_test=False) as predict,
        pytest.raises(BackendError, match="depth has values that are no numbers"),
    ):
        predict(np.zeros((9, 9, 3), np.uint8), colours="RGB")


def test_a_bundle_of_an_older_build_has_no_test(rooms_copy: Path) -> None:
    data = json.loads((rooms_copy / MANIFEST).read_text())
    del data["files"][GOLDEN]
    (rooms_copy / MANIFEST).write_text(json.dumps(data))
    (rooms_copy / GOLDEN).unlink()
    Predictor.open(rooms_copy)
    assert not list(cache_root().rglob("self-test-*"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        f"{HEAD.replace('/1', '/2')} {{}}}}",
        f'{HEAD} {{"depth": {{"shape": [2], "values": [1]}}}}}}',
        f'{HEAD} {{"depth": {{"shape": [1], "values": ["x"]}}}}}}',
        f"{HEAD} []}}",
        "[" * 100_000,
        f'{HEAD} {{"depth": {{"shape": [1], "values": [1{"0" * 400}]}}}}}}',
    ],
)
def test_a_golden_file_that_makes_no_sense_is_a_bundle_error(rooms_copy: Path, text: str) -> None:
    (rooms_copy / GOLDEN).write_text(text)
    rehash(rooms_copy)
    with pytest.raises(BundleError, match=r"golden\.json"):
        Predictor.open(rooms_copy)


def test_a_golden_file_without_a_task_fails_the_test(rooms_copy: Path) -> None:
    (rooms_copy / GOLDEN).write_text('{"schema": "simo.golden/1", "step": 16, "tasks": {}}')
    rehash(rooms_copy)
    with pytest.raises(BackendError, match=r"depth: golden\.json has the shape None"):
        Predictor.open(rooms_copy)


@pytest.mark.parametrize(
    ("change", "precision", "told"),
    [
        (0.0, "fp32", []),
        (0.0009, "fp32", []),
        (0.0011, "fp32", ["depth: differs by 0.11%; at most 0.10%"]),
        (0.0011, "fp16", []),
        (0.04, "fp16", ["depth: differs by 4.00%; at most 3.00%"]),
        (0.04, "int8", []),
    ],
)
def test_values_may_differ_by_what_a_precision_allows(
    change: float, precision: str, told: list[str]
) -> None:
    bundle = Bundle(Path("plain"), manifest())
    values: dict[str, Any] = {
        "seg": np.zeros((5, 20), np.uint8),
        "depth": np.full((5, 20), 2.0),
        "normals": np.ones((3, 5, 20)),
    }
    found = values | {"depth": values["depth"] * (1 + change)}
    assert differences(found, values, bundle, precision) == told


@pytest.mark.parametrize(("wrong", "fails"), [(0, False), (2, False), (3, True)])
def test_two_percent_of_the_pixels_may_have_another_class(wrong: int, fails: bool) -> None:
    bundle = Bundle(Path("plain"), manifest())
    values: dict[str, Any] = {
        "seg": np.zeros((5, 20), np.uint8),
        "depth": np.ones((5, 20)),
        "normals": np.ones((3, 5, 20)),
    }
    labels = values["seg"].copy()
    labels.ravel()[:wrong] = 1
    assert bool(differences(values | {"seg": labels}, values, bundle, "fp32")) is fails
