"""Fisher information: of a linear softmax and of a tiny encoder, against exact sums in float64."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from simo_build.data import Samples
from simo_build.encoder import Encoder, randomise
from simo_build.fisher import add_squares, gather_fisher, of_predictions, of_truths
from simo_build.heads import Head, make_head
from simo_build.losses import TORCH_KINDS
from simo_build.progress import Silent
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.sampling import drawn_classes
from simo_build.statedict import StateDict
from simo_build.train import feature_shape
from simo_runtime.tasks import KINDS, TaskSpec

IMAGES = 3
SPECS = {
    name: TaskSpec(
        name=name,
        kind=name,
        channels=kind.channels or 3,
        metric=kind.metrics[0],
        labels=("a", "b", "c") if kind.channels is None else (),
    )
    for name, kind in KINDS.items()
}


# The outcomes of a kind


def test_pixels_drawn_together_tell_as_much_as_pixels_one_by_one() -> None:
    # a linear softmax of 3 classes on 2 pixels of 2 features: every one of the 9 outcomes, weighted
    # by its probability, against the double loop over pixels and classes
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, generator=draw, dtype=torch.float64)
    sampling = TORCH_KINDS["segmentation"].sampling

    def raw() -> Tensor:
        return (x @ weight.T).T.reshape(1, 3, 1, 2)

    p = (x @ weight.T).softmax(dim=1).detach().numpy()
    expected = np.zeros((3, 2))
    for pixel, drawn in itertools.product(range(2), range(3)):
        slope = np.outer(np.eye(3)[drawn] - p[pixel], x[pixel].numpy())
        expected += p[pixel, drawn] * slope**2
    found = {"w": torch.zeros(3, 2, dtype=torch.float64)}
    for first, second in itertools.product(range(3), range(3)):
        outcome = torch.tensor([[[first, second]]])
        once = {"w": torch.zeros(3, 2, dtype=torch.float64)}
        add_squares(once, {"w": weight}, sampling.likelihood(raw(), outcome))
        found["w"] += p[0, first] * p[1, second] * once["w"]
    assert_close(found["w"].numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.channels])
def test_random_signs_tell_the_squares_of_an_outputs_derivatives(name: str) -> None:
    # 6 (or 2) numbers of a linear map of 2 weights: every combination of signs
    draw, kind = torch.Generator().manual_seed(0), TORCH_KINDS[name]
    channels = SPECS[name].channels
    x = torch.randn(2 * channels, 2, generator=draw, dtype=torch.float64)
    weight = torch.randn(2, generator=draw, dtype=torch.float64, requires_grad=True)

    def raw(point: Tensor) -> Tensor:
        return (x @ point).reshape(1, channels, 1, 2)

    def finished(point: Tensor) -> Tensor:
        return kind.finish(raw(point)).flatten()

    jacobian = torch.autograd.functional.jacobian(finished, weight)
    assert isinstance(jacobian, Tensor)
    every = list(itertools.product((-1.0, 1.0), repeat=2 * channels))
    found = {"w": torch.zeros(2, dtype=torch.float64)}
    for signs in every:
        outcome = torch.tensor(signs, dtype=torch.float64).reshape(1, channels, 1, 2)
        add_squares(found, {"w": weight}, kind.sampling.likelihood(raw(weight), outcome))
    assert_close(found["w"] / len(every), jacobian.square().sum(dim=0), rtol=1e-9, atol=1e-12)


def test_classes_are_drawn_as_often_as_they_are_likely() -> None:
    # 0.5, 0.3, 0.2, 0: 40,000 draws have a standard deviation of 0.0025 at most
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    raw = p.log().reshape(1, 4, 1, 1).expand(1, 4, 200, 200)
    drawn = drawn_classes(raw, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert_close(share, p, rtol=0, atol=0.01)
    assert share[3] == 0


@pytest.mark.parametrize("name", KINDS)
def test_outcomes_follow_from_the_seed(name: str) -> None:
    raw = torch.randn(1, SPECS[name].channels, 4, 5, generator=torch.Generator().manual_seed(0))
    sampling = TORCH_KINDS[name].sampling
    one, same, other = (
        sampling.draw(raw, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert sampling.likelihood(raw, one).shape == ()


# Gathered over images


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    options = {"embed_dim": 8, "depth": 1, "num_heads": 1, "patch_size": 4}
    part = EncoderPart(model="vit_tiny_patch16_224", options=options, taps=(1,))
    made = Encoder(part, ImagePart(size=(4, 8)))
    randomise(made, 0)
    return made


@pytest.fixture(scope="module")
def samples() -> Samples:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (IMAGES, 4, 8, 3), dtype=np.uint8)
    depth = draw.uniform(0.5, 3.0, (IMAGES, 4, 8)).astype(np.float32)
    return Samples(images, {"depth": depth})


def head_of(encoder: Encoder, name: str) -> Head:
    head = make_head("linear", SPECS[name], feature_shape(encoder), seed=0).eval()
    nn.init.normal_(head.project.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    return head


def gathered(
    encoder: Encoder, head: Head, samples: Samples, name: str, draws: int = 2
) -> StateDict:
    return gather_fisher(
        encoder,
        encoder.weights(),
        head,
        samples,
        of_predictions(TORCH_KINDS[name], draws=draws),
        label="a test",
        progress=Silent(),
    )


def parameters(encoder: Encoder) -> dict[str, Tensor]:
    return dict(encoder.vit.named_parameters())


def exactly(encoder: Encoder, head: Head, samples: Samples, name: str) -> dict[str, Tensor]:
    """The mean over images and pixels, by one backward pass for every number of the output."""
    kind, points = TORCH_KINDS[name], parameters(encoder)
    found = {n: torch.zeros(t.shape, dtype=torch.float64) for n, t in points.items()}
    for image in torch.from_numpy(samples.images).split(1):
        raw = head(encoder(image))
        pixels = raw.shape[2] * raw.shape[3]
        if KINDS[name].channels is None:
            p, logs = raw.softmax(dim=1).detach(), raw.log_softmax(dim=1)
            numbers = p.sqrt() * logs
        else:
            numbers = kind.finish(raw)
        for number in numbers.flatten():
            add_squares(found, points, number * pixels**-0.5)
    return {n: total / len(samples) for n, total in found.items()}


@pytest.mark.parametrize("name", KINDS)
def test_the_information_of_an_encoder_is_that_of_every_pixel_by_itself(
    encoder: Encoder, samples: Samples, name: str
) -> None:
    # 100 draws for each of three images: the noise of a mean square is sqrt(2 / 300) = 8 % at most
    head = head_of(encoder, name)
    expected = exactly(encoder, head, samples, name)
    found = gathered(encoder, head, samples, name, draws=100)
    for tensor, exact in expected.items():
        total = float(exact.sum())
        assert float(found[tensor].double().sum()) == pytest.approx(total, rel=0.25, abs=1e-12)
    every = torch.cat([exact.flatten() for exact in expected.values()])
    drawn = torch.cat([found[tensor].double().flatten() for tensor in expected])
    assert float((drawn - every).norm() / every.norm()) < 0.2


def test_what_reaches_no_tap_has_none_and_all_else_has_some(
    encoder: Encoder, samples: Samples
) -> None:
    found = gathered(encoder, head_of(encoder, "depth"), samples, "depth")
    assert set(found) == set(encoder.weights())
    assert not found["norm.weight"].any()
    dead = {"norm.weight", "norm.bias"}
    assert all(bool(found[n].any()) for n in found if n not in dead)
    assert all(bool((tensor >= 0).all()) for tensor in found.values())


def test_the_same_twice_and_the_encoder_is_left_alone(encoder: Encoder, samples: Samples) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.weights().items()}
    head = head_of(encoder, "depth")
    one, other = (gathered(encoder, head, samples, "depth") for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.weights().items())
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))


def test_an_image_counts_the_same_whatever_images_come_after_it(
    encoder: Encoder, samples: Samples
) -> None:
    head = head_of(encoder, "depth")
    whole = gathered(encoder, head, samples, "depth")
    first = gathered(encoder, head, Samples(samples.images[:1], {}), "depth")
    two = gathered(encoder, head, Samples(samples.images[:2], {}), "depth")
    name = "blocks.0.mlp.fc1.weight"
    assert bool((3 * whole[name] - 2 * two[name] > -1e-6).all())
    assert bool((2 * two[name] - first[name] > -1e-6).all())


def test_information_from_truths_is_the_squared_gradient_of_every_images_loss(
    encoder: Encoder, samples: Samples
) -> None:
    head, kind = head_of(encoder, "depth"), TORCH_KINDS["depth"]
    found = gather_fisher(
        encoder,
        encoder.weights(),
        head,
        samples,
        of_truths(kind, samples, "depth"),
        label="a test",
        progress=Silent(),
    )
    points = parameters(encoder)
    expected = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in points.items()}
    for image in range(IMAGES):
        raw = head(encoder(torch.from_numpy(samples.images[image : image + 1])))
        truth = torch.from_numpy(samples.truths["depth"][image : image + 1])
        add_squares(expected, points, kind.loss(raw, truth))
    for name, total in expected.items():
        assert_close(found[name].double(), total / IMAGES, rtol=1e-4, atol=1e-9)
