"""ONNX Runtime's providers for GPUs: nothing falls back in silence, options, CUDA graphs.

No test needs a GPU. What ONNX Runtime does without one is real; replays run on the CPU provider,
which takes the same calls and records nothing.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from simo_runtime.backends import (
    libraries,
    onnxruntime_gpu,
)
from simo_runtime.backends.libraries import missing, needed
from simo_runtime.backends.onnxruntime_captured import RECORDINGS, CapturedGraph, CapturedSession
from simo_runtime.backends.onnxruntime_cuda import BACKEND as CUDA
from simo_runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
from simo_runtime.backends.onnxruntime_cuda import provider_options as cuda_options
from simo_runtime.backends.onnxruntime_gpu import GpuOptions
from simo_runtime.backends.onnxruntime_graph import Settings
from simo_runtime.backends.onnxruntime_session import OnnxRuntimeSession
from simo_runtime.backends.onnxruntime_tensorrt import BACKEND as TENSORRT
from simo_runtime.backends.onnxruntime_tensorrt import (
    SWITCHES,
    OnnxRuntimeTensorrt,
    cache_key,
    input_shapes,
)
from simo_runtime.backends.onnxruntime_tensorrt import provider_options as tensorrt_options
from simo_runtime.bundle import Bundle
from simo_runtime.engines import BatchRange
from simo_runtime.errors import BackendError
from simo_runtime.gpu import Gpu
from simo_runtime.predictor import Predictor
from tests.graphs import write_bundle

GPU = Gpu(name="A GPU", compute_capability="9.0", multiprocessors=8, memory=2**30, driver="13.0")
PROVIDERS = ("CUDA", "Tensorrt")
CPU = Settings(providers=(("CPUExecutionProvider", ()),), threads=1)
here = set(onnxruntime.get_available_providers())
gpu_build = pytest.mark.skipif(
    not {"CUDAExecutionProvider", "TensorrtExecutionProvider"} <= here,
    reason="this onnxruntime is the CPU build, which has no such provider",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("gpu") / "bundle")


# What is missing.


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs Linux and a C compiler"
)
def test_the_libraries_that_a_library_needs_are_read_and_the_missing_one_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.c").write_text("void nothing(void) {}\n")
    (tmp_path / "user.c").write_text("void nothing(void); void use(void) { nothing(); }\n")
    cc = ["cc", "-shared", "-fPIC", "-Wl,--no-as-needed"]
    lib = ["-Wl,-soname,libnvinfer.so.7", "-o", "libnvinfer.so", "empty.c"]
    subprocess.run([*cc, *lib], check=True, cwd=tmp_path)
    user = ["-o", "user.so", "user.c", "-L.", "-lnvinfer"]
    subprocess.run([*cc, *user], check=True, cwd=tmp_path)
    assert needed(tmp_path / "user.so")[0] == "libnvinfer.so.7"
    (fault,) = missing(tmp_path / "user.so")
    assert fault.startswith("libnvinfer.so.7: cannot open shared object file")
    assert "it is TensorRT 7's: pip install 'tensorrt-cu13==7.*'" in fault


@pytest.mark.parametrize("content", [b"", b"MZ" + bytes(100), b"\x7fELF\x01\x01" + bytes(100)])
def test_a_file_that_is_no_elf_file_needs_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "made").write_bytes(content)
    assert needed(tmp_path / "made") == []


@pytest.fixture
def no_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks one library of CUDA and has all others."""

    def load(name: str) -> None:
        if name.startswith("libcublas.so"):
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(libraries, "load", load)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


@gpu_build
@pytest.mark.usefixtures("no_cublas")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_lacks_a_library_is_refused_by_its_name(bundle: Bundle, name: str) -> None:
    with pytest.raises(BackendError) as caught:
        Predictor.open(bundle, backend=name)
    (found,) = [line for line in str(caught.value).splitlines() if "libcublas.so." in line]
    assert "pip install 'onnxruntime-gpu[cuda]'" in found


@gpu_build
def test_a_provider_whose_own_library_is_gone_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime_gpu, "provider_file", lambda name: tmp_path / "gone.so")
    assert "gone.so" in (CUDA.why_not() or "")
    assert "gone.so" in CUDA.facts()["libraries"]


@gpu_build
def test_all_libraries_and_no_gpu_is_said_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "load", lambda name: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr("simo_runtime.gpu.LIBRARY", "there-is-no-such-library.so")
    assert (CUDA.why_not() or "").startswith("there is no NVIDIA driver here")


@pytest.mark.parametrize("backend", [CUDA, TENSORRT], ids=lambda backend: backend.name)
def test_the_cpu_build_and_two_builds_at_once_are_told(
    monkeypatch: pytest.MonkeyPatch, backend: Any
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    cpu = {"onnxruntime": Path("site")}
    monkeypatch.setattr(onnxruntime_gpu, "_folder", cpu.get)
    assert "has no" in (backend.why_not() or "")
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in (backend.why_not() or "")
    monkeypatch.setattr(onnxruntime_gpu, "_folder", lambda wheel: Path("site"))
    assert "are both installed" in (backend.why_not() or "")
    assert backend.facts()["gpu"]
    monkeypatch.setattr(onnxruntime_gpu, "_folder", Path)  # in folders of their own
    assert "are both installed" not in (backend.why_not() or "")


def test_the_folder_of_a_wheel_is_the_one_it_lies_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    about = tmp_path / "made_up-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    assert onnxruntime_gpu._folder("made-up") is None
    monkeypatch.syspath_prepend(str(tmp_path))
    assert onnxruntime_gpu._folder("made-up") == tmp_path.resolve()


@gpu_build
@pytest.mark.parametrize("backend", [CUDA, TENSORRT], ids=lambda backend: backend.name)
def test_onnx_runtime_itself_does_not_fall_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, backend: Any, tmp_path: Path
) -> None:
    # As if what is missing had not been noticed: the session must still refuse.
    if backend.why_not() is None:
        pytest.skip("this machine has a GPU, so that the provider runs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnxruntime_gpu, "require", lambda name: None)
    monkeypatch.setattr("simo_runtime.backends.onnxruntime_tensorrt.find_gpu", lambda: GPU)
    with pytest.raises(BackendError, match=r"encoder\.onnx: ONNX Runtime cannot load the graph"):
        backend.open(bundle)


# Options.


def test_cuda_computes_in_float32_and_takes_no_more_memory_than_it_may() -> None:
    found = dict(cuda_options(GpuOptions(memory_mib=512, cuda_graph=True)))
    assert found["use_tf32"] == "0"
    assert found["arena_extend_strategy"] == "kSameAsRequested"
    assert found["gpu_mem_limit"] == str(512 * 2**20)
    assert found["enable_cuda_graph"] == "1"
    assert "gpu_mem_limit" not in dict(cuda_options(GpuOptions()))


def test_tensorrt_keeps_engines_and_is_told_every_shape(bundle: Bundle) -> None:
    options = GpuOptions(batches=BatchRange(smallest=1, tuned=4, largest=8), workspace_mib=64)
    found = dict(tensorrt_options(options, input_shapes(bundle, "fp32"), "/engines", "fp32"))
    assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    assert found["trt_engine_cache_path"] == found["trt_timing_cache_path"] == "/engines"
    assert found["trt_max_workspace_size"] == str(64 * 2**20)
    assert found["trt_profile_min_shapes"] == "image:1x32x32x3,tap0:1x32x32"
    assert found["trt_profile_opt_shapes"] == "image:4x32x32x3,tap0:4x32x32"
    assert found["trt_profile_max_shapes"] == "image:8x32x32x3,tap0:8x32x32"
    assert not {name for name in found if "fp16" in name or "bf16" in name or "int8" in name}


def test_a_graph_of_halves_is_switched_on_and_no_other_type(bundle: Bundle, tmp_path: Path) -> None:
    for precision, switch in (("fp16", "fp16"), ("bf16", "bf16"), ("int8", "int8")):
        found = dict(tensorrt_options(GpuOptions(), {}, "", precision))
        on = {
            name for name in found if name.endswith(("fp16_enable", "bf16_enable", "int8_enable"))
        }
        assert on == {f"trt_{switch}_enable"}
    with pytest.raises(BackendError, match="takes no fp8 graphs"):
        OnnxRuntimeTensorrt(GpuOptions(engines=tmp_path))._options(bundle, "fp8")


@gpu_build
@pytest.mark.parametrize("provider", PROVIDERS)
def test_onnx_runtime_knows_every_option(provider: str) -> None:
    # An unknown option is refused by name before a library is missed; these names are read from
    # the files that parse them.
    options = cuda_options(GpuOptions(memory_mib=1))
    if provider == "Tensorrt":
        every = {entry for one in SWITCHES for entry in tensorrt_options(GpuOptions(), {}, "", one)}
        options = tuple(sorted(every))
    folder = Path(str(onnxruntime.__file__)).parent / "capi"
    known = b"".join(path.read_bytes() for path in folder.glob("onnxruntime_pybind11_state*.so"))
    known += onnxruntime_gpu.provider_file(provider).read_bytes()
    assert [name for name, _ in options if name.encode() not in known] == []


@pytest.mark.parametrize("name", ["memory_mib", "workspace_mib"])
def test_no_memory_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match=f"{name} is 0; it must be at least 1"):
        GpuOptions(**{name: 0})


def test_engines_of_other_weights_or_options_lie_elsewhere(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(bundle.root, root)
    other = bytes(4)
    (root / "encoder.bin").write_bytes(other)
    text = (root / "manifest.json").read_text()
    before = bundle.manifest.files["encoder.bin"].sha256
    after = hashlib.sha256(other).hexdigest()
    (root / "manifest.json").write_text(text.replace(before, after))
    keys = {
        cache_key(bundle, GpuOptions()),
        cache_key(Bundle.open(root), GpuOptions()),
        cache_key(bundle, GpuOptions(workspace_mib=1)),
        cache_key(bundle, GpuOptions(cuda_graph=True)),
        cache_key(bundle, GpuOptions(batches=BatchRange(smallest=1, tuned=1, largest=2))),
    }
    assert len(keys) == 5


def test_the_folder_of_onnx_runtimes_engines_is_private(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path
) -> None:
    monkeypatch.setattr("simo_runtime.backends.onnxruntime_tensorrt.find_gpu", lambda: GPU)
    backend = OnnxRuntimeTensorrt(GpuOptions(engines=tmp_path / "engines"))
    folder = Path(dict(backend._options(bundle, "fp32"))["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.parent.parent == tmp_path / "engines"
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="chmod 700"):
        backend._options(bundle, "fp32")


def test_a_backend_with_options_of_its_own_can_be_given(bundle: Bundle) -> None:
    if CUDA.why_not() is None:
        pytest.skip("this machine has a GPU, so that the provider runs")
    with pytest.raises(BackendError, match="onnxruntime-cuda: "):
        Predictor.open(bundle, backend=OnnxRuntimeCuda(GpuOptions(cuda_graph=True)))


# CUDA graphs.


@pytest.fixture
def captured(bundle: Bundle) -> Iterator[CapturedSession]:
    session = CapturedSession(bundle, CPU)
    yield session
    session.close()


def noise(batch: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)


def test_replays_give_what_plain_runs_give_for_every_batch(
    bundle: Bundle, captured: CapturedSession
) -> None:
    plain = OnnxRuntimeSession(bundle, CPU)
    for turn in range(2):  # made, then replayed; and more batch sizes than are recorded
        for batch in range(1, RECORDINGS + 3):
            pixels = noise(batch, turn)
            expected, found = plain.run(pixels, ["depth"]), captured.run(pixels, ["depth"])
            np.testing.assert_array_equal(found["depth"], expected["depth"])


def test_an_answer_is_not_overwritten_by_the_next(captured: CapturedSession) -> None:
    first = captured.run(noise(1, 1), ["depth"])["depth"]
    kept = first.copy()
    captured.run(noise(1, 2), ["depth"])
    np.testing.assert_array_equal(first, kept)


def test_a_replay_that_gives_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, captured: CapturedSession
) -> None:
    replay = CapturedGraph._replay

    def broken(self: CapturedGraph, slot: Any, inputs: Any, *, recorded: bool = True) -> None:
        replay(self, slot, inputs, recorded=recorded)
        for value in slot.outputs.values() if recorded else ():
            value.update_inplace(np.zeros(value.shape(), np.float32))

    monkeypatch.setattr(CapturedGraph, "_replay", broken)
    with pytest.raises(BackendError, match=r"encoder\.onnx: the replay of a CUDA graph gives"):
        captured.run(noise(1), ["depth"])
