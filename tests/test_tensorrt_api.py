"""What the code uses of TensorRT's Python API: held to the real bindings of several versions.

Names, arguments and values are taken from the source, so that the check cannot go stale. The
bindings are downloaded by their hashes (`requirements/bindings`) into a cache outside the
environment, and imported beside empty stand-ins for NVIDIA's libraries. Nothing is built: that
TensorRT does what is expected of these names was not checked, for want of a GPU.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from record_api import api_of, faults, install, pruned, sources, used, uses, versions
from simo_engines.availability import OLDEST
from simo_engines.locks import locked
from tests.tensorrt_stand_in import CLASSES

ROOT = Path(__file__).resolve().parents[1]
TABLE = json.loads((ROOT / "tests" / "tensorrt-api.json").read_text(encoding="utf-8"))
NEWEST = "11.4.0.106"
CACHE = ROOT / ".cache" / "tensorrt-bindings"


@pytest.fixture(scope="module", params=versions())
def bindings(request: pytest.FixtureRequest) -> Path:
    """A folder with the real bindings of a version; skipped where there can be none."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None:
        pytest.skip("the stand-ins for TensorRT's libraries need Linux x86-64 and a C compiler")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = CACHE / f"{request.param}-{tag}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "lock", lambda: None):
        try:
            install(request.param, folder)
        except subprocess.CalledProcessError as error:
            if os.environ.get("CI"):
                raise  # there the wheels must be had
            said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
            pytest.skip(f"no wheel of the bindings {request.param} for {tag} from here: {said}")
    return folder


@pytest.fixture(scope="module")
def real(bindings: Path) -> tuple[str, dict[str, Any]]:
    return api_of(bindings)


Real = tuple[str, Mapping[str, Any]]


class TestTheRealBindings:
    def test_have_every_name_argument_and_value_that_the_code_uses(self, real: Real) -> None:
        _, api = real
        found = [
            f"{path.relative_to(ROOT)}: {fault}"
            for path in sources()
            for fault in faults(uses(path.read_text(encoding="utf-8"), api), api)
        ]
        assert found == []

    def test_are_what_the_table_says(self, real: Real) -> None:
        version, api = real
        told = "python build_engines/record_api.py tests/tensorrt-api.json"
        assert pruned(used(api), api) == TABLE[version], f"run: {told}"

    def test_import_our_code_take_our_logger_and_say_that_tensorrt_does_not_start(
        self, bindings: Path
    ) -> None:
        code = """
import sys, tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from pathlib import Path
from simo_engines import plan, run
from simo_runtime.engines import EngineOptions
from simo_runtime.errors import BackendError
told = []
monitor = plan.Monitor(lambda *step: told.append(step))
monitor.phase_start("a", None, 2)
assert monitor.step_complete("a", 0) is True
try:
    plan.make_plan(Path("x.onnx"), EngineOptions(), timings=b"", steps=lambda *step: None)
except BackendError as error:
    print(error, told)
"""
        path = os.pathsep.join([str(bindings), *sys.path])
        out = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert out.stdout.startswith("TensorRT cannot start on this machine"), out.stderr
        assert "[('a', 0, 2), ('a', 1, 2)]" in out.stdout


def test_the_pins_cover_the_oldest_version_and_both_major_ones() -> None:
    assert {version.split(".")[0] for version in versions()} == {"10", "11"}
    assert versions()[0].startswith("{}.{}.".format(*OLDEST))
    assert set(versions()) == set(TABLE)


@pytest.mark.parametrize("version", TABLE)
@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_the_stand_in_has_no_name_that_tensorrt_has_not(made: type, version: str) -> None:
    public = {member for member in vars(made) if not member.startswith("_")}
    assert public <= set(TABLE[version][made.__name__])


@pytest.mark.parametrize("version", TABLE)
class TestTheTable:
    def test_has_every_name_and_argument_that_the_code_uses(self, version: str) -> None:
        assert list(faults(used(TABLE[version]), TABLE[version])) == []

    def test_is_recorded_as_far_as_it_is_used(self, version: str) -> None:
        assert pruned(used(TABLE[version]), TABLE[version]) == TABLE[version]


def test_every_name_that_a_version_lacks_is_missed() -> None:
    table = TABLE[NEWEST]
    for owner, members in table.items():
        for member in members:
            less = json.loads(json.dumps(table))
            del less[owner][member]
            assert list(faults(used(less), less)), (owner, member)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("builder.build_cuda_engine(network)", "Builder.build_cuda_engine does not exist"),
        ("builder.create_network().add_lstm()", "INetworkDefinition.add_lstm does not exist"),
        ("trt.BuilderFlag.FP16", "BuilderFlag.FP16 does not exist"),
        ("trt.Volume", "tensorrt.Volume does not exist"),
        ("builder.create_network(1, 2)", "Builder.create_network takes (flags=)"),
        ("builder.create_network(flag=1)", "Builder.create_network takes (flags=)"),
        ("trt.OnnxParser(builder)", "OnnxParser.__init__ takes (network, logger)"),
        ("network = builder.create_network()\n    network.oops", "INetworkDefinition.oops does"),
        ("builder.create_builder_config().set_flag = 1", "IBuilderConfig.set_flag cannot be set"),
        ("made().oops", "Builder.oops does not exist"),
        ("len([part.oops for part in range(builder.oops)])", "Builder.oops does not exist"),
    ],
)
def test_a_call_that_tensorrt_does_not_take_is_found(line: str, fault: str) -> None:
    source = f'def made() -> "trt.Builder": ...\ndef f(builder: "trt.Builder"):\n    {line}\n'
    api = TABLE[NEWEST]
    assert any(fault in found for found in faults(uses(source, api), api))


@pytest.mark.parametrize(
    "line",
    [
        "for part in builder.create_network(): pass",
        "with builder.create_network() as network: pass",
        "one, two = builder.create_network()",
        "builder.create_network(*flags)",
    ],
)
def test_code_that_cannot_be_followed_is_refused(line: str) -> None:
    source = f'def f(builder: "trt.Builder"):\n    {line}\n'
    with pytest.raises(ValueError, match="line 2"):
        uses(source, TABLE[NEWEST])


def test_no_object_of_tensorrt_hides_behind_any() -> None:
    # What is `Any` cannot be followed. Arrays and tables of JSON may be.
    for path in sources():
        text = path.read_text(encoding="utf-8")
        for kind in ("NDArray[Any]", "np.dtype[Any]", "dict[str, Any]", "import Any"):
            text = text.replace(kind, "")
        assert "Any" not in text.replace("Any, ", ""), path


def test_importing_the_package_does_not_import_tensorrt() -> None:
    modules = ("availability", "cli", "engine", "gate", "layers")
    code = f"import sys; from simo_engines import {', '.join(modules)}; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    late = {"tensorrt", "torch", "onnx", "simo_engines.plan", "simo_engines.run"}
    assert not late & set(out.stdout.split())
