"""Operations and bytes of every layer of an ONNX graph, counted from its shapes alone.

A multiply-add is two operations. Matrix products and convolutions are counted exactly; of the other
operators, COSTS says how many operations an element takes. Bytes are what a layer reads and writes
if every tensor lies in memory between layers; a layer that only names a tensor anew moves none.
Weights are not read: what they hold does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import shape_inference

from simo_export.resizing import resizes
from simo_runtime.errors import BundleError, listing

Shape = tuple[int, ...]

# No operations and no bytes: the tensor stays where it is.
FREE = {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
# Bytes, but no arithmetic.
MOVES = {
    "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "GatherElements", "Pad", "Range",
    "Slice", "Split", "Tile", "Transpose", "Where",
}  # fmt: skip
# Operations for each element that comes out, or goes in where that is more.
COSTS = {
    "ArgMax": 1, "DequantizeLinear": 2, "Div": 1, "Erf": 8, "Exp": 4, "Gelu": 12,
    "LayerNormalization": 8, "Pow": 4, "QuantizeLinear": 3, "Resize": 7, "Sigmoid": 6,
    "Softmax": 7, "Sqrt": 4, "Tanh": 8,
}  # fmt: skip
BETWEEN = 3  # of a resizing along one side, whatever zeros its matrix has: two factors, one sum
FEW = 1  # of every other operator: Add, Mul, Relu, Clip, Max, ...


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node: its operator, its operations, and the bytes that it reads and writes."""

    name: str
    operator: str
    operations: int
    bytes: int
    weights: int  # bytes of its weights, among `bytes`
    product: bool  # whether it is a matrix product or a convolution
    bits: int  # of the numbers it computes with

    @property
    def shown(self) -> str:
        """The operator and the tensor that comes out."""
        return f"{self.operator} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Count:
    """A graph: its layers, and what it must move whatever is kept in caches between layers."""

    layers: tuple[Layer, ...]
    given: int  # bytes of inputs and outputs
    weights: int  # bytes

    @property
    def operations(self) -> int:
        """All operations."""
        return sum(layer.operations for layer in self.layers)

    @property
    def products(self) -> int:
        """The operations of matrix products and convolutions."""
        return sum(layer.operations for layer in self.layers if layer.product)

    @property
    def bytes(self) -> int:
        """What all layers read and write."""
        return sum(layer.bytes for layer in self.layers)


def count_graph(path: Path, *, batch: int = 1) -> Count:
    """Count a graph of a bundle; BundleError where a shape cannot be told."""
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    try:
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise BundleError(f"{path}: its shapes cannot be inferred: {error}") from error
    tensors = _tensors(model.graph)
    unknown = [name for node in model.graph.node for name in node.output if name not in tensors]
    if unknown:
        raise BundleError(f"{path}: no shape is known of\n{listing(unknown)}")
    weights = {one.name for one in model.graph.initializer}
    ends = [one.name for one in (*model.graph.input, *model.graph.output)]
    return Count(
        layers=tuple(_layer(node, tensors, weights) for node in model.graph.node),
        given=sum(tensors[name].bytes for name in ends),
        weights=sum(tensors[name].bytes for name in weights),
    )


@dataclass(frozen=True)
class Tensor:
    """What of a tensor matters here."""

    shape: Shape
    bits: int

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it has."""
        return self.size * self.bits // 8


def _tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    found = {t.name: Tensor(tuple(t.dims), _bits(t.data_type)) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        sizes = [side.dim_value for side in kind.shape.dim if side.HasField("dim_value")]
        if len(sizes) == len(kind.shape.dim):
            found[value.name] = Tensor(tuple(sizes), _bits(kind.elem_type))
    return found


def _bits(kind: int) -> int:
    if kind == onnx.TensorProto.STRING:
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize) * 8


def _layer(node: onnx.NodeProto, tensors: Mapping[str, Tensor], weights: set[str]) -> Layer:
    read = [tensors[name] for name in dict.fromkeys(node.input) if name]
    written = [tensors[name] for name in node.output if name]
    free = node.op_type in FREE
    return Layer(
        name=node.output[0],
        operator=node.op_type,
        operations=_operations(node, tensors),
        bytes=0 if free else _moved(node, read, written),
        weights=sum(tensors[name].bytes for name in dict.fromkeys(node.input) if name in weights),
        product=node.op_type in PRODUCTS and not resizes(node),
        bits=min((one.bits for one in read if one.bits), default=32),
    )


def _moved(node: onnx.NodeProto, read: Sequence[Tensor], written: Sequence[Tensor]) -> int:
    """Give the bytes; what picks elements reads no more than it writes."""
    out = sum(one.bytes for one in written)
    if node.op_type in {"Gather", "GatherElements", "Slice"}:
        return 2 * out
    return out + sum(one.bytes for one in read)


def _operations(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    given = [tensors[name] for name in node.input if name]
    out = tensors[node.output[0]]
    if resizes(node):
        return BETWEEN * out.size
    if node.op_type in PRODUCTS:
        return 2 * PRODUCTS[node.op_type](node, given, out)
    if node.op_type in FREE | MOVES:
        return 0
    largest = max(out.size, *(one.size for one in given)) if given else out.size
    # Enlarging computes every element that comes out; shrinking and reducing look at all.
    return COSTS.get(node.op_type, FEW) * largest


def _matmul(node: onnx.NodeProto, given: Sequence[Tensor], out: Tensor) -> int:
    return out.size * given[0].shape[-1]


def _gemm(node: onnx.NodeProto, given: Sequence[Tensor], out: Tensor) -> int:
    turned = any(one.name == "transA" and one.i for one in node.attribute)
    return out.size * given[0].shape[0 if turned else 1]


def _conv(node: onnx.NodeProto, given: Sequence[Tensor], out: Tensor) -> int:
    return out.size * prod(given[1].shape[1:])  # channels of one group, and the window


def _transposed(node: onnx.NodeProto, given: Sequence[Tensor], out: Tensor) -> int:
    return given[0].size * prod(given[1].shape[1:])


PRODUCTS: dict[str, Callable[[onnx.NodeProto, Sequence[Tensor], Tensor], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
}
