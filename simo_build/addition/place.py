"""What a task is added to: a bundle whose image and encoder are the recipe's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from simo_build.data import Samples, load_split
from simo_build.encoder import Encoder
from simo_build.heads import FeatureShape
from simo_build.loading import LoadedRecipe
from simo_build.progress import Progress
from simo_build.steps import HeadStep
from simo_build.train import feature_shape
from simo_build.workshop import Splits
from simo_export.check import Graph
from simo_runtime.bundle import Bundle
from simo_runtime.errors import RecipeError, listing, unknown
from simo_runtime.graphs import ENCODER, IMAGE
from simo_runtime.tasks import TaskSpec


class FrozenEncoder(nn.Module):
    """A bundle's encoder in ONNX Runtime: uint8 (B, H, W, 3) -> the taps, as PyTorch has them."""

    def __init__(self, bundle: Bundle, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self._graph = Graph(bundle.graph(ENCODER))

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        found = self._graph({IMAGE: pixels_BHW3.numpy()})
        return [torch.from_numpy(found[name]) for name in self._graph.outputs]


@dataclass(frozen=True)
class Addition:
    """What a task is added to, and from what."""

    loaded: LoadedRecipe
    bundle: Bundle
    spec: TaskSpec
    encoder: FrozenEncoder
    shape: FeatureShape
    step: HeadStep
    samples: Mapping[str, Samples]  # by split, with the truths of this task alone
    progress: Progress

    @property
    def task(self) -> str:
        """The task's name."""
        return self.spec.name


def opened(loaded: LoadedRecipe, task: str, out: Path, progress: Progress) -> Addition:
    """Open the bundle and hold the recipe to it, before any work."""
    recipe, bundle = loaded.recipe, Bundle.open(out)
    if task not in recipe.tasks:
        raise unknown("task", task, recipe.tasks)
    if task in {one.name for one in bundle.manifest.tasks}:
        raise RecipeError(f"{out}: the bundle has a task {task!r} already")
    if recipe.data is None:
        raise RecipeError(f"{loaded.shown}: a new head learns from `data`, which is missing")
    model = Encoder(recipe.encoder, recipe.image)
    shape = feature_shape(model)
    encoder = FrozenEncoder(bundle, shape.prefix)
    if wrong := misfit(loaded, bundle, encoder, shape):
        raise RecipeError(
            f"{loaded.shown}: the bundle {out} was not built with this encoder and image\n"
            f"{listing(wrong)}"
        )
    heads = [step for step in recipe.realign if isinstance(step, HeadStep)]
    return Addition(
        loaded=loaded,
        bundle=bundle,
        spec=recipe.specs()[task],
        encoder=encoder,
        shape=shape,
        step=by_labels(heads[0] if heads else HeadStep(step="head")),
        samples=Splits(lambda role: load_split(loaded, role, tasks=[task], progress=progress)),
        progress=progress,
    )


def by_labels(step: HeadStep) -> HeadStep:
    """Give a step as it is for a new head, which has no teacher among the experts."""
    return step.model_copy(update={"labels": True, "outputs": 0.0, "by": "select"})


def misfit(
    loaded: LoadedRecipe, bundle: Bundle, encoder: FrozenEncoder, shape: FeatureShape
) -> list[str]:
    """List where recipe and bundle differ: the image, the taps, their shapes."""
    image, manifest = loaded.recipe.image, bundle.manifest
    pairs = {
        "image.size": (image.size, manifest.image_size),
        "image.fit": (image.fit, manifest.fit),
        "image.mean": (image.mean, manifest.mean),
        "image.std": (image.std, manifest.std),
        "encoder.taps": (
            tuple(f"tap{number}" for number in loaded.recipe.encoder.taps),
            manifest.features,
        ),
    }
    wrong = [f"{key}: {one} here, {two} there" for key, (one, two) in pairs.items() if one != two]
    if wrong:
        return wrong
    pixels = torch.zeros(1, *manifest.image_size, 3, dtype=torch.uint8)
    high, wide = shape.geometry.grid
    tokens = (shape.prefix + high * wide, shape.width)
    return [
        f"encoder: tokens and width {tokens} here, {tuple(tap.shape[1:])} there"
        for tap in encoder(pixels)[:1]
        if tuple(tap.shape[1:]) != tokens
    ]
