"""Give a graph float16 or bfloat16 numbers, with islands of float32: precision lies in the graph.

TensorRT 11 takes types from the graph alone, and from ONNX Runtime's converter there is float16
without bfloat16; so one rewriting serves both. Float32 stay

- normalisations, whose sums over a token are the first thing to lose its small numbers;
- the first product on raw pixels: 0 to 255 times small weights, a share of the time that is not
  worth a rounding, and a convolution that has no bfloat16 before opset 22;
- in a head all that follows its last product: a few channels, which become the answer. A resizing
  that is written as two products with fixed matrices is none of these;
- sums of squares, exponentials and quotients outside Softmax and Gelu, which do theirs in float32
  within the operator.

Attention scores need no island: their scale is folded into the query, before the product.
A softmax of its own type is what fused attention needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from simo_export.resizing import resizes
from simo_runtime.errors import ExportError

FLOAT = TensorProto.FLOAT
HALVES: dict[str, tuple[int, DTypeLike]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
BF16_OPSET = 22  # the first whose convolutions have bfloat16
PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"}
ISLANDS = {
    *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization"),
    *("ReduceL2", "ReduceMean", "ReduceSum", "Div", "Pow", "Sqrt", "Exp", "Log", "Reciprocal"),
}
# What takes the type of its first input and does not reckon with it.
FOLLOWING = {
    *("Reshape", "Transpose", "Split", "Slice", "Pad", "Identity", "Squeeze", "Unsqueeze"),
    *("Flatten", "Expand", "Tile", "Gather", "DepthToSpace", "SpaceToDepth", "Relu", "MaxPool"),
}
# Whose outputs are no floats, whatever goes in.
COUNTING = {
    *("ArgMax", "ArgMin", "Shape", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *("QuantizeLinear", "Not", "And", "Or"),
}
FIXED = {"Resize": (1, 2), "Cast": (0,)}  # inputs that keep their type


def to_half(
    model: onnx.ModelProto, precision: str, *, features: bool, rounded: bool = False
) -> onnx.ModelProto:
    """Rewrite a float32 graph in `fp16` or `bf16`.

    Float inputs become halves; outputs do if they are `features`, else they stay float32. With
    `rounded` the graph computes in float32 and only rounds every number where the other would:
    so that a CPU, which has none of these operators, can tell how near it comes. Products are
    then summed in float32, as GPUs do.
    """
    element, dtype = HALVES[precision]
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:]
    if precision == "bf16":
        for one in made.opset_import:
            one.version = max(one.version, BF16_OPSET) if not one.domain else one.version
    floats = {one.name: one for one in model.graph.initializer if one.data_type == FLOAT}
    work = _Rewriting(element=element, dtype=dtype, rounded=rounded, weights=floats)
    work.tensors += [one for one in model.graph.initializer if one.name not in floats]
    for value in made.graph.input:
        if value.type.tensor_type.elem_type == FLOAT:
            work.types[value.name] = element
            value.type.tensor_type.elem_type = FLOAT if rounded else element
    wide = set(_wide(model.graph, features=features))
    for number, node in enumerate(model.graph.node):
        work.take(node, wide=number in wide)
    for value in made.graph.output:
        if value.type.tensor_type.elem_type == FLOAT:
            work.finish(value.name, element if features else FLOAT)
            value.type.tensor_type.elem_type = element if features and not rounded else FLOAT
    made.graph.node.extend(work.nodes)
    made.graph.initializer.extend(work.tensors)
    return made


@dataclass(kw_only=True)
class _Rewriting:
    """A graph that is being written: what has been taken over, and of which type every value is."""

    element: int
    dtype: DTypeLike
    rounded: bool
    weights: dict[str, onnx.TensorProto]
    types: dict[str, int] = field(default_factory=dict)  # of float values alone
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    made: dict[tuple[str, int], str] = field(default_factory=dict)

    def take(self, node: onnx.NodeProto, *, wide: bool) -> None:
        """Take a node over, its float inputs brought to the type that it computes in."""
        element = self.computes_in(node, wide=wide)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if element is not None:
            fixed = FIXED.get(node.op_type, ())
            for index, name in enumerate(node.input):
                if index not in fixed:
                    copy.input[index] = self.of_type(name, element)
                elif name in self.weights:
                    copy.input[index] = self.of_type(name, FLOAT)
        self.nodes.append(copy)
        if element is not None and node.op_type not in COUNTING:
            self.give(copy, element)

    def computes_in(self, node: onnx.NodeProto, *, wide: bool) -> int | None:
        """Tell the type of a node's floats; None if it has none."""
        said = _said(node)
        if said is not None:
            return FLOAT if said == FLOAT else None
        if node.op_type in FOLLOWING:
            return FLOAT if node.input[0] in self.weights else self.types.get(node.input[0])
        return FLOAT if wide else self.element

    def give(self, node: onnx.NodeProto, element: int) -> None:
        """Note the type of what a node puts out; round it where only that is asked for."""
        exact = element != self.element or node.op_type in FOLLOWING or not self.rounded
        for index, name in enumerate(list(node.output)):
            self.types[name] = element
            if not exact:
                node.output[index] = f"{name}.exact"
                self.round(f"{name}.exact", name)

    def of_type(self, name: str, element: int) -> str:
        """Give the name of a value in a type; what is no float stays as it is."""
        if name in self.weights:
            return self.weight(name, element)
        if self.types.get(name, element) == element:
            return name
        if (name, element) not in self.made:
            target = f"{name}.{_short(element)}"
            self.made[name, element] = target
            if not self.rounded:
                self.nodes.append(helper.make_node("Cast", [name], [target], target, to=element))
            elif element == self.element:
                self.round(name, target)
            else:
                self.made[name, element] = name  # it is wide already
        return self.made[name, element]

    def weight(self, name: str, element: int) -> str:
        """Give the name of weights in a type; they are stored in the types that are asked for."""
        if (name, element) not in self.made:
            twice = any(other == name for other, _ in self.made)
            target = f"{name}.{_short(element)}" if twice else name
            values = numpy_helper.to_array(self.weights[name])
            if element != FLOAT:
                values = self._narrowed(name, values)
            self.tensors.append(numpy_helper.from_array(values, target))
            self.made[name, element] = target
        return self.made[name, element]

    def _narrowed(self, name: str, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            narrow = values.astype(self.dtype)
        if not np.isfinite(narrow.astype(np.float32)).all():
            raise ExportError(f"{name}: its numbers are too large for {_short(self.element)}")
        return narrow.astype(np.float32) if self.rounded else narrow

    def round(self, name: str, target: str) -> None:
        """Bring float32 values to those that the narrow type has, still in float32."""
        narrow = f"{target}.narrow"
        self.nodes.append(helper.make_node("Cast", [name], [narrow], narrow, to=self.element))
        self.nodes.append(helper.make_node("Cast", [narrow], [target], f"{target}.wide", to=FLOAT))

    def finish(self, name: str, element: int) -> None:
        """Give an output its type, if it has the other one."""
        if self.types.get(name, element) == element:
            return
        inner = f"{name}.inner"
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [inner if one == name else one for one in names]
        if self.rounded and element == self.element:
            self.round(inner, name)
        elif self.rounded:
            self.nodes.append(helper.make_node("Identity", [inner], [name], name))
        else:
            self.nodes.append(helper.make_node("Cast", [inner], [name], name, to=element))


def _said(node: onnx.NodeProto) -> int | None:
    """Give the type that a node itself says it puts out, None if that follows from its inputs."""
    values = {one.name: one for one in node.attribute}
    if node.op_type == "Cast":
        return int(values["to"].i)
    if node.op_type in {"Constant", "ConstantOfShape"}:
        return int(values["value"].t.data_type) if "value" in values else FLOAT
    return None


def _short(element: int) -> str:
    return next((name for name, (own, _) in HALVES.items() if own == element), "fp32")


def _wide(graph: onnx.GraphProto, *, features: bool) -> set[int]:
    """Give the numbers of the nodes that compute in float32."""
    nodes = list(graph.node)
    wide = {number for number, node in enumerate(nodes) if node.op_type in ISLANDS}
    if any(one.type.tensor_type.elem_type != FLOAT for one in graph.input):
        wide |= set(_to_first_product(nodes))
    return wide if features else wide | set(_after_last_product(nodes))


def _to_first_product(nodes: list[onnx.NodeProto]) -> Iterator[int]:
    behind: set[str] = set()  # values that a product has gone into
    for number, node in enumerate(nodes):
        below = bool(behind & set(node.input))
        if not below:
            yield number
        if below or node.op_type in PRODUCTS:
            behind.update(node.output)


def _after_last_product(nodes: list[onnx.NodeProto]) -> Iterator[int]:
    ahead: set[str] = set()  # values that go into a product
    for number in range(len(nodes) - 1, -1, -1):
        product = nodes[number].op_type in PRODUCTS and not resizes(nodes[number])
        if product or ahead & set(nodes[number].output):
            ahead.update(nodes[number].input)
        else:
            yield number
