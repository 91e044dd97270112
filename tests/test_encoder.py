"""The shared encoder: which models it takes, its sizes and taps, and its random weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simo_build.encoder import DRAWN, Encoder, make_vit, randomise, resampled
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.statedict import state_hash
from simo_runtime.errors import CheckpointError, RecipeError, UnknownNameError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
MODEL = "vit_tiny_patch16_224"


def make_encoder(
    *,
    model: str = MODEL,
    taps: tuple[int, ...] = (1, 3),
    size: tuple[int, int] = (32, 48),
    seed: int = 0,
    **options: object,
) -> Encoder:
    part = EncoderPart(model=model, options={**SMALL, **options}, taps=taps)
    encoder = Encoder(part, ImagePart(size=size)).eval()
    randomise(encoder, seed)
    return encoder


def pixels(size: tuple[int, int] = (32, 48)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=generator)


# Which models


def test_a_model_that_timm_does_not_know_gives_the_closest_one() -> None:
    with pytest.raises(
        RecipeError, match=r"timm has no 'vit_tiny_patch16_225'; did you mean '.*_224'\?"
    ):
        make_vit(EncoderPart(model="vit_tiny_patch16_225"))


@pytest.mark.parametrize("model", ["", "hf_hub:some/model", "local-dir:somewhere"])
def test_nothing_is_fetched_by_a_models_name(model: str) -> None:
    with pytest.raises(RecipeError, match=r"encoder\.model: timm has no"):
        make_vit(EncoderPart(model=model))


def test_a_model_that_is_no_vit_is_refused_by_its_kind() -> None:
    with pytest.raises(RecipeError, match=r"encoder\.model: resnet18 is a ResNet, not a plain ViT"):
        make_vit(EncoderPart(model="resnet18"))


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"timm refuses vit_tiny_patch16_224\.nope"):
        make_vit(EncoderPart(model=f"{MODEL}.nope", options=SMALL, taps=(1,)))


def test_an_unknown_option_gives_the_closest_one() -> None:
    with pytest.raises(
        UnknownNameError, match=r"encoder\.options 'embed_dims'; did you mean 'embed_dim'\?"
    ):
        make_vit(EncoderPart(model=MODEL, options={"embed_dims": 32}))


@pytest.mark.parametrize(
    "option",
    ["pretrained", "checkpoint_path", "pretrained_cfg", "num_classes", "in_chans", "img_size"],
)
def test_options_are_the_architecture_and_nothing_that_loads_weights(option: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"encoder\.options '{option}'"):
        make_vit(EncoderPart(model=MODEL, options={**SMALL, option: 1}, taps=(1,)))


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 5},
        {"num_heads": 0},
        {"depth": "three"},
        {"depth": -1},
        {"embed_dim": -4},
        {"patch_size": 0},
        {"act_layer": "no_such"},
    ],
)
def test_a_value_that_timm_refuses_is_named(options: dict[str, object]) -> None:
    with pytest.raises(
        RecipeError, match="encoder: timm refuses vit_tiny_patch16_224 with options"
    ):
        make_vit(EncoderPart(model=MODEL, options={**SMALL, **options}, taps=(1,)))


def test_a_tap_past_the_last_block_is_refused_with_the_number_of_blocks() -> None:
    with pytest.raises(RecipeError, match=r"encoder\.taps: 4 is past the last block; .* has 3"):
        make_encoder(taps=(1, 4))


def test_taps_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending order"):
        EncoderPart(model=MODEL, taps=(3, 1))


@pytest.mark.parametrize("option", sorted(DRAWN))
def test_what_would_draw_at_random_is_refused(option: str) -> None:
    with pytest.raises(RecipeError, match=rf"encoder\.options\.{option}: it would draw at random"):
        make_vit(EncoderPart(model=MODEL, options={**SMALL, option: 0.1}, taps=(1,)))


# Sizes and taps


@pytest.mark.parametrize(
    ("size", "padded", "grid"),
    [((32, 48), (32, 48), (2, 3)), ((30, 45), (32, 48), (2, 3)), ((33, 1), (48, 16), (3, 1))],
)
def test_an_image_is_padded_to_whole_patches(
    size: tuple[int, int], padded: tuple[int, int], grid: tuple[int, int]
) -> None:
    geometry = make_encoder(size=size).geometry
    assert (geometry.padded_size, geometry.grid) == (padded, grid)


@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, 1), ({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0)],
)
@torch.inference_mode()
def test_every_tap_has_the_tokens_before_the_patches_and_the_patches(
    options: dict[str, Any], prefix: int
) -> None:
    taps = make_encoder(size=(30, 45), **options)(pixels((30, 45)))
    assert [tap.shape for tap in taps] == [(2, prefix + 6, 32)] * 2


@torch.inference_mode()
def test_padding_is_the_mean_colour() -> None:
    """A grey image of the mean, padded, is what the padded image of the mean is."""
    grey = torch.full((1, 30, 45, 3), 51, dtype=torch.uint8)  # 51 / 255 = 0.2
    part = EncoderPart(model=MODEL, options=SMALL, taps=(1,))
    found = []
    for size in ((30, 45), (32, 48)):
        encoder = Encoder(part, ImagePart(size=size, mean=(0.2, 0.2, 0.2))).eval()
        randomise(encoder, 0)
        whole = torch.nn.functional.pad(grey, (0, 0, 0, size[1] - 45, 0, size[0] - 30), value=51)
        found.append(encoder(whole)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_blocks_after_the_last_tap_are_left_out() -> None:
    names = make_encoder(taps=(1, 2)).weights()
    assert {name.split(".")[1] for name in names if name.startswith("blocks")} == {"0", "1"}


@torch.inference_mode()
def test_blocks_after_the_last_tap_change_nothing() -> None:
    whole, short = make_encoder(taps=(1, 3)), make_encoder(taps=(1,))
    assert torch.equal(whole(pixels())[0], short(pixels())[0])


# Weights


def test_random_weights_are_reproducible() -> None:
    assert state_hash(make_encoder(seed=7).weights()) == state_hash(make_encoder(seed=7).weights())


def test_random_weights_differ_with_the_seed() -> None:
    assert state_hash(make_encoder(seed=7).weights()) != state_hash(make_encoder(seed=8).weights())


def test_random_weights_do_not_touch_the_global_generator() -> None:
    encoder = make_encoder()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    randomise(encoder, 3)
    assert torch.equal(torch.rand(1), expected)


def test_random_features_are_neither_flat_nor_exploding() -> None:
    with torch.inference_mode():
        taps = make_encoder()(pixels())
    assert all(0.01 < tap.std() < 10 for tap in taps)


def test_weights_that_do_not_fit_are_listed_at_most_five() -> None:
    wide = make_encoder(embed_dim=64).weights()
    with pytest.raises(CheckpointError, match=r"(?s)some\.pt: .* do not fit .*  and \d+ more\Z"):
        make_encoder().load(wide, source="some.pt")


# Positions


def dinov2s_own(old_1ND: Tensor, rows: int, columns: int) -> Tensor:
    """Resample as DINOv2 says: a sample of the new grid is (i + 0.5) * old / (new + 0.1) - 0.5."""
    side = math.isqrt(old_1ND.shape[1])
    grid_hwD = old_1ND[0].reshape(side, side, -1).double()
    for axis, count in enumerate((rows, columns)):
        at = (torch.arange(count).double() + 0.5) * side / (count + 0.1) - 0.5
        first = at.floor()
        total = torch.zeros(())
        for tap in (-1, 0, 1, 2):
            away = (at - first - tap).abs()
            near = 1.25 * away**3 - 2.25 * away**2 + 1  # Keys' cubic of a = -0.75
            far = -0.75 * (away**3 - 5 * away**2 + 8 * away - 4)
            taken = grid_hwD.index_select(axis, (first + tap).clamp(0, side - 1).long())
            weight = torch.where(away <= 1, near, far)
            total = total + taken * weight.reshape([-1 if one == axis else 1 for one in range(3)])
        grid_hwD = total
    return grid_hwD.flatten(0, 1)[None].float()


def test_positions_are_resampled_as_dinov2_does() -> None:
    part = EncoderPart(model=MODEL, options=SMALL, taps=(1,), positions="dinov2")
    encoder = Encoder(part, ImagePart(size=(32, 48)))  # 2 x 3 patches
    old = torch.randn((1, 1 + 7 * 7, 32), generator=torch.Generator().manual_seed(0))
    moved = resampled({"pos_embed": old}, encoder, (112, 112))["pos_embed"]
    torch.testing.assert_close(moved[:, :1], old[:, :1], rtol=0, atol=0)
    torch.testing.assert_close(moved[:, 1:], dinov2s_own(old[:, 1:], 2, 3), rtol=1e-4, atol=1e-5)
    timms = resampled({"pos_embed": old}, make_encoder(taps=(1,)), (112, 112))["pos_embed"]
    assert not torch.allclose(timms, moved, atol=0.1)  # which is smoothed


def test_a_description_without_positions_is_what_it_was() -> None:
    assert "positions" not in EncoderPart(model=MODEL).model_dump(mode="json")
    assert EncoderPart(model=MODEL, positions="dinov2").model_dump()["positions"] == "dinov2"
