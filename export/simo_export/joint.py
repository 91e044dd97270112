"""One graph of encoder and heads, whose weights are those that lie beside the single graphs."""

from collections.abc import Mapping

import onnx
from onnx.compose import add_prefix_graph, merge_graphs


def joined(encoder: onnx.ModelProto, heads: Mapping[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Put heads behind an encoder: its inputs in, every head's outputs out, no features.

    A head's inputs are outputs of the encoder by name. Names within a head get its task before
    them, `seg/`, so that none stands twice. Weights that lie outside their graphs stay where they
    are: nothing is copied.
    """
    features = [output.name for output in encoder.graph.output]
    graph, outputs = encoder.graph, []
    for task, head in heads.items():
        own = _prefixed(head.graph, f"{task}/")
        graph = merge_graphs(
            graph,
            own,
            io_map=[(one.name, f"{task}/{one.name}") for one in head.graph.input],
            name="graph",
            doc_string="",
        )
        # the taps that this head has read are needed by the next ones
        kept = {output.name for output in graph.output}
        graph.output.extend(one for one in encoder.graph.output if one.name not in kept)
        outputs += [one.name for one in head.graph.output]
    finished = {one.name: one for one in graph.output if one.name not in features}
    del graph.output[:], graph.value_info[:]
    graph.output.extend(finished[name] for name in outputs)
    made = onnx.ModelProto()
    made.CopyFrom(encoder)
    made.graph.CopyFrom(graph)
    return made


def _prefixed(graph: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """Put a prefix before all names of a graph but those of its outputs."""
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    renamed: onnx.GraphProto = add_prefix_graph(copy, prefix, inplace=True)
    back = {prefix + one.name: one.name for one in graph.output}
    for node in renamed.node:
        for names in (node.input, node.output):
            names[:] = [back.get(name, name) for name in names]
    for value in renamed.output:
        value.name = back[value.name]
    return renamed
