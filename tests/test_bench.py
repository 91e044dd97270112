"""simo-bench as a command: on the sample's bundle, with a load beside, and with mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from simo_bench.cli import main
from simo_bench.document import KEYS, SCHEMA, check
from simo_bench.latency import Options, ask, setup_of
from simo_bench.parts import part_of
from simo_bench.setup import Setup
from simo_bench.singles import COPIES, copies_of, experts_of
from simo_bench.worker import measure, reason
from simo_runtime.backends import load_backend
from simo_runtime.bundle import MANIFEST, Bundle
from simo_runtime.errors import BackendError, BundleError, UnknownNameError

FEW = [
    *("--rounds", "3", "--processes", "1", "--seconds", "0", "--warm-up", "1", "--threads", "1"),
    *("--batches", "1,2", "--device", "t4", "--no-memory"),
]


@contextmanager
def load() -> Iterator[None]:
    """Keep every CPU busy with another program, which stands back for the tests beside it."""
    work = [sys.executable, "-c", "import os; os.nice(10)\nwhile True: pass"]
    others = [subprocess.Popen(work) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in others:
            one.kill()
            one.wait()


@pytest.fixture(scope="module")
def noisy(
    rooms_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], str]:
    """What the command prints and writes while other programs use all CPUs."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "r.json"), "--html", str(folder / "r.html")]
    with load():
        told = CliRunner().invoke(main, [str(rooms_bundle), *FEW, *files], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return (
        told.stdout,
        json.loads((folder / "r.json").read_text()),
        (folder / "r.html").read_text(encoding="utf-8"),
    )


def test_a_load_beside_is_called_unstable(noisy: tuple[str, dict[str, Any], str]) -> None:
    told, document, page = noisy
    assert document["found"]["unstable"]
    assert "UNSTABLE: these numbers may not come out the same again." in told
    assert "other programs used" in told
    assert all(one["others"] > 0.05 for one in document["processes"])
    assert "UNSTABLE" in page


def test_the_document_follows_its_schema_and_its_samples(
    noisy: tuple[str, dict[str, Any], str],
) -> None:
    _, document, _ = noisy
    assert document["schema"] == SCHEMA
    assert set(document) == KEYS
    check(document)
    for process in document["processes"]:
        assert {len(times) for times in process["ms"].values()} == {3}


def test_every_arm_has_the_right_answers_and_a_time(
    noisy: tuple[str, dict[str, Any], str],
) -> None:
    told, document, _ = noisy
    for name in ("joint", "split", "sequential", "concurrent"):
        assert document["found"]["arms"][name]["ms"]["count"] == 3
        for process in document["processes"]:
            assert all(row["passed"] for row in process["arms"][name]["equality"])
    pairs = {(one["above"], one["below"]) for one in document["found"]["ratios"]}
    assert ("sequential", "joint") in pairs
    assert ("concurrent", "joint") in pairs
    assert "no latency" not in told


def test_stages_and_limits_are_there(noisy: tuple[str, dict[str, Any], str]) -> None:
    _, document, page = noisy
    assert set(document["found"]["stages"]) == {
        "decode", "preprocess", "copy in", "encoder", "head seg", "head depth", "head normals",
        "copy out", "postprocess",
    }  # fmt: skip
    assert 1 < document["limits"]["ideal"]["roofline"] <= 3
    assert document["found"]["disk"]["ratio"] > 1
    assert document["settings"]["singles"] == COPIES
    assert page.count("data:image/svg+xml") == 3
    assert "<script" not in page


def test_the_report_tells_no_path_of_the_machine(
    noisy: tuple[str, dict[str, Any], str], rooms_bundle: Path
) -> None:
    _, document, page = noisy
    for text in (json.dumps(document), page):
        assert str(rooms_bundle.parent) not in text


def setup(bundle: Bundle, folder: Path, **changes: Any) -> Setup:
    """Give a setup that measures as little as there can be."""
    options = Options(
        rounds=2, seconds=0, warm_up=1, batches=(), threads=1, arms=("joint", "split"), **changes
    )
    tasks = tuple(task.name for task in bundle.manifest.tasks)
    singles = copies_of(bundle, tasks, folder / "singles", "fp32")
    return setup_of(bundle, singles, tasks, options, folder)


def test_an_arm_with_other_answers_gets_no_latency(rooms_bundle: Path, tmp_path: Path) -> None:
    """A joint graph whose depth is twice what it should be."""
    bundle = Bundle.open(rooms_bundle)
    tasks = [task.name for task in bundle.manifest.tasks]
    made = part_of(bundle, tasks, tmp_path / "wrong", "fp32")
    joint = onnx.load(made.graph("joint"), load_external_data=False)
    for node in joint.graph.node:
        node.output[:] = ["half" if name == "depth" else name for name in node.output]
    joint.graph.node.append(onnx.helper.make_node("Neg", ["half"], ["depth"]))
    onnx.save(joint, made.graph("joint"))
    wrong = part_of(made_anew(made), tasks, tmp_path / "again", "fp32")
    found = measure(setup(wrong, tmp_path))
    assert set(found["ms"]) == {"split"}
    assert found["arms"]["joint"]["reason"] == "its outputs are not those of its reference"
    rows = {row["task"]: row["passed"] for row in found["arms"]["joint"]["equality"]}
    assert rows == {"seg": True, "depth": False, "normals": True}


def made_anew(bundle: Bundle) -> Bundle:
    """Give a bundle without looking at its hashes."""
    return Bundle(bundle.root, bundle.manifest)


def test_a_part_of_a_bundle_answers_as_the_whole(rooms_bundle: Path, tmp_path: Path) -> None:
    whole = Bundle.open(rooms_bundle)
    part = part_of(whole, ["normals"], tmp_path / "part", "fp32")
    shape = (1, *whole.manifest.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    backend = load_backend("onnxruntime-cpu")
    wanted = backend.open(whole, threads=1, joint=False).run(pixels, ["normals"])["normals"]
    for joint in (False, True):
        found = backend.open(part, threads=1, joint=joint).run(pixels, ["normals"])
        assert list(found) == ["normals"]
        np.testing.assert_allclose(found["normals"], wanted, atol=1e-5)
    joint_graph = onnx.load(part.graph("joint"), load_external_data=False)
    assert len(joint_graph.graph.node) < len(
        onnx.load(whole.graph("joint"), load_external_data=False).graph.node
    )
    assert "seg.bin" not in part.manifest.files


def test_experts_of_another_size_are_refused(rooms_copy: Path) -> None:
    bundle = Bundle.open(rooms_copy)
    assert experts_of(bundle, ["seg"]) is None
    folder = rooms_copy.with_name(f"{rooms_copy.name}.experts")
    made = part_of(bundle, ["seg"], folder / "seg", "fp32")
    assert experts_of(bundle, ["seg"]) is not None
    text = (made.root / "manifest.json").read_text()
    (made.root / "manifest.json").write_text(text.replace('"labels"', '"label"'))
    with pytest.raises(BundleError, match="labels"):
        experts_of(bundle, ["seg"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arms", "jont"], "did you mean 'joint'"),
        (["--precision", "fp61"], "unknown precision 'fp61'"),
        (["--tasks", "seg,dept"], "did you mean 'depth'"),
        (["--backend", "onnxruntime"], "unknown backend"),
        (["--limits", "--device", "h101"], "did you mean 'h100'"),
        (["--batches", "1,two"], "batch sizes are whole numbers"),
        (["--rounds", "1"], "1 is not in the range"),
    ],
)
def test_a_mistake_gets_one_line(rooms_bundle: Path, arguments: list[str], said: str) -> None:
    told = CliRunner().invoke(main, [str(rooms_bundle), *arguments])
    assert told.exit_code in (1, 2)
    assert said in told.stderr
    assert "Traceback" not in told.stderr


def test_a_folder_that_is_no_bundle_gets_one_line(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "simo-bench", tmp_path]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "not a bundle" in told.stderr
    assert "Traceback" not in told.stderr


def test_limits_need_no_run(rooms_bundle: Path) -> None:
    told = CliRunner().invoke(main, [str(rooms_bundle), "--limits", "--device", "t4"])
    assert told.exit_code == 0, told.output
    assert "T4: NVIDIA's data sheet" in told.stdout
    assert "limited by" in told.stdout
    every = CliRunner().invoke(main, [str(rooms_bundle), "--limits", "--device", "t4", "--layers"])
    assert len(every.stdout.splitlines()) > 100


def test_eager_pytorch_is_the_bundles_own_model(rooms_bundle: Path, tmp_path: Path) -> None:
    one = setup(Bundle.open(rooms_bundle), tmp_path)
    found = measure(
        Setup.from_json(json.dumps({**json.loads(one.to_json()), "arms": ["torch_eager"]}))
    )
    assert found["arms"]["torch_eager"]["reason"] is None
    assert len(found["ms"]["torch_eager"]) == 2


def test_memory_is_measured_in_a_process_of_its_own(rooms_bundle: Path, tmp_path: Path) -> None:
    one = replace(setup(Bundle.open(rooms_bundle), tmp_path), arms=("joint",), memory=True)
    assert Setup.from_json(one.to_json()) == one
    found = ask(one)
    weights = (rooms_bundle / "encoder.bin").stat().st_size
    assert found["resident"] > weights / 2
    assert found["peak"] >= found["resident"]
    assert found["empty"] > 0


def test_an_arm_that_cannot_be_opened_is_told_without_paths(
    rooms_bundle: Path, tmp_path: Path
) -> None:
    one = replace(setup(Bundle.open(rooms_bundle), tmp_path), arms=("split", "torch_eager"))
    own = part_of(Bundle.open(one.bundle), one.tasks, tmp_path / "own", "fp32").root / MANIFEST
    own.write_text(json.dumps({**json.loads(own.read_text()), "provenance": {}}))
    found = measure(replace(one, bundle=str(own.parent), extras=False))
    assert found["arms"]["split"]["reason"] is None
    assert "built from a recipe; own tells of none" in found["arms"]["torch_eager"]["reason"]
    error = BackendError(f"{one.bundle}/joint.onnx: cannot be loaded")
    assert reason(error, one) == f"{rooms_bundle.name}/joint.onnx: cannot be loaded"


def test_a_measuring_process_that_fails_says_why(rooms_bundle: Path, tmp_path: Path) -> None:
    one = replace(setup(Bundle.open(rooms_bundle), tmp_path), bundle=str(tmp_path / "nothing"))
    with pytest.raises(BackendError, match="there is no such folder"):
        ask(one)


def test_an_unknown_arm_is_an_unknown_name(rooms_bundle: Path) -> None:
    from simo_bench.latency import bench

    with pytest.raises(UnknownNameError, match="unknown arm"):
        bench(rooms_bundle, Options(arms=("all",)), command="", tell=lambda line: None)
