"""Native TensorRT, with stand-ins for TensorRT (which computes in ONNX Runtime) and for pycuda.

No test needs a GPU, and none says that one does what is expected. What is tested is the order of
the work, what is waited for, what is recorded, and that memory, graphs and contexts come and go.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simo_runtime import BackendError, BundleError
from simo_runtime import backends as package
from simo_runtime.backends import load_backend
from simo_runtime.backends.tensorrt import BACKEND, Plan, _finder
from simo_runtime.bundle import Bundle
from tests import cuda_stand_in, tensorrt_stand_in
from tests.tensorrt_stand_in import GPU

ROOT = Path(__file__).resolve().parents[1]
TABLE = json.loads((ROOT / "tests" / "cuda-api.json").read_text(encoding="utf-8"))
ALL = ["seg", "depth", "normals"]
LATE = ("tensorrt_session", "tensorrt_engine", "cuda_device")
DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (5, 120, 160, 3), np.uint8)


def forget() -> None:
    for name in LATE:
        sys.modules.pop(f"simo_runtime.backends.{name}", None)
        if hasattr(package, name):
            delattr(package, name)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = tensorrt_stand_in.stand_in()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for name, found in cuda_stand_in.modules().items():
        monkeypatch.setitem(sys.modules, name, found)
    module.answers.queue = lambda handle, work: cuda_stand_in.machine.queue(handle, work)
    forget()
    yield module
    forget()


@pytest.fixture(scope="module")
def bundle(rooms_bundle: Path) -> Bundle:
    return Bundle.open(rooms_bundle)


@pytest.fixture(scope="module")
def right(bundle: Bundle) -> Any:
    session = load_backend("onnxruntime-cpu").open(bundle, threads=1, joint=False)
    return session.run(PIXELS, ALL)


def open_session(
    bundle: Bundle, *, joint: Any = False, cuda_graph: bool = True, sizes: tuple[int, int] = (1, 4)
) -> Any:
    from simo_runtime.backends.tensorrt_session import TensorrtSession

    names = ["encoder", *ALL] if joint is False else ["encoder", *ALL, "joint"]
    plans = {
        name: Plan(f"plan of {bundle.graph(name)}".encode(), *sizes, host_code=False)
        for name in names
    }
    return TensorrtSession(bundle, plans, gpu=GPU, joint=joint, cuda_graph=cuda_graph)


def same(found: Any, right: Any, take: slice) -> None:
    for task, values in found.items():
        np.testing.assert_allclose(values, right[task][take], atol=1e-4)


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("joint", [True, False, "auto"])
def test_it_gives_what_onnx_runtime_gives(
    trt: Any, bundle: Bundle, right: Any, joint: Any, cuda_graph: bool
) -> None:
    session = open_session(bundle, joint=joint, cuda_graph=cuda_graph)
    for _ in range(2):
        same(session.run(PIXELS[:1], ALL), right, slice(0, 1))
        same(session.run(PIXELS[1:4], ["depth"]), right, slice(1, 4))
        same(session.run(PIXELS[1:4], ALL), right, slice(1, 4))
    assert (cuda_stand_in.machine.replays > 0) is cuda_graph
    session.close()


@pytest.mark.parametrize("way", ["in turn", "side by side", "joint"])
def test_every_way_waits_for_all_that_it_needs(
    trt: Any, bundle: Bundle, right: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(bundle, joint="auto")
    monkeypatch.setattr(session, "_ways", lambda tasks: [way])
    for batch in (1, 3):
        same(session.run(PIXELS[:batch], ALL), right, slice(0, batch))
        same(session.run(PIXELS[1 : 1 + batch], ALL), right, slice(1, 1 + batch))


def test_one_of_three_tasks_runs_one_head(trt: Any, bundle: Bundle) -> None:
    session = open_session(bundle)
    session.run(PIXELS[:1], ["depth"])
    assert sorted(session._batches[1].contexts) == ["depth", "encoder"]


def test_the_fastest_way_is_kept_and_the_others_graphs_go(
    trt: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"in turn": 3.0, "side by side": 1.0, "joint": 2.0}
    session = open_session(bundle, joint="auto")
    monkeypatch.setattr(session, "_timed", lambda batch, tasks, way: times[way])
    session.run(PIXELS[:1], ALL)
    assert session._batches[1].ways == {tuple(ALL): "side by side"}
    assert cuda_stand_in.machine.live_graphs == 1


def test_a_graph_belongs_to_tasks_and_batch_and_is_recorded_once(trt: Any, bundle: Bundle) -> None:
    session = open_session(bundle)
    for _ in range(3):
        for tasks in (["depth"], ["seg"]):
            for batch in (1, 2):
                session.run(PIXELS[:batch], tasks)
    assert cuda_stand_in.machine.live_graphs == 4


def test_only_a_few_batch_sizes_are_kept(trt: Any, bundle: Bundle, right: Any) -> None:
    session = open_session(bundle, sizes=(1, 8))
    pixels = np.concatenate([PIXELS, PIXELS])
    for batch in (1, 2, 3, 4, 5, 6, 1):
        found = session.run(pixels[:batch], ["depth"])["depth"]
        np.testing.assert_allclose(found[:1], right["depth"][:1], atol=1e-4)
    assert list(session._batches) == [4, 5, 6, 1]
    assert cuda_stand_in.machine.live_graphs == 4


def test_batches_larger_and_smaller_than_the_profile_are_split_and_filled(
    trt: Any, bundle: Bundle, right: Any
) -> None:
    same(open_session(bundle, sizes=(2, 2)).run(PIXELS, ["depth"]), right, slice(0, 5))


def test_a_replay_that_differs_is_refused(trt: Any, bundle: Bundle) -> None:
    session = open_session(bundle)
    cuda_stand_in.machine.spoil_replays = True
    with pytest.raises(BackendError, match="depth comes out differently when its CUDA graph"):
        session.run(PIXELS[:1], ["depth"])


def test_memory_that_is_full_is_told_and_the_process_lives(
    trt: Any, bundle: Bundle, right: Any
) -> None:
    good = open_session(bundle)
    cuda_stand_in.machine.free = cuda_stand_in.machine.taken + 1000
    with pytest.raises(BackendError, match=r"memory of the GPU is full.*\nGive a smaller --batch"):
        open_session(bundle)
    assert cuda_stand_in.machine.depth() == 0
    same(good.run(PIXELS[:1], ALL), right, slice(0, 1))


def test_an_engine_that_does_not_load_or_run_says_what_tensorrt_said(
    trt: Any, bundle: Bundle
) -> None:
    session = open_session(bundle)
    session._execute = lambda *rest: (_ for _ in ()).throw(BackendError("does not run"))
    with pytest.raises(BackendError, match="does not run"):
        session.run(PIXELS[:1], ["depth"])
    assert cuda_stand_in.machine.depth() == 0
    trt.answers.loads = False
    with pytest.raises(BackendError, match="TensorRT cannot load encoder"):
        open_session(bundle)


def test_threads_and_predictors_may_share_the_gpu(trt: Any, bundle: Bundle, right: Any) -> None:
    sessions = [open_session(bundle) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        runs = [
            pool.submit(sessions[index % 2].run, PIXELS[index % 4 : index % 4 + 1], ["depth"])
            for index in range(24)
        ]
        for index, run in enumerate(runs):
            same(run.result(), right, slice(index % 4, index % 4 + 1))


def test_closing_gives_everything_back(trt: Any, bundle: Bundle) -> None:
    session = open_session(bundle)
    session.run(PIXELS[:1], ALL)
    assert cuda_stand_in.machine.taken > 0
    session.close()
    assert (cuda_stand_in.machine.taken, cuda_stand_in.machine.live_graphs) == (0, 0)
    with pytest.raises(BackendError, match="the predictor is closed"):
        session.run(PIXELS[:1], ALL)


def test_without_an_engine_the_command_that_builds_it_is_named(
    bundle: Bundle, tmp_path: Path
) -> None:
    find = _finder(bundle, "fp32", "11.4.0.106", tensorrt_stand_in.GPU, tmp_path)
    with pytest.raises(BackendError, match="there is no fp32 engine of encoder for NVIDIA RTX"):
        find("encoder")


def test_a_bundle_without_a_joint_graph_says_so(bundle: Bundle) -> None:
    graphs = {"fp32": replace(bundle.manifest.graph_files("fp32"), joint=None)}
    older = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    with pytest.raises(BundleError, match="there is no joint graph in fp32"):
        BACKEND.open(older, joint=True)


def test_it_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("tensorrt", "pycuda", "cuda-bindings"):
        module = {"cuda-bindings": "cuda.bindings"}.get(missing, missing)
        there = SimpleNamespace(find_spec=lambda name, module=module: None if name == module else 1)
        monkeypatch.setattr("simo_runtime.backends.tensorrt.find_spec", there.find_spec)
        reason = BACKEND.why_not()
        assert reason is not None
        assert reason.startswith(
            f"{missing} is not installed: pip install 'simo-runtime[tensorrt]'"
        )


# Names and arguments of pycuda and cuda.bindings, against the real packages.


def uses(source: str, alias: str) -> set[str]:
    """Name what a module takes from another, `Device`, and chains, `Context.pop`."""
    import ast

    found = set()
    for node in ast.walk(ast.parse(source)):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name) and node.id == alias:
            found.add(".".join(chain))
    return found


SOURCE = (ROOT / "simo_runtime/backends/cuda_device.py").read_text(encoding="utf-8")


def test_the_table_has_every_name_that_is_used() -> None:
    assert uses(SOURCE, "cuda") <= set(TABLE["pycuda"]["names"])
    assert uses(SOURCE, "driver") <= set(TABLE["cuda-bindings"]["names"])


def test_the_stand_in_has_no_name_that_the_real_packages_have_not() -> None:
    assert {thing.__name__ for thing in cuda_stand_in.PYCUDA} <= set(TABLE["pycuda"]["names"])
    names = {thing.__name__ for thing in cuda_stand_in.BINDINGS}
    assert names <= set(TABLE["cuda-bindings"]["names"])


def test_the_real_cuda_bindings_have_every_name() -> None:
    driver = pytest.importorskip(
        "cuda.bindings.driver", reason="cuda-bindings comes with PyTorch on Linux alone"
    )
    for name in uses(SOURCE, "driver"):
        thing = driver
        for part in name.split("."):
            thing = getattr(thing, part)
    assert [code.name for code in (driver.CUresult(0),)] == ["CUDA_SUCCESS"]
