"""The diagonal Fisher information of an encoder's weights: how much each of them tells an output.

Of a weight w it is the mean over images of E[(d log p(y | x) / d w)^2], y drawn from the expert's
own prediction, which takes no labels. The pixels' outcomes are independent given the image, and a
derivative of a log likelihood has mean zero, so the square of the derivative of all pixels together
has the same mean as the sum of their squares: one backward pass for one drawn image of outcomes is
enough, and unbiased. Images do not share a backward pass, so that they do not add noise to one
another, and no batch size changes anything.

With truths, it is the empirical Fisher information instead: squares of the gradient of the task's
own loss (a mean over the pixels that have a truth).

Shapes: n images, H x W pixels.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from simo_build.data import Samples
from simo_build.encoder import Encoder
from simo_build.heads import Head
from simo_build.losses import TorchKind
from simo_build.progress import Progress
from simo_build.statedict import StateDict

DRAWS = 2  # images of outcomes drawn for an image; a forward pass serves all
SEED = 0

# A raw output of image i to the numbers whose gradients are squared.
Likelihoods = Callable[[Tensor, int], list[Tensor]]


def of_predictions(kind: TorchKind, *, draws: int = DRAWS) -> Likelihoods:
    """Draw outcomes of the expert's own prediction; the draws follow from an image's place."""

    def likelihoods(raw_1KHW: Tensor, image: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(SEED + image)
        pixels = raw_1KHW.shape[2] * raw_1KHW.shape[3]
        scale = (draws * pixels) ** -0.5  # squares then add up to the mean over draws and pixels
        sampling = kind.sampling
        drawn = [sampling.draw(raw_1KHW, generator) for _ in range(draws)]
        return [scale * sampling.likelihood(raw_1KHW, outcome) for outcome in drawn]

    return likelihoods


def of_truths(kind: TorchKind, samples: Samples, task: str) -> Likelihoods:
    """Take the task's loss against the truth."""

    def likelihoods(raw_1KHW: Tensor, image: int) -> list[Tensor]:
        truth = torch.from_numpy(samples.truths[task][image : image + 1])
        return [kind.loss(raw_1KHW, truth.to(raw_1KHW.device))]

    return likelihoods


def gather_fisher(
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    head: Head,
    samples: Samples,
    likelihoods: Likelihoods,
    *,
    label: str,
    progress: Progress,
) -> StateDict:
    """Give the mean over images of the squared gradients of every weight, float32, on the CPU.

    The encoder's own weights are neither used nor changed. Weights that reach no tap have zeros.
    """
    encoder.eval()
    head.eval()
    place = encoder.mean.device
    points = {n: t.to(place).float().clone().requires_grad_() for n, t in weights.items()}
    totals = {n: torch.zeros(t.shape, dtype=torch.float64, device=place) for n, t in points.items()}
    state = {f"vit.{name}": tensor for name, tensor in points.items()}
    for image in progress.track(range(len(samples)), label, total=len(samples)):
        pixels_1HW3 = torch.from_numpy(samples.images[image : image + 1]).to(place)
        raw_1KHW = head(functional_call(encoder, state, (pixels_1HW3,)))
        for likelihood in likelihoods(raw_1KHW, image):
            add_squares(totals, points, likelihood)
    return {name: (total / len(samples)).float().cpu() for name, total in totals.items()}


def add_squares(
    totals: Mapping[str, Tensor], points: Mapping[str, Tensor], likelihood: Tensor
) -> None:
    """Add the squared gradient at every weight; the graph stays for the next one."""
    found = torch.autograd.grad(
        likelihood, list(points.values()), retain_graph=True, allow_unused=True
    )
    for total, slope in zip(totals.values(), found, strict=True):
        if slope is not None:
            total += slope.double().square()
