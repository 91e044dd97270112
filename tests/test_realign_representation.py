"""Maps beside the blocks: f(x) + B A x, in PyTorch and folded, only where they are asked for."""

from copy import deepcopy

import pytest
import torch

from simo_build.encoder import Encoder
from simo_build.realign.representation import beside
from simo_build.steps import RepresentationStep
from simo_export.fold import PlainEncoder
from simo_runtime.errors import CheckpointError
from tests.test_realign_lora import made, pixels


def adapted(rank: int = 3) -> Encoder:
    """Give an encoder whose maps change something, in float64."""
    encoder = made().double()
    beside(encoder, RepresentationStep(step="representation", rank=rank))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in encoder.vit.blocks:
            up_DR = block.adapter.up.weight
            up_DR.copy_(torch.randn(up_DR.shape, generator=generator))
    return encoder.eval()


def plain(encoder: Encoder) -> PlainEncoder:
    image, part = encoder.image, encoder.part
    return PlainEncoder(
        encoder.vit,
        geometry=encoder.geometry,
        taps=part.taps,
        norm=part.norm,
        mean=image.mean,
        std=image.std,
    )


@torch.no_grad()
def test_a_tap_is_the_block_and_the_map_of_its_input() -> None:
    encoder = adapted()
    seen = []
    encoder.vit.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    first, second = encoder(pixels())
    one, two = encoder.vit.blocks
    bare = made().double().vit.blocks  # the same weights, no maps

    def mapped(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x @ block.adapter.down.weight.T @ block.adapter.up.weight.T

    expected = bare[0](seen[0]) + mapped(one, seen[0])
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(second, bare[1](first) + mapped(two, first), rtol=0, atol=1e-12)
    assert not torch.allclose(expected, bare[0](seen[0]), atol=1e-3)


@torch.no_grad()
def test_the_folded_encoder_has_the_maps() -> None:
    encoder = adapted().float()
    found, other = plain(encoder)(pixels()), plain(made())(pixels())
    for tap, same, bare in zip(encoder(pixels()), found, other, strict=True):
        torch.testing.assert_close(tap, same, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(same, bare, atol=1e-2)


@torch.no_grad()
def test_maps_start_by_changing_nothing_and_depend_on_the_seed_alone() -> None:
    before, encoder, same = made()(pixels()), made(), made()
    for one in (encoder, same):
        beside(one, RepresentationStep(step="representation"))
        torch.rand(1)
    assert all(torch.equal(*pair) for pair in zip(before, encoder(pixels()), strict=True))
    trained = [name for name, p in encoder.vit.named_parameters() if p.requires_grad]
    assert [name.split(".")[2] for name in trained] == ["adapter"] * 4
    state = same.weights()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.weights().items())


def test_maps_come_and_go_with_the_weights() -> None:
    encoder, bare = made(), made()
    state = adapted().float().weights()
    with pytest.raises(CheckpointError, match="the model has no such tensor"):
        encoder.load(state, source="an expert")
    encoder.load(state, source="here", adapters=True)
    assert set(encoder.weights()) == set(state)
    for one in (deepcopy(encoder), encoder):
        one.load(bare.weights(), source="here", adapters=True)
        assert set(one.weights()) == set(bare.weights())
        assert not any(module._forward_hooks for module in one.modules())
        assert all(torch.equal(*pair) for pair in zip(one(pixels()), bare(pixels()), strict=True))
