"""Second moments of what flows through an encoder, added up batch by batch: Grams and statistics.

Forward hooks see what goes into every layer; nothing of it is kept but sums. Products are float32,
sums over batches float64.

Shapes: B images, R rows (the tokens of a batch), N inputs of a layer, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.features import BATCH
from simo_build.progress import Progress
from simo_build.statedict import StateDict

See = Callable[[str, Tensor], None]


def inputs_of(layer: nn.Module, given: Tensor) -> Tensor:
    """See what goes into a layer as (R, N): what its weight, as a matrix or a scale, multiplies.

    A convolution's inputs are its patches, laid out as its weight is; those of a norm are what it
    has normalised.
    """
    if isinstance(layer, nn.Conv2d):
        assert layer.groups == 1
        assert not isinstance(layer.padding, str)
        patches_BNL = F.unfold(
            given, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )
        return patches_BNL.transpose(1, 2).flatten(0, 1)
    if isinstance(layer, nn.LayerNorm):
        given = F.layer_norm(given, layer.normalized_shape, eps=layer.eps)
    return given.flatten(0, -2)


def observed_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that multiply, by the names of their weights."""
    found: dict[str, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LayerScale):
            found[f"{name}.gamma"] = layer
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.LayerNorm)) and layer.weight is not None:
            found[f"{name}.weight"] = layer
    return found


@contextmanager
def hooked(layers: Mapping[str, nn.Module], see: Callable[..., None]) -> Iterator[None]:
    """Call `see(name, layer, inputs, output)` after every pass of every layer, within the block."""

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: see(name, layer, inputs, output)

    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Sums:
    """Sums over rows by name, and how many rows each has."""

    totals: dict[str, Tensor]
    rows: dict[str, int]

    def add(self, name: str, total: Tensor, rows: int) -> None:
        """Add what one batch gave."""
        if name in self.totals:
            self.totals[name] += total
        else:
            self.totals[name] = total.double()
        self.rows[name] = self.rows.get(name, 0) + rows

    def means(self) -> StateDict:
        """Give the means over all rows, in float32, on the CPU."""
        return {n: (total / self.rows[n]).float().cpu() for n, total in self.totals.items()}


@torch.inference_mode()
def grams_of(layers: Mapping[str, nn.Module], forward: Callable[[], None]) -> StateDict:
    """Give the second moments of layers' inputs in a pass: means over the tokens of all images.

    By the name of a linear layer's weight, or of the patch embedding's: the mean of x x' with x
    the inputs and a 1 at their end, (N + 1, N + 1). So the last row holds the mean of the inputs.
    By the name of a norm's weight or of a layer scale's gamma: the mean of x^2, (N,).
    """
    sums = Sums({}, {})

    def see(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        x_RN = inputs_of(layer, inputs[0]).float()
        if isinstance(layer, (nn.LayerNorm, LayerScale)):
            sums.add(name, x_RN.square().sum(dim=0), len(x_RN))
        else:
            sums.add(name, _gram(F.pad(x_RN, (0, 1), value=1.0)), len(x_RN))

    with hooked(layers, see):
        forward()
    return sums.means()


def gather_grams(
    encoder: Encoder, samples: Samples, *, label: str, progress: Progress, batch: int = BATCH
) -> StateDict:
    """Give the second moments of every layer's inputs, on images (`grams_of`)."""
    layers = observed_layers(encoder.vit)
    how = {"label": label, "progress": progress, "batch": batch}
    return grams_of(layers, lambda: _forward(encoder, samples, **how))


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of the tokens that every block puts out, block by block."""

    means: tuple[Tensor, ...]
    covariances: tuple[Tensor, ...]


@torch.inference_mode()
def gather_statistics(
    encoder: Encoder, samples: Samples, *, label: str, progress: Progress, batch: int = BATCH
) -> Statistics:
    """Give the statistics of the encoder's block outputs with the weights that it has, float64."""
    sums = Sums({}, {})

    def see(name: str, _: nn.Module, __: object, output: Tensor) -> None:
        x_RD = output.flatten(0, -2).double()
        sums.add(name, _gram(F.pad(x_RD, (0, 1), value=1.0)), len(x_RD))

    blocks = {str(number): block for number, block in enumerate(encoder.vit.blocks)}
    with hooked(blocks, see):
        _forward(encoder, samples, label=label, progress=progress, batch=batch)
    grams = [(sums.totals[name] / sums.rows[name]).cpu() for name in blocks]
    means = tuple(gram[-1, :-1] for gram in grams)
    spreads = (gram[:-1, :-1] - torch.outer(m, m) for gram, m in zip(grams, means, strict=True))
    return Statistics(means, tuple(spreads))


def _gram(x_RN: Tensor) -> Tensor:
    return x_RN.T @ x_RN


def _forward(encoder: Encoder, samples: Samples, **how: Any) -> None:
    encoder.eval()
    starts = range(0, len(samples), how["batch"])
    for start in how["progress"].track(starts, how["label"], total=len(starts)):
        pixels = torch.from_numpy(samples.images[start : start + how["batch"]])
        encoder(pixels.to(encoder.mean.device))
