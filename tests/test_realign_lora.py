"""LoRA: what is folded into the encoder is what was trained, in float64."""

import pytest
import torch

from simo_build.encoder import Encoder, randomise
from simo_build.realign.lora import adapt, folded
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.steps import LoraStep
from tests.tiny import SIZE

LAYERS = ("qkv", "proj", "fc1", "fc2")


def made() -> Encoder:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    part = EncoderPart(model="vit_tiny_patch16_224", options=options, taps=(1, 2))
    encoder = Encoder(part, ImagePart(size=SIZE))
    randomise(encoder, 0)
    return encoder


def pixels() -> torch.Tensor:
    shape = (3, *SIZE, 3)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


def stirred(encoder: Encoder) -> None:
    """Give the adapters weights that change something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in encoder.vit.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("layers", [LAYERS, ("qkv",)])
def test_the_folded_encoder_is_the_adapted_one(layers: tuple[str, ...], scale: float) -> None:
    adapted, plain = made().double(), made().double()
    adapt(adapted, LoraStep(step="lora", rank=4, scale=scale, layers=layers))  # type: ignore[arg-type]  # names of layers
    before = adapted(pixels())
    stirred(adapted)
    plain.load(folded(adapted), source="folded")
    after = adapted(pixels())
    for tap, same, other in zip(after, plain(pixels()), before, strict=True):
        assert same.dtype == torch.float64
        torch.testing.assert_close(tap, same, rtol=0, atol=1e-12)
        assert not torch.allclose(tap, other, atol=1e-3)


def test_adapters_start_by_changing_nothing() -> None:
    encoder = made()
    before = encoder(pixels())
    adapt(encoder, LoraStep(step="lora"))
    assert all(torch.equal(*pair) for pair in zip(before, encoder(pixels()), strict=True))
    assert all(torch.equal(made().weights()[n], t) for n, t in folded(encoder).items())


def test_only_adapters_of_the_layers_that_are_named_are_trained() -> None:
    encoder = made()
    adapt(encoder, LoraStep(step="lora", rank=4, layers=("proj", "fc1")))
    trained = {name: p.shape for name, p in encoder.vit.named_parameters() if p.requires_grad}
    sides = [
        f"blocks.{block}.{layer}.lora_{side}.default.weight"
        for block in (0, 1)
        for layer in ("attn.proj", "mlp.fc1")
        for side in "AB"
    ]
    assert sorted(trained) == sorted(sides)
    assert {min(shape) for shape in trained.values()} == {4}


def test_adapters_depend_on_the_seed_alone() -> None:
    one, same, other = made(), made(), made()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    adapt(one, LoraStep(step="lora"))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    adapt(same, LoraStep(step="lora"))
    adapt(other, LoraStep(step="lora", seed=1))
    name = "blocks.0.attn.qkv.lora_A.default.weight"
    found = [encoder.vit.state_dict()[name] for encoder in (one, same, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
