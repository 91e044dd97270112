"""Find the layer at which a graph leaves PyTorch: what a failed gate names."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from simo_export.check import Graph


@dataclass(frozen=True)
class Rise:
    """A layer of the encoder and the relative difference |x - y| / |y| before and after it."""

    layer: str
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"the difference rises most at {self.layer}, from {self.before:.2g} to {self.after:.2g}"
        )


@torch.inference_mode()
def worst_layer(
    model: onnx.ModelProto,
    encoder: nn.Module,
    pixels_BHW3: NDArray[np.uint8],
    *,
    fused: bool = True,
) -> Rise | None:
    """Compare layer by layer; None if no layer of the graph can be told by its weights' names."""
    expected: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, given, made: expected.__setitem__(name, made)

    hooks = [
        module.register_forward_hook(keep(name))  # type: ignore[arg-type]  # gives None
        for name, module in encoder.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm))
    ]
    try:
        encoder(torch.from_numpy(pixels_BHW3))
    finally:
        for hook in hooks:
            hook.remove()
    places = dict(_places(model.graph, set(expected)))
    found = Graph(_showing(model, list(places.values())), fused=fused)({"image": pixels_BHW3})
    worst, highest = None, 0.0
    for layer, value in places.items():
        apart = _difference(found[value], expected[layer].numpy())
        if worst is None or not apart - highest <= worst.after - worst.before:  # NaN is worst
            worst = Rise(layer, highest, apart)
        if np.isnan(apart):
            break
        highest = max(highest, apart)
    return worst


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    apart = np.linalg.norm(found.astype(np.float64) - expected)
    return float(apart / max(float(np.linalg.norm(expected)), 1e-12))


def _places(graph: onnx.GraphProto, layers: set[str]) -> Iterator[tuple[str, str]]:
    """Give layers in their order, each with the value that it puts out: where its bias is added.

    Biases that several layers share, all zeros for instance, tell nothing.
    """
    uses = Counter(name for node in graph.node for name in node.input)
    weights = {one.name for one in graph.initializer if uses[one.name] == 1}
    for node in graph.node:
        for name in weights & set(node.input):
            layer = name.partition(".bias")[0]
            if layer != name and layer in layers:
                yield layer, node.output[0]


def _showing(model: onnx.ModelProto, values: list[str]) -> onnx.ModelProto:
    """Copy a graph so that it puts out these float32 values, and nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in values
    )
    return copy
