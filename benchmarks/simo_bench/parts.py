"""Parts of a bundle: a bundle with some of its tasks."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from simo_bench.disk import locations
from simo_runtime.bundle import MANIFEST, Bundle, FileEntry, sha256_of
from simo_runtime.graphs import GraphFiles


def part_of(bundle: Bundle, tasks: Sequence[str], out: Path, precision: str) -> Bundle:
    """Write a bundle with some of a bundle's tasks: fp32 and one more precision at most."""
    manifest = bundle.manifest
    kept = {name: files for name, files in manifest.graphs.items() if name in ("fp32", precision)}
    graphs = {
        name: replace(files, heads={task: files.heads[task] for task in tasks})
        for name, files in kept.items()
    }
    out.mkdir(parents=True)
    for files in graphs.values():
        _copy(bundle, files, out)
    listed = {
        path.name: FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in sorted(out.iterdir())
    }
    part = replace(
        manifest,
        name=f"{manifest.name} of {', '.join(tasks)}",
        tasks=tuple(manifest.task(task) for task in tasks),
        graphs=graphs,
        files=listed,
    )
    (out / MANIFEST).write_text(part.to_json(), encoding="utf-8")
    return Bundle.open(out)


def _copy(bundle: Bundle, files: GraphFiles, out: Path) -> None:
    """Copy graphs with the files that their weights lie in; a joint graph loses its other heads."""
    for name in (files.encoder, *files.heads.values()):
        shutil.copyfile(bundle.root / name, out / name)
        for weights in locations(onnx.load(bundle.root / name, load_external_data=False)):
            if not (out / weights).exists():
                shutil.copyfile(bundle.root / weights, out / weights)
    if files.joint is not None:
        joint = onnx.load(bundle.root / files.joint, load_external_data=False)
        onnx.save(pruned(joint, list(files.heads)), out / files.joint)


def pruned(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """Give a graph with some of its outputs, and nothing that only the others need."""
    needed, nodes = set(outputs), []
    for node in reversed(model.graph.node):  # ONNX has them in an order that can be run
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = [one for one in model.graph.initializer if one.name in needed]
    ends = [one for one in model.graph.output if one.name in outputs]
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.output[:]
    copy.graph.node.extend(reversed(nodes))
    copy.graph.initializer.extend(weights)
    copy.graph.output.extend(ends)
    return copy
