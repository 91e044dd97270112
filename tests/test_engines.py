"""Engines: keys and places, what is missing here, and which TensorRT the code is written for.

No test needs TensorRT or a GPU, and none says anything about either: where code would call them,
a stand-in answers, which has no name that the real bindings have not (`tensorrt-api.json`).
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from record_api import faults, pruned, sources, uses
from simo_engines.availability import why_not
from simo_engines.engine import build_engine, find_engine, write_whole
from simo_runtime.bundle import MANIFEST, Bundle, FileEntry, Manifest, sha256_of
from simo_runtime.engines import BatchRange, EngineSpec, default_root, engine_key, engine_path
from simo_runtime.engines import engine_spec as spec_of
from simo_runtime.errors import BackendError, UnknownNameError
from simo_runtime.gpu import Gpu, find_gpu
from simo_runtime.graphs import GraphFiles
from simo_runtime.tasks import TaskSpec
from tests.graphs import write_graphs

TABLE = json.loads((Path(__file__).parent / "tensorrt-api.json").read_text(encoding="utf-8"))
INSTALL = "pip install 'simo-runtime[tensorrt]'"

GPU = Gpu(
    name="NVIDIA RTX 4000 SFF Ada Generation",
    compute_capability="8.9",
    multiprocessors=48,
    memory=20 * 2**30,
    driver="13.0",
)
BATCHES = BatchRange(smallest=1, tuned=4, largest=8)
SPEC = EngineSpec(
    graph="a" * 64,
    weights="b" * 64,
    tensorrt="11.4.0.106",
    gpu=GPU,
    batches=BATCHES,
    workspace_mib=1024,
    tf32=False,
)


# Keys and places.


def other_specs() -> Iterator[tuple[str, EngineSpec]]:
    """Give SPEC with one value changed, once for each value in it."""
    changes: dict[str, Any] = {
        "graph": "c" * 64,
        "weights": None,
        "tensorrt": "10.16.1.11",
        "workspace_mib": 1025,
        "tf32": True,
        "gpu": {
            "name": "NVIDIA A100",
            "compute_capability": "8.6",
            "multiprocessors": 24,
            "memory": 10 * 2**30,
            "driver": "12.8",
        },
        "batches": {"smallest": 2, "tuned": 5, "largest": 9},
    }
    assert set(changes) == {part.name for part in fields(EngineSpec)}
    for name, value in changes.items():
        if not isinstance(value, dict):
            yield name, replace(SPEC, **{name: value})
            continue
        part = getattr(SPEC, name)
        assert set(value) == {entry.name for entry in fields(part)}
        for inner, changed in value.items():
            yield f"{name}.{inner}", replace(SPEC, **{name: replace(part, **{inner: changed})})


@pytest.mark.parametrize(("what", "other"), list(other_specs()), ids=lambda value: str(value)[:24])
def test_every_ingredient_changes_the_key(what: str, other: EngineSpec) -> None:
    assert engine_key(other) != engine_key(SPEC), what


def test_the_key_of_a_spec_never_changes() -> None:
    # From sha256sum of the JSON, with the keys sorted:
    # {"batches": {"largest": 8, "smallest": 1, "tuned": 4}, "gpu": {"compute_capability": "8.9",
    # "driver": "13.0", "memory": 21474836480, "multiprocessors": 48, "name": "NVIDIA RTX 4000 SFF
    # Ada Generation"}, "graph": "aa...", "schema": "simo.engine/1", "tensorrt": "11.4.0.106",
    # "tf32": false, "weights": "bb...", "workspace_mib": 1024}
    # Another value leaves everybody's engines behind: count SCHEMA up instead.
    assert engine_key(SPEC) == "5d7fcf8c9c49c003554c8b613bc24ba29885eda24ef716b4d00a727de0c9ef1e"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 5, 4)])
def test_batches_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    smallest, tuned, largest = sizes
    with pytest.raises(BackendError, match="in the order smallest, tuned, largest"):
        BatchRange(smallest=smallest, tuned=tuned, largest=largest)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    root = tmp_path / "bundle"
    root.mkdir()
    write_graphs(root, tap="tap0", depth="depth", size=(32, 32))
    (root / "encoder.bin").write_text("weights")
    manifest = Manifest(
        name="tiny",
        image_size=(32, 32),
        fit="stretch",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        features=("tap0",),
        tasks=(TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error"),),
        files={
            path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
            for path in root.iterdir()
        },
        graphs={"fp32": GraphFiles(encoder="encoder.onnx", heads={"depth": "depth.onnx"})},
    )
    (root / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(root)


def test_a_spec_takes_its_hashes_from_the_manifest(bundle: Bundle) -> None:
    rest = {"tensorrt": "11.4.0.106", "gpu": GPU, "batches": BATCHES, "workspace_mib": 1024}
    encoder, depth = (spec_of(bundle, name, **rest) for name in ("encoder", "depth"))
    files = bundle.manifest.files
    assert encoder.graph == files["encoder.onnx"].sha256
    assert encoder.weights == files["encoder.bin"].sha256
    assert (depth.graph, depth.weights) == (files["depth.onnx"].sha256, None)
    with pytest.raises(UnknownNameError, match="did you mean 'depth'"):
        spec_of(bundle, "dept", **rest)


def test_an_engine_lies_in_a_folder_that_only_its_owner_enters(tmp_path: Path) -> None:
    path = engine_path(SPEC, root=tmp_path / "engines")
    assert path.name == f"{engine_key(SPEC)}.plan"
    assert path.parent.name.startswith("nvidia-rtx-4000-sff-ada-generation-")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_machines_never_share_a_folder(tmp_path: Path) -> None:
    places = {
        engine_path(replace(SPEC, gpu=replace(GPU, driver=driver)), root=tmp_path).parent
        for driver in ("12.8", "13.0")
    }
    assert len(places) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = engine_path(SPEC, root=tmp_path).parent
    folder.chmod(0o770)
    with pytest.raises(BackendError, match="chmod 700"):
        engine_path(SPEC, root=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = engine_path(SPEC, root=tmp_path).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="behind a link"):
        engine_path(SPEC, root=tmp_path)


def test_the_root_follows_xdg_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = str(Path.home() / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", absolute)
    assert default_root() == Path(absolute, "simo", "engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == Path.home() / ".cache" / "simo" / "engines"


# What is missing.


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
    with pytest.raises(BackendError) as caught:
        build_engine(tmp_path / "a.onnx", tmp_path / "a.plan", batches=BATCHES, workspace_mib=64)
    assert str(caught.value) == why_not()
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_without_its_libraries_says_which_one_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    reason = why_not() or ""
    assert "libnvinfer.so.11: not found" in reason
    assert INSTALL in reason


def test_a_tensorrt_that_is_too_old_is_refused(
    monkeypatch: pytest.MonkeyPatch, tensorrt: Any
) -> None:
    monkeypatch.setattr(tensorrt, "__version__", "8.6.1")
    assert (why_not() or "").startswith("TensorRT is 8.6.1; 10.0 or newer is needed")


def test_tensorrt_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch, tensorrt: Any) -> None:
    monkeypatch.setattr("simo_runtime.gpu.LIBRARY", "there-is-no-such-library.so")
    assert (why_not() or "").startswith("there is no NVIDIA driver here")


class Driver:
    """Answers as libcuda does: a code, and values through pointers."""

    def __init__(self) -> None:
        self.gpus, self.code = 1, 0
        self.attributes = {16: 48, 75: 8, 76: 9}

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = GPU.name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = GPU.memory
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.attributes[attribute]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


def test_the_gpu_is_what_its_driver_says(driver: Driver) -> None:
    assert find_gpu() == GPU


def test_a_driver_without_a_gpu_and_one_that_fails_say_so(driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(BackendError, match="sees no GPU"):
        find_gpu()
    driver.code = 100
    with pytest.raises(BackendError, match="cuInit gives CUDA error 100"):
        find_gpu()


# Building, with a stand-in for TensorRT.


@dataclass
class Answers:
    """What the stand-in is to answer, and what it was asked."""

    shapes: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"tap0": (-1, 5, 8), "tap1": (-1, 5, 8)}
    )
    parse_errors: list[str] = field(default_factory=list)
    starts: bool = True
    plan: bytes | None = b"plan"
    profile_index: int = 0
    asked: dict[str, Any] = field(default_factory=dict)


def answers() -> Answers:
    return sys.modules["tensorrt"].answers  # type: ignore[no-any-return]


class ILogger:
    INTERNAL_ERROR, ERROR = 0, 1

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return "node_7"

    def node_operator(self) -> str:
        return "Gelu"


class INetworkDefinition:
    num_inputs = 2

    def get_input(self, index: int) -> Any:
        name, shape = list(answers().shapes.items())[index]
        return SimpleNamespace(name=name, shape=shape)


class OnnxParser:
    num_errors = property(lambda self: len(answers().parse_errors))

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...

    def parse_from_file(self, model: str) -> bool:
        answers().asked["model"] = model
        return not answers().parse_errors

    def get_error(self, index: int) -> ParserError:
        return ParserError(answers().parse_errors[index])


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        answers().asked[input] = (min, opt, max)


class IBuilderConfig:
    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        answers().asked["pool"] = (pool, pool_size)

    def set_flag(self, flag: int) -> None:
        answers().asked["tf32"] = True

    def clear_flag(self, flag: int) -> None:
        answers().asked["tf32"] = False

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return answers().profile_index


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        if not answers().starts:
            logger.log(ILogger.ERROR, "CUDA initialization failure")
            # As the real bindings of 10.16 and 11.4 do when they are given a null pointer.
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        answers().asked["flags"] = flags
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        if answers().plan is None:
            self._logger.log(2, "a warning")
            self._logger.log(ILogger.INTERNAL_ERROR, "out of memory")
        return answers().plan


CLASSES = (
    ILogger,
    ParserError,
    INetworkDefinition,
    OnnxParser,
    IOptimizationProfile,
    IBuilderConfig,
    Builder,
)


def stand_in() -> Any:
    """Make a module with the part of TensorRT that the package uses."""
    module: Any = ModuleType("tensorrt")
    for made in CLASSES:
        setattr(module, made.__name__, made)
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    module.BuilderFlag = SimpleNamespace(TF32=6)
    module.__version__ = "10.16.1.11"
    module.answers = Answers()
    return module


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    sys.modules.pop("simo_engines.plan", None)
    yield module
    sys.modules.pop("simo_engines.plan", None)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "depth.onnx"
    path.write_text("a graph")
    return path


def build(graph: Path, **options: Any) -> Path:
    target = graph.with_suffix(".plan")
    build_engine(graph, target, **{"batches": BATCHES, "workspace_mib": 64} | options)
    return target


@pytest.mark.parametrize("version", TABLE)
@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_the_stand_in_has_no_name_that_tensorrt_has_not(made: type, version: str) -> None:
    public = {member for member in vars(made) if not member.startswith("_")}
    assert public <= set(TABLE[version][made.__name__])


@pytest.mark.usefixtures("driver")
class TestBuilding:
    def test_writes_the_plan_for_its_owner_and_nothing_else(
        self, tensorrt: Any, graph: Path
    ) -> None:
        target = build(graph)
        assert target.read_bytes() == b"plan"
        assert {path.name for path in graph.parent.iterdir()} == {graph.name, target.name}
        if os.name == "posix":
            assert target.stat().st_mode & 0o777 == 0o600

    def test_asks_for_a_strongly_typed_network_by_name(self, tensorrt: Any, graph: Path) -> None:
        # 10.x numbers the flag 1, 11.x numbers it 0; a literal would ask 11 for something else.
        for value in (1, 0):
            tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = value
            build(graph)
            assert tensorrt.answers.asked["flags"] == 1 << value

    def test_gives_every_input_the_batches(self, tensorrt: Any, graph: Path) -> None:
        build(graph)
        for name in ("tap0", "tap1"):
            assert tensorrt.answers.asked[name] == ((1, 5, 8), (4, 5, 8), (8, 5, 8))

    def test_limits_the_workspace_and_leaves_tf32_off(self, tensorrt: Any, graph: Path) -> None:
        build(graph)
        assert tensorrt.answers.asked["pool"] == (0, 64 * 2**20)
        assert tensorrt.answers.asked["tf32"] is False
        build(graph, tf32=True)
        assert tensorrt.answers.asked["tf32"] is True

    def test_lists_what_the_parser_does_not_like(self, tensorrt: Any, graph: Path) -> None:
        tensorrt.answers.parse_errors = [f"fault {number}" for number in range(7)]
        with pytest.raises(BackendError) as caught:
            build(graph)
        lines = str(caught.value).splitlines()
        assert lines[0] == f"{graph}: TensorRT cannot read the graph"
        assert lines[1] == "  Gelu node_7: fault 0"
        assert lines[-1] == "  and 2 more"

    def test_leaves_an_older_engine_alone_when_it_fails(self, tensorrt: Any, graph: Path) -> None:
        target = build(graph)
        tensorrt.answers.plan = None
        with pytest.raises(BackendError, match=r"built no engine\n  out of memory$"):
            build(graph)
        assert target.read_bytes() == b"plan"
        assert len(list(graph.parent.iterdir())) == 2

    def test_says_what_tensorrt_said_when_it_does_not_start(
        self, tensorrt: Any, graph: Path
    ) -> None:
        tensorrt.answers.starts = False
        with pytest.raises(BackendError, match=r"cannot start.*\n  CUDA initialization failure"):
            build(graph)

    @pytest.mark.parametrize("shape", [(2, 5, 8), (-1, -1, 8)])
    def test_refuses_an_input_whose_first_axis_is_not_the_only_free_one(
        self, tensorrt: Any, graph: Path, shape: tuple[int, ...]
    ) -> None:
        tensorrt.answers.shapes["tap1"] = shape
        with pytest.raises(BackendError, match="input 'tap1' has the shape"):
            build(graph)

    def test_says_so_when_the_batches_are_refused(self, tensorrt: Any, graph: Path) -> None:
        tensorrt.answers.profile_index = -1
        with pytest.raises(BackendError, match="refuses the batches"):
            build(graph)

    def test_refuses_no_workspace_and_a_graph_that_is_not_there(
        self, tensorrt: Any, graph: Path
    ) -> None:
        with pytest.raises(BackendError, match="workspace_mib is 0"):
            build(graph, workspace_mib=0)
        with pytest.raises(BackendError, match="there is no such graph"):
            build(graph.with_name("seg.onnx"))

    def test_builds_an_engine_once_and_then_finds_it(
        self, tensorrt: Any, bundle: Bundle, tmp_path: Path
    ) -> None:
        options: Any = {"batches": BATCHES, "workspace_mib": 64, "root": tmp_path / "engines"}
        path = find_engine(bundle, "depth", **options)
        assert tensorrt.answers.asked["model"] == str(bundle.graph("depth"))
        tensorrt.answers.asked.clear()
        assert find_engine(bundle, "depth", **options) == path
        assert tensorrt.answers.asked == {}
        Bundle.open(bundle.root)  # nothing was left in it

    def test_keeps_engines_out_of_the_bundle(self, tensorrt: Any, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match="engines cannot lie in a bundle"):
            find_engine(
                bundle, "depth", batches=BATCHES, workspace_mib=64, root=bundle.root / "engines"
            )


def test_a_plan_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.plan" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.plan"):
        write_whole(tmp_path / "a.plan", b"plan")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan"]


# Names and arguments, against the real bindings.


def package_uses(api: Any) -> list[Any]:
    return [use for path in sources() for use in uses(path.read_text(encoding="utf-8"), api)]


def test_the_table_covers_both_major_versions() -> None:
    assert {version.split(".")[0] for version in TABLE} == {"10", "11"}


@pytest.mark.parametrize("version", TABLE)
class TestTheApi:
    def test_has_every_name_and_argument_that_the_package_uses(self, version: str) -> None:
        found = package_uses(TABLE[version])
        assert list(faults(found, TABLE[version])) == []

    def test_is_recorded_as_far_as_it_is_used(self, version: str) -> None:
        assert pruned(package_uses(TABLE[version]), TABLE[version]) == TABLE[version]

    def test_is_missed_by_name_when_a_version_lacks_it(self, version: str) -> None:
        for owner, members in TABLE[version].items():
            for member in members:
                less = json.loads(json.dumps(TABLE[version]))
                del less[owner][member]
                assert list(faults(package_uses(less), less)), (owner, member)


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
        ("made().oops", "Builder.oops does not exist"),
        ("len([part.oops for part in range(builder.oops)])", "Builder.oops does not exist"),
    ],
)
def test_a_call_that_tensorrt_does_not_take_is_found(line: str, fault: str) -> None:
    source = f'def made() -> "trt.Builder": ...\ndef f(builder: "trt.Builder"):\n    {line}\n'
    api = TABLE["11.4.0.106"]
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
        uses(source, TABLE["11.4.0.106"])


def test_no_object_of_tensorrt_hides_behind_any() -> None:
    plan = next(path for path in sources() if path.name == "plan.py")
    assert "Any" not in plan.read_text(encoding="utf-8")


def test_importing_the_package_does_not_import_tensorrt() -> None:
    modules = ("availability", "engine")
    code = f"import sys; from simo_engines import {', '.join(modules)}; print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert not {"tensorrt", "torch", "onnx", "simo_engines.plan"} & set(out.stdout.split())
