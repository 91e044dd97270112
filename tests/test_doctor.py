"""The doctor: it names everything, on a machine that has little, and never fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from simo_runtime import doctor
from simo_runtime.backends import BACKENDS
from simo_runtime.doctor import PROBE, Section, environment, examine, table


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
