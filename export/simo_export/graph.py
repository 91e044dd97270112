"""PyTorch modules in, ONNX graphs out: static image size, dynamic batch, weights beside the graph.

The exporter is PyTorch's torch.export-based one (`dynamo=True`), named because the default has
changed before. The same module gives the same bytes: names come from the module, and the stack
traces that the exporter writes into every node, with paths of the machine, are taken out.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from simo_export.joint import joined
from simo_runtime.errors import ExportError

OPSET = 20  # the first with Gelu as one operator; TensorRT 10 and ONNX Runtime 1.18 read it
EXPORTER = f"torch.onnx dynamo, opset {OPSET}"
EXTERNAL_FROM = 256  # bytes; smaller constants stay in the graph
DOMAINS = {"", "ai.onnx"}
LARGEST = 2**31 - 1  # bytes of a protobuf message, while its weights are still in it


def export_graph(
    module: nn.Module,
    example: Sequence[Tensor],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Export a module whose inputs and outputs have the batch as their first axis.

    `example` has a batch of 2, because exporters take a batch of 1 for a constant.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own insides
        program = torch.onnx.export(
            module.eval(),
            tuple(example),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(shapes,) if _takes_varargs(module) else shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{type(module).__name__}: the exporter gave nothing")
    model = program.model_proto
    if (size := model.ByteSize()) > LARGEST:
        raise ExportError(
            f"{type(module).__name__}: {size} bytes with its weights; ONNX holds at most "
            f"{LARGEST}, which is 530 million weights in float32"
        )
    strip(model)
    check_domains(model)
    onnx.checker.check_model(model)
    return model


def _takes_varargs(module: nn.Module) -> bool:
    """Tell whether forward takes *inputs, whose shapes torch.export wants as one tuple."""
    return bool(module.forward.__code__.co_flags & 0x04)


def strip(model: onnx.ModelProto) -> None:
    """Remove everything that is not needed to run and may differ between machines."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "simo_export", ""
    graph = model.graph
    graph.name, graph.doc_string = "graph", ""
    del graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def check_domains(model: onnx.ModelProto) -> None:
    """Refuse operators that not every ONNX runtime has."""
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in model.graph.node} - _standard(model))
    if foreign or len(model.functions):
        raise ExportError(f"the graph needs operators outside the standard: {', '.join(foreign)}")


def _standard(model: onnx.ModelProto) -> set[str]:
    return {f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain in DOMAINS}


def without_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Copy a graph without one of its outputs; nodes stay as they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [output for output in copy.graph.output if output.name != name]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def save_graph(model: onnx.ModelProto, folder: Path, name: str) -> onnx.ModelProto:
    """Write `<name>.onnx` and its weights, `<name>.bin`, into a folder that exists.

    Gives the graph as it is written, its weights outside.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of the model it is given
    for tensor in copy.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) >= EXTERNAL_FROM:
            set_external_data(tensor, f"{name}.bin")
    onnx.save_model(copy, folder / f"{name}.onnx")
    weights = folder / f"{name}.bin"
    if weights.is_file():  # onnx writes it for its owner alone; a bundle is read like any file
        weights.chmod((folder / f"{name}.onnx").stat().st_mode)
    return copy


def save_joint(
    encoder: onnx.ModelProto, heads: Mapping[str, onnx.ModelProto], folder: Path, name: str
) -> None:
    """Write `<name>.onnx`, one graph of saved ones; its weights are in their files already."""
    path = folder / f"{name}.onnx"
    path.write_bytes(joined(encoder, heads).SerializeToString(deterministic=True))
    onnx.checker.check_model(path)
