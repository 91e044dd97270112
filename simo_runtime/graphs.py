"""The graphs of a bundle: which file is which, and what each may hold.

A reader looks into every graph before an engine does. A graph that needs foreign operators, that
takes its weights from elsewhere than a listed file, or whose inputs and outputs are not what the
manifest says, is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simo_runtime.errors import BundleError, listing, unknown
from simo_runtime.onnxfile import OnnxFile, Value, read_onnx
from simo_runtime.tasks import TaskSpec

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
ENCODER, JOINT, IMAGE = "encoder", "joint", "image"
FLOATS = ("float32", "float16", "bfloat16")  # of features
# Operators of the standard that a graph may use: what dense vision models are made of, and none
# that holds a graph of its own or reads anything but its inputs.
NAMES = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal
    Erf Exp Expand Flatten Floor Gather GatherElements Gelu Gemm GlobalAveragePool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mish Mod Mul Neg Not Or
    PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum
    Relu Reshape Resize Round ScatterND Selu Shape Sigmoid Sign Sin Slice Softmax Softplus
    SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = frozenset(NAMES.split())


@dataclass(frozen=True, kw_only=True)
class GraphFiles:
    """The graphs of one precision, by file name; they share the weights beside them."""

    encoder: str
    heads: Mapping[str, str]
    joint: str | None = None  # encoder and all heads in one; None in a bundle of an older build

    def named(self) -> dict[str, str]:
        """Give all files by `encoder`, `joint` and the tasks' names."""
        joint = {} if self.joint is None else {JOINT: self.joint}
        return {ENCODER: self.encoder, **joint, **self.heads}


def stem(name: str, precision: str) -> str:
    """Give the name of a graph's files without their ending: `seg`, `seg.fp16`."""
    return name if precision == "fp32" else f"{name}.{precision}"


def usual_files(tasks: Mapping[str, Any] | list[str], precision: str) -> GraphFiles:
    """Give the files of a precision under their usual names."""
    return GraphFiles(
        encoder=f"{stem(ENCODER, precision)}.onnx",
        heads={task: f"{stem(task, precision)}.onnx" for task in tasks},
        joint=f"{stem(JOINT, precision)}.onnx",
    )


def parse_graphs(data: object, tasks: list[str], files: Mapping[str, Any]) -> dict[str, GraphFiles]:
    """Read the key `graphs`; ValueError or UnknownNameError says what is wrong.

    Without the key there is one precision, fp32, under the usual names and without a joint graph.
    """
    if data is None:
        usual = usual_files(tasks, "fp32")
        found = {"fp32": GraphFiles(encoder=usual.encoder, heads=usual.heads)}
    elif isinstance(data, dict):
        found = {str(name): _files(str(name), entry, tasks) for name, entry in data.items()}
    else:
        raise ValueError(f"graphs is a {type(data).__name__}; it must be an object")
    if "fp32" not in found:
        raise ValueError("graphs: fp32 must be among the precisions")
    used = [file for one in found.values() for file in one.named().values()]
    # a head may serve several precisions, once in each; all else belongs to one
    own = [file for one in found.values() for file in (one.encoder, one.joint) if file is not None]
    double = {file for file in own if used.count(file) > 1}
    for one in found.values():
        double |= {file for file in one.heads.values() if list(one.heads.values()).count(file) > 1}
    if double:
        raise ValueError(f"graphs: {min(double)} stands twice")
    if missing := sorted(set(used) - set(files)):
        raise ValueError(f"files: {', '.join(missing)} is not listed")
    if idle := sorted({file for file in files if file.endswith(".onnx")} - set(used)):
        raise ValueError(f"graphs: {idle[0]} is in files, but is no graph of any precision")
    return found


def _files(precision: str, entry: Mapping[str, Any], tasks: list[str]) -> GraphFiles:
    if precision not in PRECISIONS:
        raise unknown("precision in graphs", precision, PRECISIONS)
    heads = {str(task): str(file) for task, file in entry["heads"].items()}
    if set(heads) != set(tasks):
        raise ValueError(f"graphs.{precision}.heads must have the tasks, {', '.join(tasks)}")
    joint = entry["joint"]
    return GraphFiles(
        encoder=str(entry["encoder"]), heads=heads, joint=None if joint is None else str(joint)
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the manifest says that the graphs take and give."""

    image_size: tuple[int, int]
    features: tuple[str, ...]
    tasks: tuple[TaskSpec, ...]
    sizes: Mapping[str, int]  # bytes of every listed file


def check_graphs(root: Path, graphs: Mapping[str, GraphFiles], expected: Expected) -> None:
    """Look into every graph of a bundle; BundleError lists what is wrong, by file."""
    faults = []
    for files in graphs.values():
        read = {name: read_onnx(root / file) for name, file in files.named().items()}
        for name, found in read.items():
            own = [
                *_foreign(found),
                *_outside(found, expected.sizes),
                *_sides(name, read, expected),
            ]
            faults += [f"{files.named()[name]}: {fault}" for fault in own]
    if faults:
        raise BundleError(
            f"{root}: graphs that are not what a bundle holds\n{listing(faults)}\n"
            "Build it again, or take it from somewhere you trust."
        )


def _foreign(found: OnnxFile) -> Iterator[str]:
    names = [f"{domain}.{name}" if domain else name for domain, name in found.operators]
    foreign = sorted(set(names) - OPERATORS)
    if foreign:
        yield f"operators that no bundle may need: {', '.join(foreign)}"
    if found.functions:
        yield "it brings functions of its own"


def _outside(found: OnnxFile, sizes: Mapping[str, int]) -> Iterator[str]:
    """Say which weights do not lie in a listed file. Their names are plain, and hashes known."""
    for one in found.external:
        size = sizes.get(one.location)
        if size is None:
            yield f"weights {one.tensor!r} lie in {one.location!r}, which is no file of the bundle"
        elif one.offset + (one.length or 0) > size:
            yield (
                f"weights {one.tensor!r} end at byte {one.offset + (one.length or 0)} of "
                f"{one.location}, which has {size}"
            )


def _sides(name: str, read: Mapping[str, OnnxFile], expected: Expected) -> Iterator[str]:
    """Compare the inputs and outputs of one graph with the manifest."""
    found, image = read[name], Value(IMAGE, "uint8", ("batch", *expected.image_size, 3))
    taps = {one.name: one for one in read[ENCODER].outputs}
    if name == ENCODER:
        yield from _compare("inputs", found.inputs, [image])
        yield from _taps(found, expected.features)
    elif name == JOINT:
        yield from _compare("inputs", found.inputs, [image])
        yield from _compare(
            "outputs", found.outputs, [_output(t, expected) for t in expected.tasks]
        )
    else:
        task = next(task for task in expected.tasks if task.name == name)
        given = [taps.get(one.name, Value(one.name, "no tap", ())) for one in found.inputs]
        yield from _compare("inputs", found.inputs, given)
        yield from _compare("outputs", found.outputs, [_output(task, expected)])


def _taps(found: OnnxFile, features: tuple[str, ...]) -> Iterator[str]:
    names = tuple(one.name for one in found.outputs)
    if names != features:
        yield f"outputs are {', '.join(names)}; the manifest has {', '.join(features)}"
    for one in found.outputs:
        fixed = all(isinstance(size, int) and size > 0 for size in one.shape[1:])
        if not (one.element in FLOATS and len(one.shape) == 3 and fixed):
            yield f"output {_said(one)}; it must be floats (batch, tokens, width)"


def _output(task: TaskSpec, expected: Expected) -> Value:
    """Give what a head puts out: classes (B, H, W), values (B, H, W) or vectors (B, 3, H, W)."""
    size = expected.image_size
    if task.labels:
        return Value(task.name, "uint8", ("batch", *size))
    shape = size if task.channels == 1 else (task.channels, *size)
    return Value(task.name, "float32", ("batch", *shape))


def _compare(what: str, found: tuple[Value, ...], wanted: list[Value]) -> Iterator[str]:
    """Compare values in their order; of the batch only that it is not fixed."""
    if [one.name for one in found] != [one.name for one in wanted]:
        names = ", ".join(one.name for one in found)
        yield f"{what} are {names or 'none'}; they must be {', '.join(one.name for one in wanted)}"
        return
    for one, other in zip(found, wanted, strict=True):
        batch = one.shape[:1] and isinstance(one.shape[0], str)
        same = one.element == other.element and one.shape[1:] == other.shape[1:]
        if not (batch and same):
            yield f"{what[:-1]} {_said(one)}; the manifest says {_said(other)}"


def _said(value: Value) -> str:
    return f"{value.name} is {value.element} ({', '.join(map(str, value.shape))})"
