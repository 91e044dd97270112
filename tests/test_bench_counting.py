"""Operations and bytes of graphs, counted by hand."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from simo_bench.counting import count_graph
from simo_runtime.errors import BundleError

FLOAT = TensorProto.FLOAT


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    given: list[int],
    out: list[int],
    weights: dict[str, list[int]],
) -> Path:
    """Write a graph from `x` to `y`; the first axis is the batch."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", *given])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", *out])],
        [
            helper.make_tensor(name, FLOAT, shape, bytes(4 * _size(shape)), raw=True)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def _size(shape: list[int]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found


def test_a_matrix_product_by_hand(tmp_path: Path) -> None:
    # (1, 5, 3) x (3, 7): 5 * 7 * 3 multiply-adds; reads 15 + 21 floats, writes 35
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    found = count_graph(saved(tmp_path, [node], [5, 3], [5, 7], {"w": [3, 7]}))
    (layer,) = found.layers
    assert layer.operations == 2 * 5 * 7 * 3
    assert layer.bytes == 4 * (15 + 21 + 35)
    assert (found.weights, found.given) == (4 * 21, 4 * (15 + 35))
    assert layer.product
    assert layer.shown == "MatMul y"


def test_a_batch_counts_its_images_and_the_weights_once(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    found = count_graph(saved(tmp_path, [node], [5, 3], [5, 7], {"w": [3, 7]}), batch=2)
    assert found.operations == 2 * (2 * 5 * 7 * 3)
    assert found.bytes == 4 * (2 * 15 + 21 + 2 * 35)


def test_a_convolution_by_hand(tmp_path: Path) -> None:
    # 4 x 6 pixels, window 3 x 3, stride 1, padded: 24 places, 2 -> 8 channels
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    found = count_graph(saved(tmp_path, [node], [2, 4, 6], [8, 4, 6], {"w": [8, 2, 3, 3]}))
    assert found.operations == 2 * 24 * 8 * 2 * 9


def test_a_convolution_in_groups_counts_one_group_an_output(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    found = count_graph(saved(tmp_path, [node], [4, 3, 3], [6, 3, 3], {"w": [6, 2, 1, 1]}))
    assert found.operations == 2 * (9 * 6) * 2


def test_a_transposed_convolution_spreads_every_input(tmp_path: Path) -> None:
    # each of 2 * 3 * 3 numbers goes to 5 channels x 2 x 2 places
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    found = count_graph(saved(tmp_path, [node], [2, 3, 3], [5, 6, 6], {"w": [2, 5, 2, 2]}))
    assert found.operations == 2 * (2 * 3 * 3) * (5 * 2 * 2)


def test_a_gemm_by_hand(tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    found = count_graph(saved(tmp_path, [node], [3], [7], {"w": [7, 3]}), batch=4)
    assert found.operations == 2 * 4 * 7 * 3


def test_what_only_names_a_tensor_anew_moves_nothing(tmp_path: Path) -> None:
    shape = helper.make_node(
        "Constant", [], ["s"], value=helper.make_tensor("s", TensorProto.INT64, [2], [-1, 6])
    )
    nodes = [shape, helper.make_node("Reshape", ["x", "s"], ["y"])]
    found = count_graph(saved(tmp_path, nodes, [2, 3], [6], {}))
    assert (found.operations, found.bytes) == (0, 0)


def test_a_slice_reads_what_it_writes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [1], [value])
        )
        for name, value in (("from", 1), ("to", 3), ("axis", 1))
    ]
    nodes.append(helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"]))
    found = count_graph(saved(tmp_path, nodes, [9, 5], [2, 5], {}))
    assert found.layers[-1].bytes == 2 * 4 * 10
    assert found.operations == 0


def test_an_elementwise_layer_by_hand(tmp_path: Path) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"])
    found = count_graph(saved(tmp_path, [node], [5], [5], {}))
    assert (found.operations, found.products, found.bytes) == (7 * 5, 0, 4 * 10)


def test_a_shape_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=1),
    ]
    with pytest.raises(BundleError, match=r"shapes? (is known|cannot be)"):
        count_graph(saved(tmp_path, nodes, [3], [3], {}))


def test_a_resizing_by_products_counts_as_one(tmp_path: Path) -> None:
    """Two rows become eight, four columns sixteen: of 3 channels, whatever zeros are multiplied."""
    nodes = [
        helper.make_node("MatMul", ["x", "head.last.across_wW"], ["wide"]),
        helper.make_node("MatMul", ["head.last.down_Hh", "wide"], ["y"]),
    ]
    weights = {"head.last.across_wW": [4, 16], "head.last.down_Hh": [8, 2]}
    count = count_graph(saved(tmp_path, nodes, [3, 2, 4], [3, 8, 16], weights))
    assert [one.operations for one in count.layers] == [3 * 3 * 2 * 16, 3 * 3 * 8 * 16]
    assert count.products == 0


def test_the_sample_has_the_multiply_adds_that_torch_counts(rooms_bundle: Path) -> None:
    from simo_build.loading import load_recipe
    from simo_build.size import sizes_of
    from tests.conftest import RECIPE

    sizes = sizes_of(load_recipe(str(RECIPE), data=rooms_bundle).recipe)
    encoder = count_graph(rooms_bundle / "encoder.onnx")
    assert encoder.products / 2 == pytest.approx(sizes.encoder.macs, rel=1e-3)
    # a folded head treats CLS once an image and not once a patch: fewer, never more
    for task, size in sizes.heads.items():
        assert 0 < count_graph(rooms_bundle / f"{task}.onnx").products / 2 <= size.macs * 1.001
