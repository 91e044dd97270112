"""The gate before a bundle: every precision's graphs against the unfolded model in PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch

from simo_build.data import Samples
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS, as_measured
from simo_export.check import Graph
from simo_export.gate import Agreement, Limits, faults
from simo_export.layers import Rise, worst_layer
from simo_export.meter import Meter
from simo_runtime.metrics import Accumulator, metric_named
from simo_runtime.tasks import TaskSpec, kind_named

RAW = "raw"  # the head's output before its last step; an output of the graph for the gate only


class Tapping(Protocol):
    """An encoder as the gate uses it."""

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        ...

    def __call__(self, pixels_BHW3: torch.Tensor) -> list[torch.Tensor]:
        """Give the taps."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model in PyTorch that graphs are held to, unfolded and folded, and the images."""

    encoder: Tapping  # pixels -> the taps
    folded: torch.nn.Module
    heads: Mapping[str, Head]
    specs: Mapping[str, TaskSpec]
    samples: Samples


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Graphs that can run on the CPU; `how` says of which they are, if not those of the bundle."""

    encoder: onnx.ModelProto
    heads: Mapping[str, onnx.ModelProto]
    how: str
    fused: bool = True  # ONNX Runtime's fusions on a CPU take fp8 for int8


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the gate found of one precision."""

    precision: str
    how: str
    tasks: tuple[Agreement, ...]
    taps: tuple[Agreement, ...]
    faults: tuple[str, ...]
    worst: Rise | None = None  # the layer to blame, if there are faults
    kept: tuple[str, ...] = ()  # layers that were left in floats


def judge(precision: str, arm: Arm, reference: Reference, limits: Limits) -> Found:
    """Run graphs and the model on the same images; what is past the limits is in `faults`."""
    tasks, taps = compare(arm, reference)
    found = [fault for one in (*taps, *tasks) for fault in faults(one, limits)]
    worst = None
    if found:
        image = reference.samples.images[:1]
        worst = worst_layer(arm.encoder, reference.folded, image, fused=arm.fused)
        found = [str(worst), *found] if worst else found
    return Found(
        precision=precision,
        how=arm.how,
        tasks=tuple(tasks),
        taps=tuple(taps),
        faults=tuple(found),
        worst=worst,
    )


@torch.inference_mode()
def compare(arm: Arm, reference: Reference) -> tuple[list[Agreement], list[Agreement]]:
    """Compare the heads' raw outputs, task by task, and the taps, image by image."""
    run, runs = (
        Graph(arm.encoder, fused=arm.fused),
        {task: Graph(head) for task, head in arm.heads.items()},
    )
    prefix, specs, samples = reference.encoder.prefix, reference.specs, reference.samples
    taps = {name: Meter(name, tokens=True, prefix=prefix) for name in run.outputs}
    tasks = {name: Meter(name, classes=_has_classes(specs[name])) for name in reference.heads}
    metrics = {task: _pair(specs[task]) for task in tasks}
    for index in range(len(samples)):
        image = samples.images[index : index + 1]
        expected, features = reference.encoder(torch.from_numpy(image)), run({"image": image})
        for tap, name in zip(expected, features, strict=True):
            taps[name].update(tap.numpy(), features[name])
        for task, head in reference.heads.items():
            raw, found = head(expected), runs[task](features)
            tasks[task].update(raw.numpy(), found[RAW])
            if task in samples.truths:
                truth = samples.truths[task][index : index + 1]
                finished = TORCH_KINDS[specs[task].kind].finish(raw)
                metrics[task][0].update(as_measured(finished), truth)
                metrics[task][1].update(as_measured(torch.from_numpy(found[task])), truth)
    measured = {task: _results(metrics[task]) for task in tasks if task in samples.truths}
    return (
        [meter.agreement(measured.get(task)) for task, meter in tasks.items()],
        [meter.agreement() for meter in taps.values()],
    )


def same_answers(joint: Path, arm: Arm, specs: Mapping[str, TaskSpec], image: Any) -> list[str]:
    """Say where a saved joint graph gives other answers than the single ones; [] if nowhere."""
    found, features = Graph(joint)({"image": image}), Graph(arm.encoder)({"image": image})
    other = []
    for task, head in arm.heads.items():
        alone, values = Graph(head)(features)[task], found[task]
        if _has_classes(specs[task]):
            near = float((alone == values).mean()) >= 0.99
        else:
            apart = np.linalg.norm(alone.astype(np.float64) - values)
            near = bool(apart <= 0.01 * np.linalg.norm(alone.astype(np.float64)))
        if not near:
            other.append(f"{task}: the joint graph gives other answers than the head's own")
    return other


def _has_classes(spec: TaskSpec) -> bool:
    return kind_named(spec.kind).channels is None


def _pair(spec: TaskSpec) -> tuple[Accumulator, Accumulator]:
    start = metric_named(spec.metric).start
    return start(spec.channels), start(spec.channels)


def _results(pair: tuple[Accumulator, Accumulator]) -> tuple[float, float]:
    return pair[0].result(), pair[1].result()
