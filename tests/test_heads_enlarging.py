"""The last step of a head: some pixels are what the whole image has there."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from simo_build.heads import HEADS, Enlarging, Pixels, make_head
from simo_export.geometry import Geometry
from simo_export.resizing import Resizing, shares
from simo_export.to_image import ToImage, to_image
from simo_runtime.tasks import KINDS
from tests.test_heads_dpt import PLACES, shape_at, spec_of, taps_at


@pytest.mark.parametrize("geometry", PLACES, ids=str)
@pytest.mark.parametrize("kind", ["segmentation", "depth", "normals"])
@pytest.mark.parametrize("name", HEADS)
def test_some_pixels_are_those_of_the_whole_image(name: str, kind: str, geometry: Geometry) -> None:
    head = make_head(name, spec_of(kind), shape_at(geometry), seed=0).eval()
    high, wide = geometry.image_size
    pixels = Pixels(torch.arange(3, high, 4), torch.tensor([0, wide - 1, wide // 2]))
    coarse = head.coarse(taps_at(geometry))
    whole = head(taps_at(geometry))
    assert whole.shape[2:] == geometry.image_size
    wanted = whole[:, :, pixels.rows_R][..., pixels.columns_C]
    assert_close(head.enlarging.at(coarse, pixels), wanted, rtol=1e-4, atol=1e-5)


def test_pixels_are_taken_from_maps_with_and_without_channels() -> None:
    maps = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    pixels = Pixels(torch.tensor([1, 3]), torch.tensor([0, 4, 5]))
    assert torch.equal(pixels.of(maps)[1, 1, 2], maps[1, 3, 5])
    assert pixels.of(maps[..., 0]).shape == (2, 2, 3)


def test_mirrored_pixels_are_the_same_places_of_the_mirrored_image() -> None:
    maps = torch.arange(4 * 6).reshape(1, 4, 6)
    pixels = Pixels(torch.tensor([1, 3]), torch.tensor([0, 3]))
    there = pixels.mirrored(6).of(maps.flip(2))
    assert torch.equal(there.flip(2), pixels.of(maps))


def test_shares_by_hand() -> None:
    # two coarse rows, four fine ones: centres at 0.25 and 0.75 of a row from each end
    wanted = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    assert_close(shares(2, 4), wanted)
    assert_close(shares(3, 3), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "patch", "first", "scale"),
    [
        ((33, 48), (16, 16), 1, 1),  # products; padded and cropped
        ((33, 48), (16, 16), 4, 1),
        ((48, 30), (14, 14), 4, 1),  # taller than wide; by 3.5 after `first`
        ((33, 48), (16, 16), 1, 8),  # a DPT's last step is too small for products
        ((32, 48), (16, 16), 1, 16),  # nothing to enlarge
    ],
)
def test_a_graphs_last_step_is_that_of_training(
    size: tuple[int, int], patch: tuple[int, int], first: int, scale: int
) -> None:
    geometry = Geometry(image_size=size, patch=patch)
    torch.manual_seed(0)
    h, w = geometry.grid
    coarse = torch.randn(2, 3, h * scale, w * scale, dtype=torch.float64)
    how: dict[str, Any] = {"positive": True, "first": first, "scale": scale}
    wanted = to_image(coarse, geometry, **how)
    assert wanted.shape[2:] == size
    assert_close(ToImage(geometry, dtype=torch.float64, **how)(coarse), wanted)
    assert_close(ToImage(geometry, **how)(coarse.float()), wanted.float())


def test_large_steps_are_products_and_small_ones_are_not() -> None:
    steps = {(12, 192): True, (48, 192): True, (96, 192): False, (80, 280): False}
    for (old, new), wanted in steps.items():
        made = Resizing((old, old), (new, new))
        assert made.by_products is wanted, (old, new)
        assert not made.state_dict()  # nothing of it is learnt


def test_a_model_made_only_for_its_sizes_leaves_the_next_one_its_numbers() -> None:
    old, new = (3, 5), (12, 20)
    with torch.device("meta"):
        assert Resizing(old, new).down_Hh.device.type == "meta"
    made = Resizing(old, new)
    maps = torch.randn(1, 2, *old)
    assert_close(made(maps), F.interpolate(maps, new, mode="bilinear"))


def test_gradients_are_those_of_the_whole_image() -> None:
    geometry = Geometry(image_size=(8, 12), patch=(4, 4))
    enlarging = Enlarging(geometry=geometry, positive=True, first=2)
    every = Pixels(torch.arange(8), torch.arange(12))
    coarse = torch.randn(1, KINDS["depth"].channels or 1, 2, 3, dtype=torch.float64)
    one, other = (coarse.clone().requires_grad_() for _ in range(2))
    enlarging.whole(one).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    enlarging.at(other, every).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    assert_close(one.grad, other.grad)
