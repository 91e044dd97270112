"""The last stage: fold the model, export it, hold the graphs to PyTorch, write the bundle."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS, as_measured
from simo_build.recipe import Recipe
from simo_export.bundle import write_bundle
from simo_export.check import Agreement, Graph, agreement, gate
from simo_export.fold import PlainEncoder
from simo_export.graph import export_graph, save_graph, save_joint, without_output
from simo_runtime.bundle import Bundle, Manifest
from simo_runtime.graphs import ENCODER, JOINT, usual_files
from simo_runtime.metrics import Accumulator, metric_named
from simo_runtime.tasks import TaskSpec

RAW = "raw"  # the head's output before its last step; an output of the graph for the gate only


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
    """The exported encoder and heads; heads still have their raw output."""

    encoder: onnx.ModelProto
    heads: Mapping[str, onnx.ModelProto]
    features: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write the graphs as a bundle holds them."""
        encoder = save_graph(self.encoder, folder, ENCODER)
        heads = {
            task: save_graph(without_output(head, RAW), folder, task)
            for task, head in self.heads.items()
        }
        save_joint(encoder, heads, folder, JOINT)


def folded_encoder(encoder: Encoder, recipe: Recipe) -> PlainEncoder:
    """Fold an encoder into plain weights: uint8 (B, H, W, 3) -> the taps."""
    return PlainEncoder(
        encoder.vit,
        geometry=encoder.geometry,
        taps=recipe.encoder.taps,
        norm=recipe.encoder.norm,
        mean=recipe.image.mean,
        std=recipe.image.std,
    )


@torch.inference_mode()
def to_graphs(encoder: Encoder, heads: Mapping[str, Head], recipe: Recipe) -> Graphs:
    """Fold an encoder and its heads and export them."""
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


@torch.inference_mode()
def check_graphs(
    folder: Path,
    graphs: Graphs,
    *,
    encoder: Encoder,
    heads: Mapping[str, Head],
    specs: Mapping[str, TaskSpec],
    samples: Samples,
) -> list[Agreement]:
    """Compare saved graphs with the unfolded PyTorch model on the same images, task by task."""
    run_encoder = Graph(folder / "encoder.onnx")
    runs = {task: Graph(head) for task, head in graphs.heads.items()}
    raw: dict[str, tuple[list[Any], list[Any]]] = {task: ([], []) for task in heads}
    metrics = {task: _pair(spec) for task, spec in specs.items()}
    for index in range(len(samples)):
        image = samples.images[index : index + 1]
        taps = encoder(torch.from_numpy(image))
        features = run_encoder({"image": image})
        for task, head in heads.items():
            expected, found = head(taps), runs[task](features)
            raw[task][0].append(expected.numpy())
            raw[task][1].append(found[RAW])
            if task in samples.truths:
                truth = samples.truths[task][index : index + 1]
                finished = TORCH_KINDS[specs[task].kind].finish(expected)
                metrics[task][0].update(as_measured(finished), truth)
                metrics[task][1].update(as_measured(torch.from_numpy(found[task])), truth)
    return [
        agreement(
            task,
            np.concatenate(pair[0]),
            np.concatenate(pair[1]),
            metrics=_results(metrics[task]) if task in samples.truths else None,
        )
        for task, pair in raw.items()
    ]


def _pair(spec: TaskSpec) -> tuple[Accumulator, Accumulator]:
    start = metric_named(spec.metric).start
    return start(spec.channels), start(spec.channels)


def _results(pair: tuple[Accumulator, Accumulator]) -> tuple[float, float]:
    return pair[0].result(), pair[1].result()


def noise(recipe: Recipe) -> Samples:
    """Give images for the gate of a recipe without data: noise, the same every time."""
    shape = (2, *recipe.image.size, 3)
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Samples(pixels, {})


def export_bundle(
    out: Path,
    *,
    encoder: Encoder,
    heads: Mapping[str, Head],
    recipe: Recipe,
    samples: Samples,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Write the bundle of a finished model, if its graphs agree with PyTorch."""
    graphs = to_graphs(encoder, heads, recipe)
    record = dict(provenance)
    specs = recipe.specs()

    def fill(folder: Path) -> None:
        graphs.save(folder)
        found = check_graphs(
            folder, graphs, encoder=encoder, heads=heads, specs=specs, samples=samples
        )
        gate(found, cosine=recipe.gate.cosine, metric_change=recipe.gate.metric_change)
        record["gate"] = {"images": len(samples), "found": [asdict(one) for one in found]}

    manifest = Manifest(
        name=recipe.name,
        image_size=recipe.image.size,
        fit=recipe.image.fit,
        mean=recipe.image.mean,
        std=recipe.image.std,
        features=graphs.features,
        tasks=tuple(specs.values()),
        files={},
        graphs={"fp32": usual_files(list(specs), "fp32")},
        random_weights=recipe.random_seed is not None,
        provenance=record,
    )
    return write_bundle(out, manifest, fill)
