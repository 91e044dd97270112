"""Second moments gathered by hooks: held to every layer's inputs laid end to end, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.testing import assert_close

from simo_build.data import Samples
from simo_build.encoder import Encoder, randomise
from simo_build.moments import gather_grams, gather_statistics, inputs_of, observed_layers
from simo_build.progress import Silent
from simo_build.recipe import EncoderPart, ImagePart

IMAGES = 5


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.1}
    part = EncoderPart(model="vit_tiny_patch16_224", options=options, taps=(1, 2))
    made = Encoder(part, ImagePart(size=(32, 48)))
    randomise(made, 0)
    return made


@pytest.fixture(scope="module")
def samples() -> Samples:
    draw = np.random.default_rng(0)
    return Samples(draw.integers(0, 256, (IMAGES, 32, 48, 3), dtype=np.uint8), {})


def grams(encoder: Encoder, samples: Samples, batch: int = 2) -> dict[str, Tensor]:
    return gather_grams(encoder, samples, label="a test", progress=Silent(), batch=batch)


def rows_by_name(encoder: Encoder, samples: Samples) -> dict[str, list[Tensor]]:
    """What goes into every module, by a hook on all of them."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].detach())
        )
        for name, module in encoder.vit.named_modules()
    ]
    with torch.no_grad():
        encoder(torch.from_numpy(samples.images))
    for handle in handles:
        handle.remove()
    return seen


def augmented(rows: Tensor) -> Tensor:
    rows = rows.flatten(0, -2).double()
    return torch.cat((rows, torch.ones(len(rows), 1)), dim=1)


@pytest.mark.parametrize(
    "layer", ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]
)
def test_a_gram_is_the_mean_over_all_tokens_with_a_one_at_the_end(
    encoder: Encoder, samples: Samples, layer: str
) -> None:
    found = grams(encoder, samples)[f"{layer}.weight"]
    x = augmented(torch.cat(rows_by_name(encoder, samples)[layer]))
    assert len(x) == IMAGES * 7  # 2 x 3 patches and CLS
    assert_close(found.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


def test_the_patch_embeddings_gram_is_that_of_its_patches(
    encoder: Encoder, samples: Samples
) -> None:
    pixels = (torch.from_numpy(samples.images).double() / 255 - 0.5) / 0.5
    grid = pixels.reshape(IMAGES, 2, 16, 3, 16, 3).permute(0, 1, 3, 5, 2, 4)
    x = augmented(grid.reshape(IMAGES, 6, 3 * 16 * 16))
    found = grams(encoder, samples)["patch_embed.proj.weight"]
    assert_close(found.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-5)


def test_a_convolutions_inputs_are_laid_out_as_its_weight_is() -> None:
    layer = nn.Conv2d(3, 5, kernel_size=4, stride=4)
    given = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    rows = inputs_of(layer, given)
    with torch.no_grad():
        outputs = layer(given).flatten(2).transpose(1, 2).flatten(0, 1)
        assert_close(rows @ layer.weight.flatten(1).T + layer.bias, outputs)


def test_a_norms_moments_are_those_of_what_it_has_normalised(
    encoder: Encoder, samples: Samples
) -> None:
    given = torch.cat(rows_by_name(encoder, samples)["blocks.1.norm2"]).double().flatten(0, -2)
    normed = (given - given.mean(1, keepdim=True)) / (
        given.var(1, correction=0, keepdim=True) + encoder.vit.blocks[1].norm2.eps
    ).sqrt()
    found = grams(encoder, samples)["blocks.1.norm2.weight"]
    assert_close(found.double(), normed.square().mean(0), rtol=1e-5, atol=1e-6)


def test_a_layer_scales_moments_are_those_of_its_inputs(encoder: Encoder, samples: Samples) -> None:
    given = torch.cat(rows_by_name(encoder, samples)["blocks.0.ls2"]).double().flatten(0, -2)
    found = grams(encoder, samples)["blocks.0.ls2.gamma"]
    assert_close(found.double(), given.square().mean(0), rtol=1e-5, atol=1e-9)


def test_every_weight_that_multiplies_is_observed(encoder: Encoder, samples: Samples) -> None:
    multiplies = {
        name
        for name, tensor in encoder.weights().items()
        if name.endswith((".weight", ".gamma")) and not name.startswith("norm.")
    }
    # the final norm comes after the last tap, so it sees nothing
    assert set(grams(encoder, samples)) == multiplies
    assert set(observed_layers(encoder.vit)) == {*multiplies, "norm.weight"}
    assert any(isinstance(m, LayerScale) for m in observed_layers(encoder.vit).values())


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_size_of_batches_changes_no_more_than_rounding(
    encoder: Encoder, samples: Samples, batch: int
) -> None:
    expected = grams(encoder, samples)
    for name, found in grams(encoder, samples, batch).items():
        assert_close(found, expected[name], rtol=1e-5, atol=1e-6)


def test_inputs_far_from_zero_lose_no_more_than_single_precision(encoder: Encoder) -> None:
    # a channel of 1000 +- 1 beside one of +- 1: the sums over batches must not eat the small one
    layer = nn.Linear(2, 2)
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([1e3, 0.0])
    rows = augmented(inputs_of(layer, x))
    single = F.pad(x, (0, 1), value=1.0)
    error = (single.T @ single).double() / 4096 - rows.T @ rows / 4096
    assert float(error.abs()[1, 1]) < 1e-6
    assert float(error.abs()[0, 0]) < 1e6 * 1e-6


class Breaks(nn.Module):
    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("gather", [gather_grams, gather_statistics])
def test_hooks_are_gone_afterwards_and_after_an_error(
    encoder: Encoder, samples: Samples, gather: object
) -> None:
    assert callable(gather)
    gather(encoder, samples, label="a test", progress=Silent())
    assert not any(module._forward_hooks for module in encoder.vit.modules())
    whole = encoder.vit.blocks[1].mlp.fc2
    encoder.vit.blocks[1].mlp.fc2 = Breaks()
    try:
        with pytest.raises(RuntimeError, match="broken"):
            gather(encoder, samples, label="a test", progress=Silent())
    finally:
        encoder.vit.blocks[1].mlp.fc2 = whole
    assert not any(module._forward_hooks for module in encoder.vit.modules())


def test_statistics_are_the_mean_and_covariance_of_every_blocks_tokens(
    encoder: Encoder, samples: Samples
) -> None:
    found = gather_statistics(encoder, samples, label="a test", progress=Silent(), batch=2)
    with torch.no_grad():
        taps = encoder(torch.from_numpy(samples.images))
    assert len(found.means) == len(found.covariances) == 2
    for mean, covariance, tap in zip(found.means, found.covariances, taps, strict=True):
        rows = tap.double().flatten(0, 1).numpy()
        assert_close(mean.numpy(), rows.mean(axis=0), rtol=1e-6, atol=1e-7)
        expected = np.cov(rows.T, bias=True)
        assert_close(covariance.numpy(), expected, rtol=1e-5, atol=1e-7)
