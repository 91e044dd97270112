"""Folding is exact: the folded modules give what the unfolded ones give, in float64 too.

BatchNorm into convolutions of DPT heads is in `test_heads_dpt.py`, LoRA into linear layers in
`test_realign_lora.py`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.heads import FeatureShape, LinearHead
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.train import feature_shape
from simo_export.fold import PlainBlock, PlainEncoder, PlainLinearHead, fold_batchnorm
from simo_export.geometry import Geometry
from simo_runtime.errors import ExportError
from simo_runtime.tasks import TaskSpec

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
SEG = TaskSpec(
    name="seg", kind="segmentation", channels=4, metric="mean_iou", labels=("a", "b", "c", "d")
)
DEPTH = TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error")
NORMALS = TaskSpec(name="normals", kind="normals", channels=3, metric="mean_angle")


def make_encoder(
    model: str = "vit_tiny_patch16_224",
    *,
    size: tuple[int, int] = (32, 48),
    norm: bool = False,
    **options: object,
) -> Encoder:
    torch.manual_seed(0)
    part = EncoderPart(model=model, options={**SMALL, **options}, taps=(1, 3), norm=norm)
    image = ImagePart(size=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    encoder = Encoder(part, image).eval()
    with torch.no_grad():  # nothing may be zero or one by chance
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def fold(encoder: Encoder) -> PlainEncoder:
    return PlainEncoder(
        encoder.vit,
        geometry=encoder.geometry,
        taps=encoder.part.taps,
        norm=encoder.part.norm,
        mean=encoder.image.mean,
        std=encoder.image.std,
    ).eval()


def pixels(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)


def double(encoder: Encoder) -> Encoder:
    """Give an encoder in float64, its mean and std as exact as the recipe's."""
    encoder = encoder.double()
    encoder.mean = torch.tensor(encoder.image.mean, dtype=torch.float64)
    encoder.std = torch.tensor(encoder.image.std, dtype=torch.float64)
    return encoder


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Hold a fold to its promise: 1e-10 relative in float64, 1e-5 in float32."""
    assert found.dtype == expected.dtype
    limit = 1e-10 if expected.dtype == torch.float64 else 1e-5
    assert float((found - expected).norm() / expected.norm()) <= limit


@pytest.mark.parametrize(
    ("model", "size", "options"),
    [
        ("vit_tiny_patch16_224", (32, 48), {}),
        ("vit_tiny_patch16_224", (30, 45), {}),  # padded on all four sides
        ("vit_base_patch14_dinov2", (28, 42), {}),  # LayerScale
        ("vit_base_patch14_dinov2", (31, 29), {}),
        ("vit_base_patch14_reg4_dinov2", (28, 42), {}),  # registers, no position for CLS
        ("vit_tiny_patch16_224", (32, 48), {"qk_norm": True}),
        ("vit_tiny_patch16_224", (32, 48), {"qkv_bias": False}),
        ("vit_base_patch16_clip_224", (32, 48), {}),  # a norm before the blocks
    ],
)
@torch.inference_mode()
def test_the_folded_encoder_equals_the_original(
    model: str, size: tuple[int, int], options: dict[str, object]
) -> None:
    encoder = make_encoder(model, size=size, **options)
    images = pixels(size)
    for one in (encoder, double(make_encoder(model, size=size, **options))):
        for tap, folded in zip(one(images), fold(one)(images), strict=True):
            assert_equal(folded, tap)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"qkv_bias": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.inference_mode()
def test_layer_scale_and_the_scale_of_attention_fold_into_a_block(
    dtype: torch.dtype, options: dict[str, object]
) -> None:
    encoder = make_encoder("vit_base_patch14_dinov2", size=(28, 42), **options).to(dtype)
    block = encoder.vit.blocks[0]
    assert not isinstance(block.ls1, nn.Identity)
    assert not isinstance(block.ls2, nn.Identity)
    tokens = torch.randn(2, 7, 32, dtype=dtype)
    plain = PlainBlock(block, 7)
    assert_equal(plain(tokens), block(tokens))
    assert not torch.allclose(plain.proj.weight, block.attn.proj.weight)
    assert not torch.allclose(plain.fc2.weight, block.mlp.fc2.weight)


@pytest.mark.parametrize("size", [(32, 48), (30, 45), (17, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.inference_mode()
def test_pixels_and_padding_fold_into_the_patch_embedding(
    dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """What reaches the first block is the normalised image, zero where it is padded."""
    encoder = make_encoder(size=size)
    encoder = double(encoder) if dtype == torch.float64 else encoder
    folded, images = fold(encoder), pixels(size)
    seen: list[Tensor] = []
    for one in (encoder.vit.blocks[0], folded.blocks[0]):
        one.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder(images), folded(images)
    assert_equal(seen[1], seen[0])
    assert folded.position_1SD.shape == seen[1][:1].shape  # CLS and positions are in one table


@torch.inference_mode()
def test_the_final_norm_is_applied_to_the_taps_when_asked_for() -> None:
    encoder = make_encoder(norm=True)
    images = pixels((32, 48))
    for one, other in zip(encoder(images), fold(encoder)(images), strict=True):
        assert_equal(other, one)
    assert not torch.allclose(make_encoder(norm=False)(images)[0], encoder(images)[0])


def test_the_folded_encoder_has_no_layer_scale() -> None:
    folded = fold(make_encoder("vit_base_patch14_dinov2", size=(28, 42)))
    assert not any("gamma" in name for name, _ in folded.named_parameters())


@pytest.mark.parametrize("spec", [SEG, DEPTH, NORMALS], ids=lambda spec: spec.name)
@pytest.mark.parametrize("size", [(32, 48), (30, 45)])
@torch.inference_mode()
def test_the_folded_linear_head_equals_the_original(spec: TaskSpec, size: tuple[int, int]) -> None:
    encoder = make_encoder(size=size)
    head = trained_looking(LinearHead(spec, feature_shape(encoder)))
    taps = encoder(pixels(size))
    raw = head(taps)
    assert raw.shape == (2, spec.channels, *size)
    assert_equal(head.folded()(*taps), raw)
    head, taps = head.double(), [tap.double() for tap in taps]
    assert_equal(head.folded()(*taps), head(taps))


def trained_looking(head: LinearHead) -> LinearHead:
    for parameter in head.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    if isinstance(head.norm, nn.BatchNorm1d):
        assert head.norm.running_mean is not None
        assert head.norm.running_var is not None
        head.norm.running_mean.normal_()
        head.norm.running_var.uniform_(0.5, 2.0)
    return head.eval()


@torch.inference_mode()
def test_projecting_before_upsampling_is_what_the_paper_computes() -> None:
    """The paper upsamples 4 x the features, projects, takes the positive part, upsamples."""
    encoder = make_encoder()
    head = trained_looking(LinearHead(DEPTH, feature_shape(encoder)))
    taps = encoder(pixels((32, 48)))
    halves = [half for tap in taps for half in (tap[:, 1:], tap[:, :1].expand_as(tap[:, 1:]))]
    features = torch.cat(halves, dim=-1).transpose(1, 2).unflatten(-1, (2, 3))
    wide = nn.functional.interpolate(features, scale_factor=4, mode="bilinear")
    weight = head.project.weight[:, :, None, None]
    projected = nn.functional.conv2d(wide, weight, head.project.bias).relu()
    expected = nn.functional.interpolate(projected, size=(32, 48), mode="bilinear")
    torch.testing.assert_close(head(taps), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_batchnorm_folds_exactly_in_float64() -> None:
    norm = nn.BatchNorm1d(6).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3.0)
    norm.weight.normal_()
    norm.bias.normal_()
    linear = nn.Linear(6, 2).double()
    features = torch.randn(5, 6, dtype=torch.float64)
    weight, bias = fold_batchnorm(norm, linear.weight, linear.bias)
    assert_equal(features @ weight.T + bias, linear(norm(features)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.inference_mode()
def test_the_cls_half_of_a_linear_head_is_one_vector_an_image(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(3, 2 * 2 * 5, dtype=dtype), torch.randn(3, dtype=dtype)
    shape: dict[str, Any] = {"geometry": Geometry(image_size=(4, 6), patch=(2, 2)), "prefix": 1}
    plain = PlainLinearHead(weight, bias, taps=2, positive=False, first=1, **shape)
    taps = [torch.randn(2, 1 + 6, 5, dtype=dtype) for _ in range(2)]
    halves = [half for tap in taps for half in (tap[:, 1:], tap[:, :1].expand(-1, 6, -1))]
    coarse = torch.cat(halves, dim=-1) @ weight.T + bias
    expected = nn.functional.interpolate(
        coarse.transpose(1, 2).reshape(-1, 3, 2, 3), scale_factor=2.0, mode="bilinear"
    )
    assert_equal(plain(*taps), expected)


def test_a_block_that_cannot_be_folded_is_refused_by_name() -> None:
    encoder = make_encoder()
    encoder.vit.blocks[1].attn.norm = nn.LayerNorm(32)
    with pytest.raises(ExportError, match=r"block 2\.attn\.norm is a LayerNorm"):
        fold(encoder)


def test_a_linear_head_needs_a_cls_token() -> None:
    shape = FeatureShape(geometry=make_encoder().geometry, taps=2, width=32, prefix=0)
    with pytest.raises(Exception, match="needs an encoder with a CLS token"):
        LinearHead(SEG, shape)
