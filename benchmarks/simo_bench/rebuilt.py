"""A bundle's own model in PyTorch again: modules from its recipe, weights from its graphs.

Neither the data nor the experts are needed, and nothing is trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
import yaml
from onnx import numpy_helper
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.export import FinishedHead, folded_encoder
from simo_build.heads import make_head
from simo_build.loading import checked
from simo_build.losses import TORCH_KINDS
from simo_build.recipe import Recipe
from simo_build.train import feature_shape
from simo_runtime.bundle import Bundle
from simo_runtime.errors import BackendError, RecipeError


class Joint(nn.Module):
    """Encoder and finished heads: uint8 (B, H, W, 3) -> what every task's graph gives."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads.values())

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        taps = self.encoder(pixels_BHW3)
        return [head(*taps)[1] for head in self.heads]


def rebuilt(bundle: Bundle, tasks: Sequence[str]) -> Joint:
    """Give the model of a bundle's fp32 graphs; BackendError if no recipe of it is known."""
    recipes = recipes_of(bundle)
    missing = [task for task in tasks if task not in recipes]
    if missing:
        raise BackendError(
            f"the PyTorch arms need a bundle that was built from a recipe; {bundle.root.name} "
            f"tells of none for {', '.join(missing)}"
        )
    files = bundle.manifest.graph_files("fp32")
    recipe = recipes[tasks[0]]
    encoder = Encoder(recipe.encoder, recipe.image).eval()
    plain = folded_encoder(encoder, recipe)
    fill(plain, bundle.root / files.encoder)
    heads = {}
    for task in tasks:
        spec, name = recipes[task].specs()[task], recipes[task].tasks[task].head
        head = make_head(name, spec, feature_shape(encoder), seed=0).eval().folded()
        heads[task] = FinishedHead(head, TORCH_KINDS[spec.kind].finish)
        fill(heads[task], bundle.root / files.heads[task])
    return Joint(plain, heads).eval()


def recipes_of(bundle: Bundle) -> dict[str, Recipe]:
    """Give for every task the recipe that it was built from, as the bundle keeps it."""
    told = bundle.manifest.provenance
    texts = [told.get("recipe"), *(one.get("recipe") for one in told.get("added", ()))]
    found: dict[str, Recipe] = {}
    for text in texts:
        if isinstance(text, str):
            try:
                recipe = checked(yaml.safe_load(text), Recipe, shown="its recipe")
            except RecipeError as error:
                raise BackendError(
                    f"{bundle.root.name}: built by another version: {error}"
                ) from error
            found = {**dict.fromkeys(recipe.tasks, recipe), **found}
    return found


@torch.no_grad()
def fill(module: nn.Module, path: Path) -> None:
    """Give a module the weights of its own graph; BackendError if one is not in there."""
    weights = weights_of(path)
    for name, tensor in module.state_dict().items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise BackendError(
                f"{path.parent.name}/{path.name}: holds no {name} of {tuple(tensor.shape)}; "
                "it was exported by another version, or its model was changed in the build"
            )
        tensor.copy_(weights[name])


def weights_of(path: Path) -> dict[str, Tensor]:
    """Give a graph's weights by the names that its modules have in PyTorch.

    The exporter keeps all names but those of linear layers' matrices, which it turns around: they
    are known by the bias that is added next.
    """
    graph = onnx.load(path).graph
    held = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    products = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in held
    }
    for node in graph.node:
        if node.op_type == "Add" and node.input[0] in products and node.input[1].endswith(".bias"):
            name = f"{node.input[1].removesuffix('.bias')}.weight"
            held[name] = held[products[node.input[0]]].T
    return held
