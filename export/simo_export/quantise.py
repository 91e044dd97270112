"""Give a graph whole numbers of 8 bits, or fp8, where it multiplies by weights.

ONNX Runtime's quantisation does the work, in QDQ form. What is quantised was chosen by measuring:

- inputs and weights of products by weights (the four of every block), and nothing else. Products of
  attention stay in floats: they are an eighth of the work, and an error there moves every token;
- outputs are not quantised: they are sums, which an engine has in full anyway. Quantising them
  costs accuracy, and time for two more passes over memory;
- but for the layers at which the difference rises most, where the gate asks for it: in some models
  one or two see a few huge numbers, which leave the others a handful of steps;
- symmetric signed numbers on both sides, weights by output channel: the form that TensorRT takes.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from simo_export.graph import strip

PRODUCTS = ("MatMul", "Gemm")


class Images:
    """Calibration images, (n, H, W, 3) uint8, one after another as ONNX Runtime asks for them."""

    def __init__(self, name: str, images_nHW3: NDArray[np.uint8]) -> None:
        self._rows: Iterator[dict[str, Any]] = (
            {name: images_nHW3[index : index + 1]} for index in range(len(images_nHW3))
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _products_of(graph: onnx.GraphProto, layers: tuple[str, ...]) -> Iterator[str]:
    """Give the names of the products of layers: those that the layers' biases are added to."""
    makers = {node.output[0]: node for node in graph.node}
    biases = {f"{layer}.bias" for layer in layers}
    for node in graph.node:
        if biases & set(node.input):
            yield from (makers[name].name for name in node.input if name in makers)


def quantised(
    saved: Path,
    images_nHW3: NDArray[np.uint8],
    *,
    keep: tuple[str, ...] = (),
    form: Literal["int8", "fp8"] = "int8",
) -> onnx.ModelProto:
    """Quantise a saved float32 graph of one image input, whose ranges the images tell.

    `keep` are layers whose products stay in floats. fp8 is E4M3, weights as a whole. Gives the
    graph with its weights in it.
    """
    # Imported here: it takes a second, and most builds do not quantise.
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(saved, load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    floats = [
        node.name
        for node in graph.node
        if node.op_type in PRODUCTS and not weights & set(node.input[:2])
    ]
    # it advises, by the root logger, to fuse first: operators that are not of the standard
    logging.getLogger().addFilter(_no_advice)
    number = QuantType.QInt8 if form == "int8" else QuantType.QFLOAT8E4M3FN
    whole = form == "int8"
    # it prints the number of bins of its histograms
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        path = Path(folder) / "quantised.onnx"
        quantize_static(
            str(saved),
            str(path),
            Images(graph.input[0].name, images_nHW3),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=[*floats, *_products_of(graph, keep)],
            activation_type=number,
            weight_type=number,
            per_channel=whole,
            calibrate_method=CalibrationMethod.MinMax if whole else CalibrationMethod.Distribution,
            extra_options={
                "ActivationSymmetric": whole,
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            },
        )
        made = onnx.load(path)
    strip(made)
    for tensor in made.graph.initializer:  # some are lists of numbers, which cannot lie outside
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    used = {node.domain for node in made.graph.node}
    imports = [one for one in made.opset_import if one.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(imports)
    return made
