"""Graphs: lean, deterministic, with a dynamic batch, and refused when they differ from PyTorch."""

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from simo_build.encoder import Encoder, randomise
from simo_build.export import to_graphs
from simo_build.gated import RAW
from simo_build.heads import make_head
from simo_build.recipe import Recipe
from simo_build.train import feature_shape
from simo_export import graph
from simo_export.bundle import _swap, sweep, write_bundle
from simo_export.check import Graph
from simo_export.graph import export_graph, save_graph, without_output
from simo_runtime.bundle import Bundle, Manifest
from simo_runtime.errors import ExportError
from simo_runtime.graphs import GraphFiles
from simo_runtime.tasks import TaskSpec
from tests.graphs import write_graphs

ROOT = Path(__file__).resolve().parents[1]
RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "encoder": {
            "model": "vit_base_patch14_dinov2",
            "options": {"embed_dim": 32, "depth": 2, "num_heads": 2},
            "taps": [1, 2],
        },
        "base": "random(0)",
        "image": {"size": [30, 45]},  # not a multiple of the patch, so it is padded
        "tasks": {
            "seg": {"kind": "segmentation", "labels": ["a", "b", "c"]},
            "depth": {"kind": "depth"},
            "normals": {"kind": "normals"},
            "disparity": {"kind": "disparity"},
            "edges": {"kind": "edges"},
            "same": {"kind": "autoencoding"},
        },
    }
)
# What makes a graph slow or fragile: sizes computed while it runs, and scales left unfolded.
UNWANTED = {"Shape", "Concat", "Expand", "ConstantOfShape", "Where", "Mul", "BatchNormalization"}
# What an encoder has no use for, once normalisation, scales and positions are folded.
UNFOLDED = {"Resize", "Gather", "Slice", "Squeeze", "Unsqueeze", "Sub", "Div", "Sqrt", "Pow"}


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    encoder = Encoder(RECIPE.encoder, RECIPE.image)
    randomise(encoder, 0)
    heads = {
        task: make_head("linear", spec, feature_shape(encoder), seed=0)
        for task, spec in RECIPE.specs().items()
    }
    made = to_graphs(encoder, heads, RECIPE)
    return {"encoder": made.encoder, **made.heads}


@pytest.mark.parametrize("name", ["encoder", *RECIPE.tasks])
def test_no_graph_computes_sizes_or_carries_what_folds_away(
    graphs: dict[str, onnx.ModelProto], name: str
) -> None:
    counts = Counter(node.op_type for node in graphs[name].graph.node)
    assert not UNWANTED & set(counts)


def test_the_encoder_has_the_nodes_that_it_needs_and_no_more(
    graphs: dict[str, onnx.ModelProto],
) -> None:
    counts = Counter(node.op_type for node in graphs["encoder"].graph.node)
    assert not UNFOLDED & set(counts)
    assert counts["MatMul"] == 2 * 6  # qkv, q k, scores v, proj, fc1, fc2 in each of two blocks
    assert counts["LayerNormalization"] == 2 * 2
    assert counts["Conv"] == counts["Pad"] == 1  # the image's padding is the convolution's own
    assert counts["Add"] == 2 * 6 + 1  # a bias for each of four layers, two sums; positions
    assert sum(counts.values()) == 2 * 22 + 7


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_dynamic(graphs: dict[str, onnx.ModelProto], batch: int) -> None:
    pixels = np.zeros((batch, 30, 45, 3), np.uint8)
    taps = Graph(graphs["encoder"])({"image": pixels})
    assert taps["tap2"].shape == (batch, 1 + 3 * 4, 32)
    assert Graph(graphs["seg"])(taps)["seg"].shape == (batch, 30, 45)
    assert Graph(graphs["depth"])(taps)["depth"].shape == (batch, 30, 45)
    assert Graph(graphs["normals"])(taps)["normals"].shape == (batch, 3, 30, 45)
    assert Graph(graphs["disparity"])(taps)["disparity"].shape == (batch, 30, 45)
    assert Graph(graphs["edges"])(taps)["edges"].shape == (batch, 30, 45)
    assert Graph(graphs["same"])(taps)["same"].shape == (batch, 3, 30, 45)


def test_outputs_leave_the_graph_ready_to_use(graphs: dict[str, onnx.ModelProto]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 30, 45, 3), dtype=np.uint8)
    taps = Graph(graphs["encoder"])({"image": pixels})
    assert Graph(graphs["seg"])(taps)["seg"].dtype == np.uint8
    assert (Graph(graphs["depth"])(taps)["depth"] >= 0).all()
    normals = Graph(graphs["normals"])(taps)["normals"]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("task", RECIPE.tasks)
def test_a_finished_output_stays_when_the_raw_one_is_left_out(
    graphs: dict[str, onnx.ModelProto], task: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 30, 45, 3), dtype=np.uint8)
    taps = Graph(graphs["encoder"])({"image": pixels})
    lean = Graph(without_output(graphs[task], RAW))
    assert lean.outputs == [task]
    np.testing.assert_array_equal(lean(taps)[task], Graph(graphs[task])(taps)[task])


def test_a_graph_says_nothing_of_the_machine_that_made_it(
    graphs: dict[str, onnx.ModelProto],
) -> None:
    for model in graphs.values():
        text = str(model.graph.node) + str(model.metadata_props) + model.doc_string
        assert ".py" not in text
        assert "torch" not in text


class Twice(nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values * 2, values.relu()


def test_an_output_can_be_left_out() -> None:
    model = export_graph(Twice(), [torch.ones(2, 3)], inputs=["x"], outputs=["raw", "done"])
    assert Graph(without_output(model, "raw")).outputs == ["done"]
    assert Graph(model).outputs == ["raw", "done"]


def test_a_graph_that_onnx_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "LARGEST", 100)
    with pytest.raises(ExportError, match=r"Twice: \d+ bytes with its weights"):
        export_graph(Twice(), [torch.ones(2, 3)], inputs=["x"], outputs=["raw", "done"])


def test_weights_lie_beside_the_graph_and_are_readable(tmp_path: Path) -> None:
    module = nn.Linear(64, 64)
    model = export_graph(module, [torch.ones(2, 64)], inputs=["x"], outputs=["y"])
    save_graph(model, tmp_path, "linear")
    assert (tmp_path / "linear.bin").stat().st_size >= 64 * 64 * 4
    assert (tmp_path / "linear.onnx").stat().st_size < 2000
    assert (tmp_path / "linear.bin").stat().st_mode == (tmp_path / "linear.onnx").stat().st_mode
    values = np.ones((1, 64), np.float32)
    found = Graph(tmp_path / "linear.onnx")({"x": values})["y"]
    expected = module(torch.from_numpy(values)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def manifest() -> Manifest:
    spec = TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error")
    half = (0.5, 0.5, 0.5)
    return Manifest(
        name="tiny",
        image_size=(8, 8),
        fit="stretch",
        mean=half,
        std=half,
        features=("tap1",),
        tasks=(spec,),
        files={},
        graphs={"fp32": GraphFiles(encoder="encoder.onnx", heads={"depth": "depth.onnx"})},
    )


def fill(folder: Path) -> None:
    write_graphs(folder, tap="tap1", depth="depth", size=(8, 8))


def test_a_failure_while_writing_leaves_the_old_bundle_as_it_was(tmp_path: Path) -> None:
    before = (write_bundle(tmp_path / "b", manifest(), fill).root / "encoder.onnx").read_bytes()

    def fail(folder: Path) -> None:
        (folder / "encoder.onnx").write_bytes(b"half")
        raise ExportError("no")

    with pytest.raises(ExportError):
        write_bundle(tmp_path / "b", manifest(), fail)
    assert (Bundle.open(tmp_path / "b").root / "encoder.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_a_killed_build_left_is_swept_away(tmp_path: Path) -> None:
    dead = tmp_path / ".b.999999999.partial"
    dead.mkdir()
    sweep(tmp_path / "b")
    assert not dead.exists()


def test_a_full_disk_is_a_clear_refusal_and_leaves_the_old_bundle(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", manifest(), fill)

    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ExportError, match="No space left on device; nothing of it is left"):
        write_bundle(tmp_path / "b", manifest(), full)
    Bundle.open(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_build_that_is_killed_leaves_no_bundle_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from simo_export.bundle import write_bundle\n"
        "from tests.test_export import fill, manifest\n"
        "def die(folder):\n"
        "    fill(folder)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_bundle(Path({str(tmp_path)!r}) / 'b', manifest(), die)\n"
    )
    paths = [ROOT, ROOT / "export", ROOT / "build_engines", ROOT / "benchmarks"]
    seen = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    killed = subprocess.run([sys.executable, "-c", code], env=seen, check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "b").exists()
    assert len(list(tmp_path.iterdir())) == 1  # half a bundle, under a name of its own
    write_bundle(tmp_path / "b", manifest(), fill)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_builds_of_one_bundle_at_once_leave_one_whole_bundle(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from simo_export.bundle import _swap\n"
        f"here = Path({str(tmp_path)!r})\n"
        "(here / f'ready.{os.getpid()}').touch()\n"
        "while len(list(here.glob('ready.*'))) < 2:\n"
        "    time.sleep(0.001)\n"
        "for number in range(100):\n"
        "    new = here / f'{os.getpid()}.{number}'\n"
        "    new.mkdir()\n"
        "    for name in 'abc':\n"
        "        (new / name).write_text(new.name)\n"
        "    _swap(new, here / 'b')\n"
    )
    paths = [ROOT, ROOT / "export", ROOT / "build_engines", ROOT / "benchmarks"]
    seen = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", code]
    builds = [subprocess.Popen(command, env=seen, cwd=ROOT) for _ in range(2)]
    assert [build.wait() for build in builds] == [0, 0]
    assert len({path.read_text() for path in (tmp_path / "b").iterdir()}) == 1
    ready = {path.name for path in tmp_path.glob("ready.*")}
    assert {path.name for path in tmp_path.iterdir()} == {"b", *ready}


def test_a_swap_that_fails_puts_the_old_bundle_back(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", manifest(), fill)
    with pytest.raises(FileNotFoundError):
        _swap(tmp_path / "gone", tmp_path / "b")
    Bundle.open(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_build_that_is_killed_while_it_swaps_gives_the_old_bundle_back(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", manifest(), fill)
    (tmp_path / "b").rename(tmp_path / ".b.999999999.old")
    sweep(tmp_path / "b")
    Bundle.open(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
