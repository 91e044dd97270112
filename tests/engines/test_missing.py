"""What is said where TensorRT, its libraries, the driver or a GPU is missing.

No test of this folder needs TensorRT or a GPU, and none says anything about either: where code
would call them, a stand-in answers (`tests/tensorrt_stand_in.py`). `tests/test_tensorrt_api.py`
holds names to the real one.
"""

import sys
from pathlib import Path

import pytest

from simo_engines.availability import why_not
from simo_engines.engine import find_engine
from simo_engines.gate import Reference, made_up
from simo_runtime.engines import EngineOptions
from simo_runtime.errors import BackendError
from simo_runtime.gpu import find_gpu
from tests.graphs import write_bundle
from tests.tensorrt_stand_in import GPU, Driver, stand_in

INSTALL = "pip install 'simo-runtime[tensorrt]'"
OPTIONS = EngineOptions()


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it fails, as if not installed


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_the_reason_names_what_to_install() -> None:
    reason = why_not()
    assert reason is not None
    assert reason.startswith("tensorrt is not installed")
    assert INSTALL in reason
    assert "NVIDIA GPU and its driver" in reason


@pytest.mark.usefixtures("no_tensorrt")
def test_building_without_tensorrt_raises_that_reason(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    reference = Reference(bundle, made_up(bundle.manifest.image_size))
    with pytest.raises(BackendError) as caught:
        find_engine(bundle, "depth", reference, options=OPTIONS, root=tmp_path / "engines")
    assert str(caught.value) == why_not()
    assert not (tmp_path / "engines").exists()


def test_tensorrt_without_its_libraries_says_which_one_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    reason = why_not() or ""
    assert "libnvinfer.so.11: not found" in reason
    assert INSTALL in reason


@pytest.mark.parametrize("version", ["8.6.1", "10.8.0.43"])
def test_a_tensorrt_that_is_too_old_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    module = stand_in()
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert (why_not() or "").startswith(f"TensorRT is {version}; 10.9 or newer is needed")


def test_tensorrt_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in())
    monkeypatch.setattr("simo_runtime.gpu.LIBRARY", "there-is-no-such-library.so")
    assert (why_not() or "").startswith("there is no NVIDIA driver here")


def test_the_gpu_is_what_its_driver_says(driver: Driver) -> None:
    assert find_gpu() == GPU


def test_a_driver_without_a_gpu_and_one_that_fails_say_so(driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(BackendError, match="sees no GPU"):
        find_gpu()
    driver.code = 100
    with pytest.raises(BackendError, match="cuInit gives CUDA error 100"):
        find_gpu()
