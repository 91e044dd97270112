"""The smallest graphs that a bundle can hold, for tests that need a bundle and no model."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_graphs(folder: Path, *, tap: str, depth: str, size: tuple[int, int]) -> None:
    """Write `encoder.onnx` with one tap and the head of a depth task."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *size, 3])
    made = helper.make_tensor_value_info(tap, TensorProto.FLOAT, ["batch", size[0], size[1]])
    out = helper.make_tensor_value_info(depth, TensorProto.FLOAT, ["batch", *size])
    # the mean over colours, and what is over zero
    cast = helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [3])
    mean = helper.make_node("ReduceMean", ["numbers", "axis"], [tap], keepdims=0)
    _write(folder / "encoder.onnx", [cast, mean], image, made, [axis])
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
