"""Other precisions: typed throughout, islands where they are needed, and what rounding does."""

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, shape_inference
from torch import Tensor, nn

from simo_build.encoder import Encoder, randomise
from simo_build.export import Graphs, Writer, to_graphs, typed
from simo_build.heads import make_head
from simo_build.recipe import Recipe
from simo_build.train import feature_shape
from simo_export.check import Graph
from simo_export.graph import export_graph, save_graph
from simo_export.precision import to_half
from simo_export.quantise import quantised
from simo_export.resizing import resizes
from simo_runtime.errors import ExportError
from simo_runtime.onnxfile import read_onnx

# Blocks as wide as those of a ViT-B, but few: their graphs, weights and ranges are what is real.
RECIPE = Recipe.model_validate(
    {
        "name": "wide",
        "encoder": {
            "model": "vit_base_patch14_dinov2",
            "options": {"depth": 2},
            "taps": [1, 2],
        },
        "base": "random(0)",
        "image": {"size": [42, 58]},
        "tasks": {
            "seg": {"kind": "segmentation", "labels": ["a", "b", "c"]},
            "depth": {"kind": "depth"},
            "normals": {"kind": "normals"},
        },
    }
)
ELEMENTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
Pixels = NDArray[np.uint8]
FP8 = TensorProto.FLOAT8E4M3FN


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    encoder = Encoder(RECIPE.encoder, RECIPE.image)
    randomise(encoder, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in encoder.vit.blocks:
            block.ls1.gamma.fill_(1.0)
            block.ls2.gamma.fill_(1.0)
        for name, bias in encoder.vit.named_parameters():
            if name.endswith("bias"):  # or all of one size would be stored as one
                bias.add_(0.01 * torch.randn(bias.shape, generator=generator))
    specs = RECIPE.specs()
    heads = {t: make_head("linear", s, feature_shape(encoder), seed=0) for t, s in specs.items()}
    return to_graphs(encoder, heads, RECIPE)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (3, 42, 58, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def int8(
    graphs: Graphs, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("int8")
    save_graph(graphs.encoder, folder, "encoder")
    return quantised(folder / "encoder.onnx", pixels)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the type of every value; strict inference fails where types do not fit."""
    graph = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    known = {one.name: one.data_type for one in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        known[value.name] = value.type.tensor_type.elem_type
    return known


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_product_of_the_encoder_is_typed_but_the_one_on_pixels(
    graphs: Graphs, precision: str
) -> None:
    model = to_half(graphs.encoder, precision, features=True)
    onnx.checker.check_model(model, full_check=True)
    known, half = types_of(model), ELEMENTS[precision]
    for node in model.graph.node:
        found = {known[name] for name in (*node.input, *node.output) if name}
        if node.op_type in ("MatMul", "Softmax", "Gelu", "Add"):
            assert found == {half}, node
        if node.op_type in ("LayerNormalization", "Conv"):
            assert found == {TensorProto.FLOAT}, node
    assert {known[tap] for tap in graphs.features} == {half}
    sizes = [np.prod(one.dims) for one in model.graph.initializer if one.data_type == half]
    assert sum(sizes) > 0.9 * sum(np.prod(one.dims) for one in graphs.encoder.graph.initializer)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("task", RECIPE.tasks)
def test_a_head_ends_in_float32(graphs: Graphs, precision: str, task: str) -> None:
    model = to_half(graphs.heads[task], precision, features=False)
    onnx.checker.check_model(model, full_check=True)
    known, half = types_of(model), ELEMENTS[precision]
    assert {known[one.name] for one in model.graph.input} == {half}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    resizing = [node for node in products if resizes(node)]
    learnt = [node for node in products if not resizes(node)]
    assert {known[name] for node in learnt for name in node.input} == {half}
    assert {known[name] for node in resizing for name in node.input} == {TensorProto.FLOAT}
    assert len(resizing) == (4 if task == "depth" else 2)
    assert known[task] == (TensorProto.UINT8 if task == "seg" else TensorProto.FLOAT)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_gives_numbers_of_the_type_and_those_alone(
    graphs: Graphs, pixels: Pixels, precision: str
) -> None:
    exact = Graph(graphs.encoder)({"image": pixels})
    rounded = Graph(to_half(graphs.encoder, precision, features=True, rounded=True))
    for tap, values in rounded({"image": pixels}).items():
        narrow = values.astype(DTYPES[precision]).astype(np.float32)
        np.testing.assert_array_equal(values, narrow)
        apart = np.linalg.norm(values - exact[tap]) / np.linalg.norm(exact[tap])
        step = 2.0**-11 if precision == "fp16" else 2.0**-8
        assert 0.3 * step < apart < 8 * step  # rounded, and no more than that


def test_a_rounded_graph_gives_what_the_typed_one_gives(graphs: Graphs, pixels: Pixels) -> None:
    """ONNX Runtime runs float16 on a CPU, in float32 within its operators."""
    typed_taps = Graph(to_half(graphs.encoder, "fp16", features=True))({"image": pixels})
    rounded = Graph(to_half(graphs.encoder, "fp16", features=True, rounded=True))
    for tap, values in rounded({"image": pixels}).items():
        assert typed_taps[tap].dtype == np.float16
        apart = np.linalg.norm(values - typed_taps[tap]) / np.linalg.norm(values)
        assert apart < 4 * 2.0**-11


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 4), 1e5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_weights_that_a_type_cannot_hold_are_refused_by_name() -> None:
    model = export_graph(Large(), [torch.ones(2, 4)], inputs=["x"], outputs=["y"])
    with pytest.raises(ExportError, match="weight: its numbers are too large for fp16"):
        to_half(model, "fp16", features=True)
    to_half(model, "bf16", features=True)


def test_products_by_weights_are_whole_numbers_and_nothing_else_is(
    graphs: Graphs, int8: onnx.ModelProto
) -> None:
    onnx.checker.check_model(int8, full_check=True)
    makers = {name: node for node in int8.graph.node for name in node.output}
    weights = {one.name: one for one in int8.graph.initializer}
    counts: Counter[str] = Counter()
    for node in int8.graph.node:
        sources = [makers.get(name) for name in node.input]
        quantised_inputs = [
            one is not None and one.op_type == "DequantizeLinear" for one in sources
        ]
        if node.op_type == "MatMul":
            counts["products" if all(quantised_inputs) else "attention"] += 1
            assert all(quantised_inputs) or not any(quantised_inputs)
        elif node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            assert not any(quantised_inputs), node.op_type
    assert counts == {"products": 2 * 4, "attention": 2 * 2}
    for node in int8.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            values = numpy_helper.to_array(weights[node.input[0]])
            assert values.dtype == np.int8
            assert weights[node.input[1]].dims == [values.shape[1]]  # a scale for every output
        if node.op_type == "QuantizeLinear":  # symmetric: zero stays zero, as TensorRT wants it
            assert not numpy_helper.to_array(weights[node.input[2]]).any()
    assert {one.domain for one in int8.opset_import} == {""}


def test_a_layer_may_stay_in_floats(graphs: Graphs, pixels: Pixels, tmp_path: Path) -> None:
    save_graph(graphs.encoder, tmp_path, "encoder")
    model = quantised(tmp_path / "encoder.onnx", pixels, keep=("blocks.1.fc2",))
    makers = {node.output[0]: node for node in model.graph.node}
    kept = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and makers[node.input[0]].op_type == "Gelu"
    ]
    assert len(kept) == 1  # the other fc2 has a DequantizeLinear before it


def test_fp8_is_typed_and_comes_near(graphs: Graphs, pixels: Pixels, tmp_path: Path) -> None:
    save_graph(graphs.encoder, tmp_path, "encoder")
    made, arm = typed(graphs, "fp8", tmp_path / "encoder.onnx", pixels)
    onnx.checker.check_model(made.encoder, full_check=True)
    known = types_of(made.encoder)
    narrow = [one for one in made.encoder.graph.initializer if one.data_type == FP8 and one.dims]
    assert len(narrow) == 2 * 4  # the weights of four layers in each of two blocks
    for node in made.encoder.graph.node:
        if node.op_type in ("MatMul", "Add", "Softmax"):
            assert {known[name] for name in node.input} == {TensorProto.FLOAT16}
    exact = Graph(graphs.encoder)({"image": pixels})
    for tap, values in Graph(arm.encoder, fused=False)({"image": pixels}).items():
        lengths = np.linalg.norm(values) * np.linalg.norm(exact[tap])
        assert 0.98 < float((values * exact[tap]).sum() / lengths) < 0.99999


def test_int8_comes_near(graphs: Graphs, int8: onnx.ModelProto, pixels: Pixels) -> None:
    exact, found = Graph(graphs.encoder)({"image": pixels}), Graph(int8)({"image": pixels})
    for tap, values in found.items():
        lengths = np.linalg.norm(values) * np.linalg.norm(exact[tap])
        assert float((values * exact[tap]).sum() / lengths) > 0.99


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_a_joint_graph_costs_next_to_nothing(
    graphs: Graphs, pixels: Pixels, tmp_path: Path, precision: str
) -> None:
    writer = Writer(tmp_path)
    files, heads = writer.write(graphs, "fp32"), set[str]()
    if precision != "fp32":
        made, _ = typed(graphs, precision, tmp_path / "encoder.onnx", pixels)
        heads = set(files.heads.values())  # those that are stored already, if it takes them
        files = writer.write(made, precision)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}

    def weighed(*names: str | None) -> int:
        weights = {one.location for name in names if name for one in outside(tmp_path / name)}
        return sum(sizes[name] for name in (*weights, *names) if name)

    whole = weighed(files.encoder, files.joint, *(set(files.heads.values()) - heads))
    assert whole <= 1.02 * weighed(files.encoder)


def outside(path: Path) -> list[object]:
    return list(read_onnx(path).external)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_same_graph_gives_the_same_bytes(
    graphs: Graphs, int8: onnx.ModelProto, pixels: Pixels, tmp_path: Path, precision: str
) -> None:
    save_graph(graphs.encoder, tmp_path, "encoder")
    again, _ = typed(graphs, precision, tmp_path / "encoder.onnx", pixels)
    before = int8 if precision == "int8" else to_half(graphs.encoder, precision, features=True)
    assert again.encoder.SerializeToString() == before.SerializeToString()
    for task, head in graphs.heads.items():
        same = head if precision == "int8" else to_half(head, precision, features=False)
        assert again.heads[task].SerializeToString() == same.SerializeToString()
