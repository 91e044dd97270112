"""The doctor: it names everything, on a machine that has little, and never fails."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simo_runtime import doctor
from simo_runtime.backends import BACKENDS
from simo_runtime.backends import onnxruntime_tensorrt as provider
from simo_runtime.bundle import Bundle
from simo_runtime.doctor import PROBE, Section, environment, examine, table
from simo_runtime.engines import machine_folder
from simo_runtime.gpu import Gpu


def test_it_names_versions_processor_gpu_providers_backends_and_engines(rooms_bundle: Path) -> None:
    told = table(examine(rooms_bundle))
    for title in ("versions", "processor", "GPU", "ONNX Runtime providers", "backends", "engines"):
        assert re.search(rf"^{title}$", told, re.MULTILINE), told
    for name in BACKENDS:
        assert re.search(rf"^  {name}  +can(not)? run", told, re.MULTILINE), name
    assert re.search(r"^  onnxruntime-cpu +can run \(default\)$", told, re.MULTILINE)
    assert re.search(r"^  CPUExecutionProvider +active$", told, re.MULTILINE)
    assert re.search(r"^  tasks +seg \(segmentation\), depth \(depth\)", told, re.MULTILINE)


def test_the_command_needs_no_images_and_no_bundle(tmp_path: Path) -> None:
    told = subprocess.run(
        [Path(sys.executable).parent / "simo-infer", "--doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0
    assert "onnxruntime-cpu" in told.stdout
    assert "Falling back" not in told.stdout + told.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Run simo-infer where a package is there and cannot be imported; stdout and stderr."""

    def run(package: str, *arguments: str | Path) -> tuple[str, str]:
        fake = tmp_path / "broken" / package
        fake.mkdir(parents=True)
        (fake / "__init__.py").write_text("raise ImportError('libGL.so.1: no such file')\n")
        told = subprocess.run(
            [Path(sys.executable).parent / "simo-infer", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{fake.parent}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in told.stderr
        assert told.returncode == (0 if "--doctor" in arguments else 1)
        return told.stdout, told.stderr

    return run


@pytest.mark.parametrize("package", ["cv2", "onnxruntime"])
def test_a_package_that_is_broken_is_named_and_the_rest_is_told(
    broken: Callable[..., tuple[str, str]], package: str
) -> None:
    told, _ = broken(package, "--doctor")
    fault = rf"^  {package} +{package} cannot be imported: libGL\.so\.1: .*pip install"
    assert re.search(fault, told, re.MULTILINE), told
    assert re.search(r"^processor\n  threads +\d+$", told, re.MULTILINE)
    assert re.search(r"^GPU\n  \w", told, re.MULTILINE)
    if package == "cv2":
        assert re.search(r"^  CPUExecutionProvider +active$", told, re.MULTILINE)
    else:
        for name in BACKENDS:
            assert re.search(rf"^  {name} +cannot run: .*pip install", told, re.MULTILINE), name


@pytest.mark.parametrize("package", ["cv2", "onnxruntime"])
def test_a_package_that_is_broken_is_an_error_that_says_what_to_do(
    broken: Callable[..., tuple[str, str]], package: str, rooms_bundle: Path, rooms_data: Path
) -> None:
    photo = rooms_data / "rooms" / "rgb" / "0001.jpg"
    _, told = broken(package, photo, "--bundle", rooms_bundle)
    assert told.startswith("Error: ")
    assert "libGL.so.1: no such file" in told
    assert ("--doctor" if package == "cv2" else "pip install onnxruntime") in told


def test_a_section_that_fails_keeps_what_it_found() -> None:
    def looking() -> Iterator[tuple[str, str]]:
        yield "one", "1"
        raise AttributeError("half imported")

    section = doctor._section("a", looking())
    assert section.lines == (("one", "1"), ("cannot be told", "AttributeError: half imported"))


def test_no_engines_are_built_and_those_that_are_kept_are_counted(
    rooms_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(name="G", compute_capability="9.0", multiprocessors=8, memory=2**30, driver="13.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(provider, "find_gpu", lambda: gpu)
    bundle, backend = Bundle.open(rooms_bundle), provider.BACKEND
    monkeypatch.setattr(type(backend), "open", lambda *_, **__: pytest.fail("it was opened"))
    assert doctor._opened(backend.name, bundle).endswith("engines kept: fp32 0")
    assert list(tmp_path.iterdir()) == []
    root = machine_folder(tmp_path / "simo" / "engines", gpu)
    folder = root / provider.folder_name(bundle, backend.options, "fp32")
    folder.mkdir(parents=True)
    (folder / "TensorrtExecutionProvider_encoder_sm90.engine").touch()
    assert doctor._opened(backend.name, bundle).endswith("engines kept: fp32 1")


def test_a_bundle_that_cannot_be_opened_is_told_not_raised(tmp_path: Path) -> None:
    assert "cannot be opened" in table(examine(tmp_path / "none"))


def test_the_probe_is_a_graph_of_one_identity() -> None:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    model.producer_name = ""
    assert model.SerializeToString() == PROBE


@pytest.mark.parametrize(
    ("tensorrt", "gpu", "told"),
    [
        (None, "1.31.1", "without TensorRT"),
        ("11.4.0.106", "1.31.1", "ONNX Runtime's TensorRT provider needs TensorRT 10"),
        ("10.16.1.11", "1.31.1", "native and for ONNX Runtime's provider"),
        ("10.16.1.11", None, "onnxruntime-gpu is missing"),
    ],
)
def test_it_says_which_of_the_two_environments_this_is(
    tensorrt: str | None, gpu: str | None, told: str
) -> None:
    assert told in environment(tensorrt, gpu)


def test_two_packages_that_own_one_folder_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: "1.0")
    told = dict(doctor._versions())
    assert "uninstall both" in told["conflict"]


def test_engines_that_lie_here_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "simo" / "engines" / "some-gpu-123"
    folder.mkdir(parents=True)
    (folder / ("ab" * 32 + ".plan")).write_bytes(bytes(2**20))
    assert ("some-gpu-123", "abababababababab... 1.0 MiB") in list(doctor._engines())


def test_findings_of_several_lines_are_indented() -> None:
    section = Section("a", (("one", "first\nsecond"), ("three", "x")))
    assert table([section]) == "a\n  one    first\n         second\n  three  x"
