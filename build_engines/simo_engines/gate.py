"""The gate of an engine: on the GPU it must give what ONNX Runtime gives on the CPU.

What is trusted are the bundle's float32 graphs, which were held to PyTorch when the bundle was
made. Engines of heads are given the features that those graphs make. Without photos of one's own
the images are made up, the same every time.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from simo_engines.layers import Layers
from simo_export.gate import Agreement, Limits, faults
from simo_export.meter import Meter
from simo_runtime.backends.onnxruntime_graph import OpenGraph, Settings, open_graph
from simo_runtime.bundle import Bundle
from simo_runtime.cpus import available_cpus
from simo_runtime.engines import EngineOptions
from simo_runtime.errors import BackendError, listing
from simo_runtime.golden import golden_image
from simo_runtime.graphs import ENCODER, IMAGE, JOINT
from simo_runtime.image import read_image
from simo_runtime.placement import Placement, fill_colour

Array = NDArray[Any]
IMAGES = 4  # made up, where no photos are given
# Of an engine against float32 on the CPU. Those of fp16 are NVIDIA's for DINOv3. There are no
# truths here, so that no metric changes.
LIMITS = {
    "fp32": Limits(
        cosine=0.99999, patch_cosine=0.9999, frobenius=0.002, argmax=0.999, metric_change=0
    ),
    "fp16": Limits(cosine=0.999, patch_cosine=0.995, frobenius=0.01, argmax=0.99, metric_change=0),
    "bf16": Limits(cosine=0.999, patch_cosine=0.99, frobenius=0.04, argmax=0.97, metric_change=0),
    "int8": Limits(cosine=0.99, patch_cosine=0.95, frobenius=0.15, argmax=0.9, metric_change=0),
    "fp8": Limits(cosine=0.99, patch_cosine=0.95, frobenius=0.15, argmax=0.9, metric_change=0),
}


class Reference:
    """What a bundle's float32 graphs give on the CPU for a few images."""

    def __init__(self, bundle: Bundle, pixels_BHW3: NDArray[np.uint8]) -> None:
        self.bundle, self.pixels = bundle, pixels_BHW3
        self._outputs: dict[str, dict[str, Array]] = {}

    def inputs(self, name: str) -> dict[str, Array]:
        """Give what a graph is fed with: the images, or features."""
        return {IMAGE: self.pixels} if name in (ENCODER, JOINT) else self.outputs(ENCODER)

    def outputs(self, name: str) -> dict[str, Array]:
        """Give what a graph puts out; of the joint graph what the heads do."""
        if name == JOINT:
            heads = [self.outputs(task.name) for task in self.bundle.manifest.tasks]
            return {task: array for head in heads for task, array in head.items()}
        if name not in self._outputs:
            given = self.inputs(name)
            self._outputs[name] = self._graph(name).arrays(given, len(self.pixels))
        return self._outputs[name]

    def _graph(self, name: str) -> OpenGraph:
        path = self.bundle.graph(name)
        settings = Settings(providers=(("CPUExecutionProvider", ()),), threads=available_cpus())
        return open_graph(path, self.bundle.content(), settings)


def check_engine(
    plan: bytes, name: str, *, precision: str, options: EngineOptions, reference: Reference
) -> dict[str, Any]:
    """Run an engine on the GPU and compare; BackendError lists what is too far.

    All batch sizes of the profile are tried: the smallest, the tuned and the largest.
    """
    from simo_engines.run import open_plan  # here, because it imports TensorRT

    run = open_plan(plan, host_code=options.version_compatible)
    found = []
    for batch in sorted(set(vars(options.batches).values())):
        take = np.arange(batch) % len(reference.pixels)
        given = {key: value[take] for key, value in reference.inputs(name).items()}
        made = run(given)
        for output, trusted in reference.outputs(name).items():
            label = f"{output}, batch {batch}"
            found.append(agreement(label, trusted[take], made[output], tokens=name == ENCODER))
    wrong = [fault for one in found for fault in faults(one, LIMITS[precision])]
    if wrong:
        raise BackendError(
            f"{reference.bundle.root}: the {precision} engine of {name} gives other answers on "
            f"this GPU than its graph, and is not kept\n{listing(wrong)}"
        )
    return {"images": len(reference.pixels), "found": {one.task: asdict(one) for one in found}}


def agreement(label: str, trusted: Array, made: Array, *, tokens: bool) -> Agreement:
    """Compare an output with what is trusted; `tokens` are features."""
    meter = Meter(label, tokens=tokens)
    meter.update(trusted, made)
    found = meter.agreement()
    if trusted.dtype != np.uint8:
        return found
    # Of classes only which are the same counts: their numbers mean nothing.
    same = float(np.mean(trusted == made))
    return replace(found, argmax=same, cosine=1.0, frobenius=0.0)


def check_layers(layers: Layers, name: str, precision: str) -> None:
    """Refuse an engine that does not compute in the type of its graph.

    A small head may have its few layers in float32 alone; so it is the encoder that is held to it.
    """
    if name in (ENCODER, JOINT) and precision != "fp32" and not layers.using.get(precision):
        raise BackendError(
            f"{name}: the engine of the {precision} graph has no layer that uses {precision} "
            f"({layers.summary()}); it would be as slow as float32"
        )


def pixels_for(bundle: Bundle, photos: Sequence[Path]) -> NDArray[np.uint8]:
    """Give the images of the gate, uint8 (B, H, W, 3) RGB: photos, or made-up ones."""
    size, fit = bundle.manifest.image_size, bundle.manifest.fit
    if not photos:
        return np.concatenate((golden_image(size)[None], made_up(size)))
    fill = fill_colour(bundle.manifest.mean)
    placed = []
    for photo in photos:
        image = read_image(photo)
        place = Placement(image.shape[:2], size, fit)
        placed.append(place.apply(image, fill=fill))
    return np.stack(placed)


def made_up(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw soft blots of colour with a little noise, the same every time."""
    draw = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        coarse = draw.uniform(0, 255, (6, 8, 3)).astype(np.float32)
        soft = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)
        noisy = soft + draw.normal(0, 8, (*size, 3))
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return np.stack(images)
