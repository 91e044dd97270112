"""Stand-ins for TensorRT and the driver, and a place to build engines in."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simo_runtime.bundle import Bundle
from tests.engines.workplace import Workplace
from tests.graphs import write_bundle
from tests.tensorrt_stand_in import Driver, stand_in

LATE = ("simo_engines.plan", "simo_engines.run", "simo_runtime.backends.tensorrt_engine")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> Iterator[Any]:
    module = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for name in LATE:
        sys.modules.pop(name, None)
    yield module
    for name in LATE:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("engines") / "bundle")


@pytest.fixture
def place(made: Bundle, tensorrt: Any, tmp_path: Path) -> Workplace:
    found = Workplace(made, tmp_path / "engines", tensorrt.answers)
    tensorrt.answers.shapes = {"tap0": (-1, 32, 32)}
    return found
