"""The smallest graphs that a bundle can hold, for tests that need a bundle and no model."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from simo_runtime.bundle import MANIFEST, Bundle, FileEntry, Manifest, sha256_of
from simo_runtime.graphs import GraphFiles
from simo_runtime.tasks import TaskSpec


def write_graphs(folder: Path, *, tap: str, depth: str, size: tuple[int, int]) -> None:
    """Write `encoder.onnx` with one tap and the head of a depth task."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *size, 3])
    made = helper.make_tensor_value_info(tap, TensorProto.FLOAT, ["batch", size[0], size[1]])
    out = helper.make_tensor_value_info(depth, TensorProto.FLOAT, ["batch", *size])
    # the mean over colours, once, and what is over zero
    cast = helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [3])
    mean = helper.make_node("ReduceMean", ["numbers", "axis"], ["mean"], keepdims=0)
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], struct.pack("<f", 1.0), raw=True)
    times = helper.make_node("Mul", ["mean", "one"], [tap])
    _write(folder / "encoder.onnx", [cast, mean, times], image, made, [axis, one])
    _write(folder / f"{depth}.onnx", [helper.make_node("Relu", [tap], [depth])], made, out, [])


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    given: onnx.ValueInfoProto,
    made: onnx.ValueInfoProto,
    constants: list[onnx.TensorProto],
) -> None:
    graph = helper.make_graph(nodes, "graph", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def write_bundle(root: Path, **changes: Any) -> Bundle:
    """Write a bundle of these graphs: 32 x 32 pixels, the tap `tap0`, the task `depth`."""
    root.mkdir(parents=True)
    write_graphs(root, tap="tap0", depth="depth", size=(32, 32))
    _move_weights(root / "encoder.onnx", root / "encoder.bin")
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
    (root / MANIFEST).write_text(replace(manifest, **changes).to_json(), encoding="utf-8")
    return Bundle.open(root)


def _move_weights(graph: Path, weights: Path) -> None:
    """Move the numbers of a graph into a file beside it."""
    model = onnx.load(graph)
    convert_model_to_external_data(model, location=weights.name, size_threshold=0)
    onnx.save_model(model, graph)
    weights.chmod(0o644)
