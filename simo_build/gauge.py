"""Measure models and bundles on a split, image by image, and count their weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from simo_build.costs import Cost
from simo_build.data import Samples
from simo_build.evaluate import image_sums, sums_of_head
from simo_build.heads import Head
from simo_build.intervals import Measured
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop
from simo_runtime.bundle import Bundle
from simo_runtime.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Model:
    """One encoder and its heads, under the name of its row, and what it took beside the experts."""

    name: str
    encoder: StateDict
    heads: Mapping[str, Head]
    costs: tuple[Cost, ...] = ()

    def parameters(self) -> dict[str, int]:
        """Count the encoder's weights, and those of all heads."""
        return {"encoder": weights_in(self.encoder), "heads": weights_of(self.heads)}


def weights_in(state: StateDict) -> int:
    """Count the weights of an encoder."""
    return sum(tensor.numel() for tensor in state.values())


def weights_of(heads: Mapping[str, Head]) -> int:
    """Count the weights of heads, without what they count for themselves."""
    return sum(weight.numel() for head in heads.values() for weight in head.parameters())


@dataclass
class Gauge:
    """Measures models on one split, image by image; the features of one encoder are kept."""

    work: Workshop
    samples: Samples
    kept: list[tuple[StateDict, list[Tensor]]] = field(default_factory=list)

    def features(self, encoder: StateDict, label: str) -> list[Tensor]:
        """Give the taps of all images."""
        if not self.kept or self.kept[0][0] is not encoder:
            self.kept[:] = [(encoder, self.work.features(encoder, self.samples, label))]
        return self.kept[0][1]

    def model(self, model: Model) -> Measured:
        """Measure one shared encoder with all heads."""
        features = self.features(model.encoder, model.name)
        specs = self.work.recipe.specs()
        return Measured(
            specs,
            {
                task: sums_of_head(head, specs[task], features=features, samples=self.samples)
                for task, head in model.heads.items()
            },
        )

    @cached_property
    def experts(self) -> Measured:
        """Every expert on its own task."""
        heads, specs = self.work.expert_heads(), self.work.recipe.specs()
        sums = {}
        for task, expert in self.work.experts.items():
            features = self.features(expert.encoder, f"expert {task}")
            sums[task] = sums_of_head(
                heads[task], specs[task], features=features, samples=self.samples
            )
        return Measured(specs, sums)

    def bundle(self, bundle: Bundle, precision: str = "fp32") -> Measured:
        """What is deployed, in the default backend; the metrics are the recipe's.

        Images have the recipe's size, to which the runtime brings predictions back.
        """
        specs = self.work.recipe.specs()
        tasks = [task.name for task in bundle.manifest.tasks]
        sums: dict[str, list[Any]] = {task: [] for task in tasks}
        with Predictor.open(bundle, precision=precision) as predict:
            every = range(len(self.samples))
            label = f"bundle {bundle.manifest.name}, {precision}"
            for index in self.work.stages.progress.track(every, label):
                found = predict(self.samples.images[index], colours="RGB")
                for task in tasks:
                    truth = self.samples.truths[task][index : index + 1]
                    sums[task].append(image_sums(specs[task], found[task].values[None], truth))
        return Measured(specs, {task: np.concatenate(parts) for task, parts in sums.items()})


def graph_weights(bundle: Bundle) -> dict[str, int]:
    """Count the floating-point weights of a bundle's graphs: the encoder's, and all heads'."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def count(name: str) -> int:
        graph = onnx.load(bundle.graph(name), load_external_data=False).graph
        return sum(prod(one.dims) for one in graph.initializer if one.data_type in floats)

    tasks = [task.name for task in bundle.manifest.tasks]
    return {"encoder": count("encoder"), "heads": sum(map(count, tasks))}
