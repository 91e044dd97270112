"""A reader looks into every graph before an engine does, and refuses what no bundle may hold."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from simo_runtime.bundle import MANIFEST, Bundle, sha256_of
from simo_runtime.errors import BundleError, UnknownNameError
from simo_runtime.graphs import OPERATORS
from simo_runtime.onnxfile import GRAPH_BYTES, GRAPH_NODES, read_onnx
from tests.test_bundle import edit


def rewrite(bundle: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph, and the manifest with it, as someone would who wants to get in."""
    model = onnx.load(bundle / name, load_external_data=False)
    change(model)
    replace(bundle, name, model.SerializeToString())


def replace(bundle: Path, name: str, data: bytes) -> None:
    (bundle / name).write_bytes(data)
    told = {"sha256": sha256_of(bundle / name), "bytes": len(data)}
    edit(bundle, lambda manifest: manifest["files"].update({name: told}))


def point(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Let the first weights that lie outside a graph lie elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.external_data)
        entry = next(one for one in tensor.external_data if one.key == key)
        entry.value = value

    return change


ELSEWHERE = ("../encoder.bin", "/etc/passwd", "a/encoder.bin", "..", "", "other.bin", "a\\b.bin")


@pytest.mark.parametrize("graph", ["encoder.onnx", "joint.onnx"])
@pytest.mark.parametrize("location", ELSEWHERE)
def test_weights_that_lie_outside_the_bundle_are_refused(
    rooms_copy: Path, graph: str, location: str
) -> None:
    rewrite(rooms_copy, graph, point("location", location))
    with pytest.raises(BundleError, match=rf"{graph}: weights .* which is no file of the bundle"):
        Bundle.open(rooms_copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "99999999999", "which has"),
        ("length", "99999999999", "which has"),
        ("offset", "-4", "is no number of bytes"),
        ("length", "1e3", "is no number of bytes"),
        ("offset", "٣", "is no number of bytes"),  # a digit, but not one that is meant
    ],
)
def test_weights_past_the_end_are_refused(
    rooms_copy: Path, key: str, value: str, message: str
) -> None:
    rewrite(rooms_copy, "encoder.onnx", point(key, value))
    with pytest.raises(BundleError, match=message):
        Bundle.open(rooms_copy)


def test_weights_that_lie_in_two_places_are_refused(rooms_copy: Path) -> None:
    def twice(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.external_data)
        tensor.external_data.add(key="location", value="/etc/passwd")

    rewrite(rooms_copy, "encoder.onnx", twice)
    with pytest.raises(BundleError, match="does not say once where it lies"):
        Bundle.open(rooms_copy)


def test_weights_of_a_constant_node_must_lie_in_the_bundle_too(rooms_copy: Path) -> None:
    def constant(model: onnx.ModelProto) -> None:
        tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "sly")
        node = onnx.helper.make_node("Constant", [], ["sly"], value=tensor)
        onnx.external_data_helper.set_external_data(node.attribute[0].t, "../outside.bin")
        model.graph.node.insert(0, node)

    rewrite(rooms_copy, "depth.onnx", constant)
    with pytest.raises(BundleError, match=r"weights 'sly' lie in '\.\./outside\.bin'"):
        Bundle.open(rooms_copy)


def test_a_hard_link_is_refused(rooms_copy: Path, tmp_path: Path) -> None:
    os.link(rooms_copy / "encoder.bin", tmp_path / "other-name")
    with pytest.raises(BundleError, match=r"encoder\.bin: a hard link"):
        Bundle.open(rooms_copy)


def add_node(op: str, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node(op, ["tap2"], ["more"], domain=domain))

    return change


def add_branch(model: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "inner", [], [])
    model.graph.node.append(
        onnx.helper.make_node("If", ["tap2"], ["more"], then_branch=inner, else_branch=inner)
    )


def add_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="own")


def add_nodes(model: onnx.ModelProto) -> None:
    for _ in range(GRAPH_NODES):
        model.graph.node.add(op_type="Abs")


FOREIGN: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "another domain": (add_node("Attention", "com.microsoft"), r"com\.microsoft\.Attention"),
    "an unknown operator": (add_node("ReadFile"), "operators that no bundle may need: ReadFile"),
    "control flow": (add_branch, "graphs and sparse tensors in nodes are not read"),
    "functions": (add_function, "functions of its own"),
    "too many nodes": (add_nodes, rf"\d+ nodes; at most {GRAPH_NODES}"),
    "no nodes": (lambda model: model.graph.ClearField("node"), "no nodes"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_graph_of_foreign_parts_is_refused(rooms_copy: Path, case: str) -> None:
    change, message = FOREIGN[case]
    rewrite(rooms_copy, "seg.onnx", change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(rooms_copy)


def test_a_huge_graph_is_refused_before_it_is_read(rooms_copy: Path) -> None:
    path = rooms_copy / "seg.onnx"
    with path.open("wb") as file:
        file.truncate(GRAPH_BYTES + 1)  # takes no room
    with pytest.raises(BundleError, match=rf"at most {GRAPH_BYTES}"):
        read_onnx(path)


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x0b", b"\xff" * 40, b"\x3a\xff\x01"])
def test_what_is_no_graph_is_refused_by_name(rooms_copy: Path, data: bytes) -> None:
    replace(rooms_copy, "seg.onnx", data)
    with pytest.raises(BundleError, match=r"seg\.onnx: cannot be read as an ONNX graph"):
        Bundle.open(rooms_copy)


def test_a_graph_that_is_cut_anywhere_gives_no_traceback(
    rooms_bundle: Path, tmp_path: Path
) -> None:
    whole, path = (rooms_bundle / "depth.onnx").read_bytes(), tmp_path / "cut.onnx"
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
            read_onnx(path)


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "the image's size": (lambda d: d.update(image_size=[120, 161]), r"input image is uint8"),
    "the features' order": (lambda d: d["features"].reverse(), "outputs are tap2"),
    "the number of features": (lambda d: d["features"].pop(), "outputs are tap2"),
    "a task's kind": (
        lambda d: d["tasks"][1].update(kind="normals", channels=3, metric="mean_angle"),
        r"output depth is float32 \(batch, 120, 160\); the manifest says",
    ),
    "one head for another": (
        lambda d: d["graphs"]["fp32"]["heads"].update(seg="depth.onnx", depth="seg.onnx"),
        "outputs are",
    ),
    "the joint for the encoder": (
        lambda d: d["graphs"]["fp32"].update(encoder="joint.onnx", joint="encoder.onnx"),
        "outputs are",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_manifest_that_lies_about_its_graphs_is_refused(rooms_copy: Path, case: str) -> None:
    change, message = LIES[case]
    edit(rooms_copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(rooms_copy)


def test_a_graph_with_a_fixed_batch_is_refused(rooms_copy: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

    rewrite(rooms_copy, "depth.onnx", fix)
    with pytest.raises(BundleError, match=r"output depth is float32 \(1, 120, 160\)"):
        Bundle.open(rooms_copy)


KEYS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no fp32": (lambda d: d["graphs"].pop("fp32"), "fp32 must be among the precisions"),
    "an unknown precision": (
        lambda d: d["graphs"].update(fp61=d["graphs"]["fp32"]),
        "did you mean 'fp16'",
    ),
    "a file used twice": (lambda d: d["graphs"].update(fp16=d["graphs"]["fp32"]), "stands twice"),
    "a file that is not listed": (
        lambda d: d["graphs"]["fp32"].update(encoder="other.onnx"),
        r"other\.onnx is not listed",
    ),
    "an idle graph": (
        lambda d: d["graphs"]["fp32"].update(joint=None),
        r"joint\.onnx is in files, but is no graph",
    ),
    "a head too few": (lambda d: d["graphs"]["fp32"]["heads"].pop("seg"), "must have the tasks"),
    "no heads": (lambda d: d["graphs"]["fp32"].pop("heads"), "the key 'heads' is missing"),
    "a list": (lambda d: d.update(graphs=["fp32"]), "graphs is a list"),
    "a number": (lambda d: d["graphs"].update(fp16=3), "manifest.json"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_manifest_whose_graphs_make_no_sense_is_refused(rooms_copy: Path, case: str) -> None:
    change, message = KEYS[case]
    edit(rooms_copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(rooms_copy)


def test_a_bundle_from_before_there_were_joint_graphs_opens(rooms_copy: Path) -> None:
    (rooms_copy / "joint.onnx").unlink()

    def older(manifest: dict[str, Any]) -> None:
        del manifest["graphs"], manifest["files"]["joint.onnx"]

    edit(rooms_copy, older)
    bundle = Bundle.open(rooms_copy)
    assert bundle.graph("seg") == rooms_copy / "seg.onnx"
    with pytest.raises(UnknownNameError, match="unknown graph 'joint'"):
        bundle.graph("joint")


def test_a_precision_that_is_not_there_is_named_with_those_that_are(rooms_bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown precision 'fp16' \(there are: fp32\)"):
        Bundle.open(rooms_bundle).graph("encoder", "fp16")


def test_the_joint_graph_gives_what_encoder_and_heads_give(rooms_bundle: Path) -> None:
    bundle = Bundle.open(rooms_bundle)
    image = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)

    def run(name: str, given: dict[str, Any]) -> dict[str, Any]:
        session = onnxruntime.InferenceSession(bundle.graph(name))
        outputs = [output.name for output in session.get_outputs()]
        return dict(zip(outputs, session.run(outputs, given), strict=True))

    joint, taps = run("joint", {"image": image}), run("encoder", {"image": image})
    assert list(joint) == ["seg", "depth", "normals"]
    for task, values in joint.items():
        alone = run(task, taps)[task]
        assert values.dtype == alone.dtype
        if task == "seg":
            assert (values == alone).mean() > 0.9999
        else:
            np.testing.assert_allclose(values, alone, rtol=1e-4, atol=1e-4)


def test_the_joint_graph_has_no_weights_of_its_own(rooms_bundle: Path) -> None:
    graph = Bundle.open(rooms_bundle).graph
    elsewhere = {
        (one.location, one.offset)
        for name in ("encoder", "seg", "depth", "normals")
        for one in read_onnx(graph(name)).external
    }
    assert {(one.location, one.offset) for one in read_onnx(graph("joint")).external} == elsewhere


def test_every_operator_of_the_allow_list_is_one_of_the_standard() -> None:
    assert {one.name for one in onnx.defs.get_all_schemas() if not one.domain} >= OPERATORS


def test_the_reader_sees_what_the_onnx_package_sees(rooms_bundle: Path) -> None:
    manifest = json.loads((rooms_bundle / MANIFEST).read_text())
    for name in (name for name in manifest["files"] if name.endswith(".onnx")):
        model, found = onnx.load(rooms_bundle / name, load_external_data=False), None
        found = read_onnx(rooms_bundle / name)
        assert {op for _, op in found.operators} == {node.op_type for node in model.graph.node}
        assert [one.name for one in found.inputs] == [one.name for one in model.graph.input]
        outside = [one.name for one in model.graph.initializer if one.external_data]
        assert [one.tensor for one in found.external] == outside
        sizes = [
            tuple(d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim)
            for o in model.graph.output
        ]
        assert [one.shape for one in found.outputs] == sizes
