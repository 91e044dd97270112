"""Write a bundle anew with one more head, which is held to PyTorch in every precision."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from simo_build.addition.place import Addition
from simo_build.build import first, versions
from simo_build.export import FinishedHead, heads_of
from simo_build.fit import Outcome
from simo_build.gated import RAW, Arm, Reference, compare
from simo_build.hashing import digest
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS
from simo_build.statedict import state_hash
from simo_export.bundle import write_bundle
from simo_export.gate import faults
from simo_export.graph import export_graph, save_graph, save_joint, without_output
from simo_export.precision import HALVES, to_half
from simo_runtime.bundle import REPORTS, Bundle
from simo_runtime.errors import ExportError, listing
from simo_runtime.golden import GOLDEN
from simo_runtime.graphs import ENCODER, JOINT, GraphFiles, stem


def write(adding: Addition, head: Head, outcome: Outcome) -> Bundle:
    """Write the bundle anew, with everything that was in it; it appears whole or not at all."""
    old = adding.bundle
    exported = export_head(adding, head)
    found = check(adding, head, exported)
    manifest = old.manifest
    added = {
        "task": adding.task,
        "recipe": adding.loaded.text,
        "weights": state_hash(head.state_dict()),
        "step": adding.step.model_dump(mode="json"),
        "outcome": vars(outcome),
        "versions": versions(),
        "gate": found,
    }
    before = {key: value for key, value in manifest.provenance.items() if key != "key"}
    additions = [*before.pop("added", []), added]
    key = digest({"before": manifest.provenance.get("key"), "added": added})
    graphs = {kind: with_head(old, kind, adding.task) for kind in manifest.graphs}
    joints = {files.joint for files in manifest.graphs.values()}
    untouched = set(manifest.files) - joints - {GOLDEN}

    def fill(folder: Path) -> None:
        for name in sorted(untouched):
            shutil.copyfile(old.root / name, folder / name)
        for kind, files in graphs.items():
            path = folder / files.heads[adding.task]
            if not path.exists():  # precisions may share it
                head = without_output(in_precision(exported, kind), RAW)
                save_graph(head, folder, path.stem)
            join(folder, files, kind)

    reports = {name: old.root / name for name in REPORTS if (old.root / name).is_file()}
    kept = {name: path.read_bytes() for name, path in reports.items()}
    bundle = write_bundle(
        old.root,
        replace(
            manifest,
            tasks=(*manifest.tasks, adding.spec),
            graphs=graphs,
            files={},
            provenance={**before, "added": additions, "key": key},
        ),
        fill,
    )
    for name, content in kept.items():  # they tell of the build, which is still true
        (bundle.root / name).write_bytes(content)
    return bundle


def with_head(bundle: Bundle, precision: str, task: str) -> GraphFiles:
    """Give the graphs of a precision with one more head; int8 has that of float32, fp8 of fp16."""
    files, shared = bundle.manifest.graphs[precision], heads_of(precision)
    name = stem(task, shared if shared in bundle.manifest.graphs else precision)
    return replace(
        files,
        heads={**files.heads, task: f"{name}.onnx"},
        joint=files.joint or f"{stem(JOINT, precision)}.onnx",
    )


@torch.inference_mode()
def export_head(adding: Addition, head: Head) -> onnx.ModelProto:
    """Fold the head and export it in float32; it still has its raw output."""
    size = adding.bundle.manifest.image_size
    taps = adding.encoder(torch.zeros(2, *size, 3, dtype=torch.uint8))
    module = FinishedHead(head.folded(), TORCH_KINDS[adding.spec.kind].finish)
    return export_graph(
        module, taps, inputs=adding.bundle.manifest.features, outputs=[RAW, adding.task]
    )


def in_precision(exported: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Give the head as a precision has it."""
    numbers = heads_of(precision)
    return to_half(exported, numbers, features=False) if numbers in HALVES else exported


def join(folder: Path, files: GraphFiles, precision: str) -> None:
    """Write the joint graph of saved ones anew; its weights stay in their files."""
    encoder = onnx.load(folder / files.encoder, load_external_data=False)
    heads = {
        task: onnx.load(folder / file, load_external_data=False)
        for task, file in files.heads.items()
    }
    save_joint(encoder, heads, folder, stem(JOINT, precision))


def check(adding: Addition, head: Head, exported: onnx.ModelProto) -> list[dict[str, Any]]:
    """Hold the head to PyTorch in every precision of the bundle, behind that one's encoder.

    A precision that fails is an error: the bundle cannot have it for some tasks and not for others.
    """
    recipe = adding.loaded.recipe
    reference = Reference(
        encoder=adding.encoder,
        folded=adding.encoder,
        heads={adding.task: head},
        specs={adding.task: adding.spec},
        samples=first(adding.samples["select"], recipe),
    )
    rows, wrong = [], []
    for precision in adding.bundle.manifest.graphs:
        tasks, _ = compare(arm_of(adding, precision, exported), reference)
        limits = recipe.export.limits(precision)
        for one in tasks:
            rows.append({"precision": precision, **vars(one)})
            wrong += [f"{precision} {fault}" for fault in faults(one, limits)]
    if wrong:
        raise ExportError(f"the exported head differs from PyTorch\n{listing(wrong, limit=9)}")
    return rows


def arm_of(adding: Addition, precision: str, exported: onnx.ModelProto) -> Arm:
    """Give the graphs of a precision as a CPU can run them."""
    if precision in HALVES:
        encoder = to_half(
            onnx.load(adding.bundle.graph(ENCODER)), precision, features=True, rounded=True
        )
        head = to_half(exported, precision, features=False, rounded=True)
        how = f"ONNX Runtime, CPU, every number rounded to {precision}"
        return Arm(encoder=encoder, heads={adding.task: head}, how=how)
    return Arm(
        encoder=onnx.load(adding.bundle.graph(ENCODER, precision)),
        heads={adding.task: in_precision(exported, precision)},
        how="ONNX Runtime, CPU",
        fused=precision != "fp8",
    )
