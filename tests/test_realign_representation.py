"""Maps beside the blocks: both forms, in PyTorch and folded, only where they are asked for."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from simo_build.adapters import VARIANTS, Adapter, OutputAdapter
from simo_build.encoder import Encoder
from simo_build.realign.representation import beside
from simo_build.steps import RepresentationStep
from simo_export.fold import PlainEncoder
from simo_runtime.errors import CheckpointError
from tests.test_realign_lora import made, pixels


def asked(variant: str = "paper", **keys: object) -> RepresentationStep:
    return RepresentationStep.model_validate({"step": "representation", "variant": variant, **keys})


def adapted(variant: str = "paper", rank: int = 3) -> Encoder:
    """Give an encoder whose maps change something, in float64."""
    encoder = made().double()
    beside(encoder, asked(variant, rank=rank))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in encoder.vit.blocks:
            up_DR = block.adapter.halves()[1].weight
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


def weighted(module: nn.Module, down: list[list[float]], up: list[list[float]]) -> nn.Module:
    """Give an adapter of width 2 and rank 1 its two halves."""
    for layer, weight in zip(module.halves(), (down, up), strict=True):
        layer.weight.data = torch.tensor(weight)
    return module


@torch.no_grad()
def test_both_forms_by_hand() -> None:
    x, out = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]]), torch.tensor([[[3.0, 1.0], [1.0, 2.0]]])
    down, up = [[1.0, -1.0]], [[0.5], [-1.0]]
    # A x = -1 and 4, B A x = (-0.5, 1) and (2, -4)
    found = weighted(Adapter(2, 1), down, up)(x, out)
    assert found.tolist() == [[[2.5, 2.0], [3.0, -2.0]]]
    # D y = 2 and -1, of which the ReLU leaves 2 and 0: y - U ReLU(D y) = (3 - 1, 1 + 2) and y
    found = weighted(OutputAdapter(2, 1), down, up)(x, out)
    assert found.tolist() == [[[2.0, 3.0], [1.0, 2.0]]]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_tap_is_the_block_and_its_map(variant: str) -> None:
    encoder = adapted(variant)
    seen = []
    encoder.vit.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    first, second = encoder(pixels())
    one, two = encoder.vit.blocks
    bare = made().double().vit.blocks  # the same weights, no maps

    def mapped(block: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        down, up = (half.weight.T for half in block.adapter.halves())
        if variant == "paper":
            return out + x @ down @ up
        return out - (out @ down).clamp(min=0) @ up

    expected = mapped(one, seen[0], bare[0](seen[0]))
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(second, mapped(two, first, bare[1](first)), rtol=0, atol=1e-12)
    assert not torch.allclose(expected, bare[0](seen[0]), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_folded_encoder_has_the_maps(variant: str) -> None:
    encoder = adapted(variant).float()
    found, other = plain(encoder)(pixels()), plain(made())(pixels())
    for tap, same, bare in zip(encoder(pixels()), found, other, strict=True):
        torch.testing.assert_close(tap, same, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(same, bare, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_maps_start_by_changing_nothing_and_depend_on_the_seed_alone(variant: str) -> None:
    before, encoder, same = made()(pixels()), made(), made()
    for one in (encoder, same):
        beside(one, asked(variant))
        torch.rand(1)
    assert all(torch.equal(*pair) for pair in zip(before, encoder(pixels()), strict=True))
    trained = [name for name, p in encoder.vit.named_parameters() if p.requires_grad]
    assert [name.split(".")[2] for name in trained] == ["adapter"] * 4
    state = same.weights()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.weights().items())


@torch.no_grad()
def test_weights_say_which_form_their_maps_have() -> None:
    encoder = made()
    for variant, kind in VARIANTS.items():
        of = adapted(variant).float()
        encoder.load(of.weights(), source="here", adapters=True)
        assert all(type(block.adapter) is kind for block in encoder.vit.blocks)
        for one, other in zip(encoder(pixels()), of(pixels()), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


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
