"""The last stage: fold the model, export it, hold the graphs to PyTorch, write the bundle."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.gated import RAW, Arm, Found, Reference, judge, same_answers
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS
from simo_build.own.modules import OwnEncoder
from simo_build.recipe import Recipe
from simo_export.bundle import write_bundle
from simo_export.fold import PlainEncoder
from simo_export.gate import Agreement, Limits
from simo_export.graph import export_graph, save_graph, save_joint, without_output
from simo_export.precision import HALVES, to_half
from simo_export.quantise import quantised
from simo_runtime.bundle import Bundle, Manifest
from simo_runtime.errors import ExportError, listing
from simo_runtime.graphs import ENCODER, JOINT, PRECISIONS, GraphFiles, stem

Images = NDArray[np.uint8]


class FinishedHead(nn.Module):
    """A head and its last step: taps -> (raw, finished)."""

    def __init__(self, head: nn.Module, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.finish = head, finish

    def forward(self, *taps: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.head(*taps)
        return raw, self.finish(raw)


@dataclass(frozen=True)
class Graphs:
    """The exported encoder and heads of one precision; heads still have their raw output."""

    encoder: onnx.ModelProto
    heads: Mapping[str, onnx.ModelProto]
    features: tuple[str, ...]


def folded_encoder(encoder: Encoder | OwnEncoder, recipe: Recipe) -> nn.Module:
    """Fold an encoder into plain weights: uint8 (B, H, W, 3) -> the taps.

    A user's own module stays as it is: nothing is known of what could be folded.
    """
    if isinstance(encoder, OwnEncoder):
        return encoder.folded()
    return PlainEncoder(
        encoder.vit,
        geometry=encoder.geometry,
        taps=recipe.encoder.taps,
        norm=recipe.encoder.norm,
        mean=recipe.image.mean,
        std=recipe.image.std,
    )


@torch.inference_mode()
def to_graphs(encoder: Encoder | OwnEncoder, heads: Mapping[str, Head], recipe: Recipe) -> Graphs:
    """Fold an encoder and its heads and export them in float32."""
    plain = folded_encoder(encoder.cpu().eval(), recipe)
    features = tuple(f"tap{number}" for number in recipe.encoder.taps)
    pixels = torch.zeros(2, *recipe.image.size, 3, dtype=torch.uint8)
    taps = plain(pixels)
    exported = {}
    for task, head in heads.items():
        finish = TORCH_KINDS[recipe.tasks[task].kind].finish
        module = FinishedHead(head.cpu().eval().folded(), finish)
        exported[task] = export_graph(module, taps, inputs=features, outputs=[RAW, task])
    graph = export_graph(plain, [pixels], inputs=["image"], outputs=features)
    return Graphs(graph, exported, features)


def typed(
    graphs: Graphs, precision: str, saved: Path, calibration: Images, keep: tuple[str, ...] = ()
) -> tuple[Graphs, Arm]:
    """Give float32 graphs in a precision, and what of it a CPU can run for the gate.

    `saved` is the float32 encoder's file, `keep` layers of it that int8 and fp8 leave in floats.
    Heads stay in floats where the encoder is int8: theirs is a small part of the work, and they
    have the last word on every pixel. What is not fp8 beside it is fp16.
    """
    if precision == "int8":
        encoder = quantised(saved, calibration, keep=keep)
        return (
            Graphs(encoder, graphs.heads, graphs.features),
            Arm(encoder=encoder, heads=graphs.heads, how="ONNX Runtime, CPU"),
        )
    if precision == "fp8":
        whole = quantised(saved, calibration, keep=keep, form="fp8")
        rounded = _half(replace(graphs, encoder=whole), "fp16", rounded=True)
        how = "ONNX Runtime, CPU, every number rounded to fp8 or fp16"
        arm = Arm(encoder=rounded.encoder, heads=rounded.heads, how=how, fused=False)
        return _half(replace(graphs, encoder=whole), "fp16"), arm
    if precision not in HALVES:
        arm = Arm(encoder=graphs.encoder, heads=graphs.heads, how="ONNX Runtime, CPU")
        return graphs, arm

    rounded = _half(graphs, precision, rounded=True)
    how = f"ONNX Runtime, CPU, every number rounded to {precision}"
    arm = Arm(encoder=rounded.encoder, heads=rounded.heads, how=how)
    return _half(graphs, precision), arm


def _half(graphs: Graphs, precision: str, *, rounded: bool = False) -> Graphs:
    encoder = to_half(graphs.encoder, precision, features=True, rounded=rounded)
    heads = {
        task: to_half(head, precision, features=False, rounded=rounded)
        for task, head in graphs.heads.items()
    }
    return Graphs(encoder, heads, graphs.features)


# Precisions whose heads are those of another one.
HEADS_OF = {"int8": "fp32", "fp8": "fp16"}


def heads_of(precision: str) -> str:
    """Give the precision that the heads of one have."""
    return HEADS_OF.get(precision, precision)


@dataclass(frozen=True)
class Writer:
    """Writes the graphs of a bundle into its folder, one precision after another."""

    folder: Path
    # heads as they are written, and their files, by precision
    heads: dict[str, dict[str, tuple[onnx.ModelProto, str]]] = field(default_factory=dict)

    def write(self, graphs: Graphs, precision: str) -> GraphFiles:
        """Write encoder, heads and joint graph; heads that are there already serve again."""
        name = stem(ENCODER, precision)
        encoder = save_graph(graphs.encoder, self.folder, name)
        heads = self.heads.get(heads_of(precision)) or {
            task: (
                save_graph(without_output(head, RAW), self.folder, stem(task, precision)),
                f"{stem(task, precision)}.onnx",
            )
            for task, head in graphs.heads.items()
        }
        self.heads[precision] = heads
        models = {task: head for task, (head, _) in heads.items()}
        save_joint(encoder, models, self.folder, stem(JOINT, precision))
        return GraphFiles(
            encoder=f"{name}.onnx",
            heads={task: file for task, (_, file) in heads.items()},
            joint=f"{stem(JOINT, precision)}.onnx",
        )


def noise(recipe: Recipe) -> Samples:
    """Give images for the gate of a recipe without data: noise, the same every time."""
    shape = (2, *recipe.image.size, 3)
    pixels: Images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Samples(pixels, {})


def export_bundle(
    out: Path,
    *,
    encoder: Encoder | OwnEncoder,
    heads: Mapping[str, Head],
    recipe: Recipe,
    samples: Samples,
    provenance: Mapping[str, Any],
    calibration: Images | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Write the bundle of a finished model, in every precision that agrees with PyTorch.

    `calibration` (n, H, W, 3) are the images that tell int8 its ranges, by default those of the
    gate. ExportError if float32 does not agree; another precision that does not is left out, and
    `say` tells it.
    """
    graphs = to_graphs(encoder, heads, recipe)
    record, passed, specs = dict(provenance), dict[str, GraphFiles](), recipe.specs()
    reference = Reference(
        encoder=encoder,
        folded=folded_encoder(encoder, recipe),
        heads=heads,
        specs=specs,
        samples=samples,
    )
    images = samples.images if calibration is None else calibration

    def fill(folder: Path) -> None:
        writer, every = Writer(folder), []
        for precision in sorted(recipe.export.precisions, key=PRECISIONS.index):
            limits = recipe.export.limits(precision)
            made, arm, found = judged(graphs, precision, folder, images, reference, limits)
            every.append(found)
            for line in told(found):
                say(line)
            if not found.faults:
                passed[precision] = writer.write(made, precision)
                check_joint(folder, precision, arm, reference)
            elif precision == "fp32":
                raise ExportError(
                    f"the exported graphs differ from PyTorch\n{listing(found.faults, limit=9)}"
                )
        record["gate"] = gate_record(every, samples, images)

    manifest = Manifest(
        name=recipe.name,
        image_size=recipe.image.size,
        fit=recipe.image.fit,
        mean=recipe.image.mean,
        std=recipe.image.std,
        features=graphs.features,
        tasks=tuple(specs.values()),
        files={},
        graphs=passed,
        random_weights=recipe.random_seed is not None,
        provenance=record,
    )
    return write_bundle(out, manifest, fill)


def judged(
    graphs: Graphs,
    precision: str,
    folder: Path,
    images: Images,
    reference: Reference,
    limits: Limits,
) -> tuple[Graphs, Arm, Found]:
    """Bring graphs to a precision and compare them with PyTorch.

    Where int8 or fp8 fails, the layer to blame is left in floats and it is tried again, so often
    that at most one layer in sixteen stays so.
    """
    saved, kept = folder / f"{ENCODER}.onnx", tuple[str, ...]()
    layers = sum(isinstance(layer, nn.Linear) for layer in reference.folded.modules())
    while True:
        made, arm = typed(graphs, precision, saved, images, kept)
        found = replace(judge(precision, arm, reference, limits), kept=kept)
        worst, enough = found.worst, len(kept) >= layers // 16
        if precision not in HEADS_OF or worst is None or worst.layer in kept or enough:
            return made, arm, found
        kept = (*kept, worst.layer)


def check_joint(folder: Path, precision: str, arm: Arm, reference: Reference) -> None:
    """Refuse a joint graph that gives other answers than the single ones.

    ONNX Runtime has neither bfloat16 nor products of fp8 on a CPU: of these only the form is
    checked, when they are saved.
    """
    if precision in ("bf16", "fp8"):
        return
    path = folder / f"{stem(JOINT, precision)}.onnx"
    image = reference.samples.images[:1]
    if other := same_answers(path, arm, reference.specs, image):
        raise ExportError(f"{path.name}: the joint graph is wrong\n{listing(other)}")


def gate_record(every: list[Found], samples: Samples, calibration: Images) -> dict[str, Any]:
    """Say what the gate found, in plain values: a row for each precision and task, and each tap."""
    return {
        "images": len(samples),
        "calibration_images": len(calibration),
        "found": [_row(found, one) for found in every for one in found.tasks],
        "features": [_row(found, one) for found in every for one in found.taps],
        "how": {found.precision: found.how for found in every},
        "kept_in_floats": {found.precision: list(found.kept) for found in every if found.kept},
        "left_out": {found.precision: list(found.faults) for found in every if found.faults},
    }


def _row(found: Found, one: Agreement) -> dict[str, Any]:
    """Give an agreement as JSON can hold it: what is not finite becomes null."""
    values = {
        name: None if isinstance(value, float) and not isfinite(value) else value
        for name, value in vars(one).items()
    }
    return {"precision": found.precision, **values}


def told(found: Found) -> Iterator[str]:
    """Tell what the gate found of one precision, in lines."""
    for one in found.tasks:
        metric = ""
        if one.metric_torch is not None and one.metric_onnx is not None:
            change = f"{one.metric_change:.3%}"
            metric = f", metric {one.metric_torch:.5g} to {one.metric_onnx:.5g} ({change})"
        same = "" if one.argmax is None else f", same classes {one.argmax:.4%}"
        yield (
            f"  {found.precision} {one.task}: cosine {one.cosine:.6f}, relative difference "
            f"{one.frobenius:.1e}{same}{metric}"
        )
    patches = [one.patch_cosine for one in found.taps if one.patch_cosine is not None]
    if patches:
        yield f"  {found.precision} features: cosine of the worst hundredth {min(patches):.6f}"
    if found.kept:
        yield f"  {found.precision} leaves in floats: {', '.join(found.kept)}"
    if found.faults and found.precision != "fp32":
        yield f"  {found.precision} is left out:\n{listing(found.faults, limit=9)}"
