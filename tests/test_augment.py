"""Random changes of training images: images and truths change together, by numbers known here."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from simo_build.augment import augmented, flipped, nearest, recoloured, window_of
from simo_build.data import Samples, viewed
from simo_build.recipe import JitterPart, TrainPart
from simo_runtime.scales import log_depth
from simo_runtime.tasks import KINDS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> tuple[Tensor, Tensor]:
    images = torch.arange(16 * 2 * 3 * 3, dtype=torch.int32).reshape(16, 2, 3, 3)
    return images, images[..., 0].clone()


def test_an_image_and_its_truth_are_mirrored_together() -> None:
    images, truth = flipped(*batch(), "depth", torch.Generator().manual_seed(0))
    assert torch.equal(images[..., 0], truth)


def test_some_images_are_mirrored_and_some_are_not() -> None:
    images, _ = flipped(*batch(), "depth", torch.Generator().manual_seed(0))
    same = (images == batch()[0]).flatten(1).all(dim=1)
    turned = (images == batch()[0].flip(2)).flatten(1).all(dim=1)
    assert torch.equal(same, ~turned)
    assert 0 < int(turned.sum()) < len(images)


def test_mirroring_leaves_its_inputs_alone() -> None:
    images, truth = batch()
    flipped(images, truth, "depth", torch.Generator().manual_seed(0))
    assert torch.equal(images, batch()[0])
    assert torch.equal(truth, batch()[1])


def test_the_same_generator_mirrors_the_same_images() -> None:
    one, other = (flipped(*batch(), "depth", torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(one, other)


def test_a_mirrored_normal_turns_in_x_alone() -> None:
    images = torch.zeros(16, 1, 2, 3)
    truth = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).expand(16, 1, 2, 3)
    _, mirrored = flipped(images, truth, "normals", torch.Generator().manual_seed(0))
    turned = torch.tensor([[-0.4, 0.5, 0.6], [-0.1, 0.2, 0.3]])
    found = {str(one.tolist()) for one in mirrored[:, 0]}
    assert found == {str(truth[0, 0].tolist()), str(turned.tolist())}


def test_classes_are_mirrored_as_bytes() -> None:
    truth = torch.tensor([[[0, 255]]], dtype=torch.uint8).expand(16, 1, 2)
    _, mirrored = flipped(
        torch.zeros(16, 1, 2, 3), truth, "segmentation", torch.Generator().manual_seed(0)
    )
    assert mirrored.dtype == torch.uint8
    assert {tuple(row.flatten().tolist()) for row in mirrored} == {(0, 255), (255, 0)}


# Several truths at once

HIGH, WIDE, MANY = 12, 16, 24


def scene() -> tuple[Tensor, dict[str, Tensor], dict[str, str]]:
    """Images whose red is a column's number and whose green is a row's, with truths of the same."""
    rows, columns = torch.meshgrid(torch.arange(HIGH), torch.arange(WIDE), indexing="ij")
    image = torch.stack([columns * 10, rows * 10, torch.full_like(rows, 60)], dim=-1)
    images = image.to(torch.uint8).expand(MANY, HIGH, WIDE, 3).contiguous()
    place = (columns + 100 * rows + 1.0).expand(MANY, HIGH, WIDE).contiguous()
    truths = {
        "seg": columns.to(torch.uint8).expand(MANY, HIGH, WIDE).contiguous(),
        "depth": place,
        "log_depth": torch.from_numpy(log_depth(place.numpy() / 512)),
        "disparity": place.clone(),
        "normals": torch.tensor([0.6, 0.0, 0.8]).half().expand(MANY, HIGH, WIDE, 3).contiguous(),
        "edges": place / 2000,
        "same": (images / 127.5 - 1).half(),
    }
    kinds = {name: name for name in truths} | {"seg": "segmentation", "same": "autoencoding"}
    return images, truths, kinds


def changed(how: dict[str, Any], seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    images, truths, kinds = scene()
    return augmented(images, truths, kinds, TrainPart(**how), seeded(seed))


def test_the_scene_has_a_truth_of_every_kind_that_changes_in_its_own_way() -> None:
    assert set(scene()[2].values()) | {"parts", "keypoints"} == set(KINDS)


def test_nothing_is_drawn_or_changed_when_all_is_off() -> None:
    generator, untouched = seeded(), seeded()
    images, truths, kinds = scene()
    found, same = augmented(images, truths, kinds, TrainPart(flip=False), generator)
    assert torch.equal(found, images)
    assert all(torch.equal(same[task], truths[task]) for task in truths)
    assert torch.equal(generator.get_state(), untouched.get_state())


def test_by_default_images_are_mirrored_as_they_always_were() -> None:
    images, truths, kinds = scene()
    generator, other = seeded(), seeded()
    found, same = augmented(images, truths, kinds, TrainPart(), generator)
    for task, truth in truths.items():
        state = other.get_state()
        expected, mirrored = flipped(images, truth, kinds[task], other)
        assert torch.equal(found, expected)
        assert torch.equal(same[task], mirrored)
        after = other.get_state()
        other.set_state(state)
    assert torch.equal(generator.get_state(), after)


def test_all_truths_are_mirrored_with_their_image() -> None:
    images, truths = changed({})
    mirrored = images[:, 0, 0, 0] > 0
    assert 0 < int(mirrored.sum()) < MANY
    assert torch.equal(truths["seg"].long() * 10, images[..., 0].long())
    assert torch.equal(truths["depth"] % 100 - 1, truths["seg"].float())
    expected = torch.where(mirrored, -0.6, 0.6).half()
    assert torch.equal(truths["normals"][:, 3, 5, 0], expected)


def test_the_same_seed_makes_the_same_images() -> None:
    how = {"scales": (1.0, 1.5), "jitter": JitterPart(brightness=0.4, hue=0.1)}
    (one, first), (same, second), (other, _) = (changed(how, seed) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert all(torch.equal(first[task].nan_to_num(9), second[task].nan_to_num(9)) for task in first)
    assert not torch.equal(one, other)


def test_the_batch_itself_stays() -> None:
    images, truths, kinds = scene()
    how = TrainPart(scales=(2.0,), jitter=JitterPart(contrast=1.0))
    augmented(images, truths, kinds, how, seeded())
    before, known, _ = scene()
    assert torch.equal(images, before)
    assert all(torch.equal(truths[task], known[task]) for task in known)


# Enlarging


def test_a_window_by_hand() -> None:
    # 12 / 1.5 = 8, 16 / 1.5 = 10.7; there are 5 and 6 places for it
    assert window_of((12, 16), 1.5, (0.0, 0.0)) == (0, 0, 8, 11)
    assert window_of((12, 16), 1.5, (0.999, 0.999)) == (4, 5, 8, 11)
    assert window_of((12, 16), 1.5, (0.5, 0.5)) == (2, 3, 8, 11)
    assert window_of((1, 1), 8.0, (0.9, 0.9)) == (0, 0, 1, 1)


def test_a_truth_doubles_every_pixel_of_its_window() -> None:
    truth = torch.arange(16).reshape(4, 4)
    expected = [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]
    assert nearest(truth, (1, 1, 2, 2)).tolist() == expected


def test_enlarged_images_and_truths_show_the_same_place() -> None:
    images, truths = changed({"flip": False, "scales": (2.0,)})
    assert len({int(row) for row in truths["edges"][:, 0, 0] * 2000}) > 1  # at several places
    # red is 10 times the column, linear between the centres of the pixels, up to the borders
    wanted = truths["seg"][:, 1:-1, 1:-1].float() * 10
    assert (images[:, 1:-1, 1:-1, 0].float() - wanted).abs().max() <= 3


def test_what_is_twice_as_large_is_twice_as_near() -> None:
    _, truths = changed({"flip": False, "scales": (2.0,)})
    place = truths["edges"] * 2000  # edges move, and stay what they are
    torch.testing.assert_close(truths["depth"], place / 2)
    torch.testing.assert_close(truths["disparity"], place * 2)
    metres = place.double().numpy() / 512 / 2
    expected = np.log(1 + 512 * metres) / math.log(65536)
    np.testing.assert_allclose(truths["log_depth"].numpy(), expected, rtol=1e-5)
    assert torch.equal(truths["normals"], scene()[1]["normals"])


def test_some_images_stay_as_large_as_they_were() -> None:
    images, truths = changed({"flip": False, "scales": (1.0, 2.0)})
    stays = (images == scene()[0]).flatten(1).all(dim=1)
    assert 0 < int(stays.sum()) < MANY
    assert torch.equal(truths["depth"][stays], scene()[1]["depth"][stays])


def test_a_pixel_without_truth_has_none_after_enlarging() -> None:
    images, truths, kinds = scene()
    for task, truth in truths.items():
        empty = KINDS[kinds[task]].empty
        truth[:] = int(empty) if kinds[task] == "segmentation" else empty
    how = TrainPart(flip=True, scales=(1.3, 2.0), jitter=JitterPart(brightness=0.5))
    _, found = augmented(images, truths, kinds, how, seeded())
    for task, truth in truths.items():
        assert found[task].dtype == truth.dtype
        torch.testing.assert_close(found[task].float(), truth.float(), equal_nan=True)


# Colours


def test_truths_do_not_see_colours_but_autoencoding_does() -> None:
    images, truths = changed({"flip": False, "jitter": JitterPart(brightness=0.5)})
    _, before, _ = scene()
    assert all(torch.equal(truths[task], before[task]) for task in truths if task != "same")
    torch.testing.assert_close(truths["same"], (images / 127.5 - 1).half())
    assert not torch.equal(truths["same"], before["same"])


def grey_image(value: int) -> Tensor:
    return torch.full((50, 2, 2, 3), value, dtype=torch.uint8)


def test_brightness_is_a_factor_from_one_minus_x_to_one_plus_x() -> None:
    found = recoloured(grey_image(100), JitterPart(brightness=0.3), seeded()).flatten(1)
    assert (found == found[:, :1]).all()
    assert 70 <= int(found.min()) < 80
    assert 120 < int(found.max()) <= 130


def test_contrast_scales_the_difference_from_the_mean() -> None:
    # two halves of 50 and 150: the mean 100 stays, the difference is scaled
    image = grey_image(50)
    image[:, 1] = 150
    found = recoloured(image, JitterPart(contrast=0.4), seeded()).long()
    assert (found[:, 0] + found[:, 1]).sub(200).abs().max() <= 1
    half = (found[:, 1] - found[:, 0])[:, 0, 0]
    assert 60 <= int(half.min()) < 75
    assert 125 < int(half.max()) <= 140


def test_saturation_scales_the_difference_from_the_pixels_own_grey() -> None:
    # grey is 0.299 * 180 + 0.701 * 110 = 130.93; twice the difference stays a byte
    image = torch.tensor([180, 110, 110], dtype=torch.uint8).expand(50, 2, 2, 3)
    found = recoloured(image, JitterPart(saturation=1.0), seeded()).double()
    grey = found @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert (grey - 130.93).abs().max() < 1
    spread = found[:, 0, 0, 0] - found[:, 0, 0, 1]
    assert spread.min() < 15
    assert spread.max() > 125


def test_hue_turns_by_half_a_circle_at_most() -> None:
    image = torch.tensor([200, 100, 100], dtype=torch.uint8).expand(50, 2, 2, 3)
    found = recoloured(image, JitterPart(hue=0.5), seeded()).numpy()
    hsv = np.stack([cv2.cvtColor(one / np.float32(255), cv2.COLOR_RGB2HSV) for one in found])
    # (200 - 100) / 200, and 200 / 255, whatever the hue, but for rounding to whole numbers
    np.testing.assert_allclose(hsv[..., 1], 0.5, atol=0.01)
    np.testing.assert_allclose(hsv[..., 2], 200 / 255, atol=0.005)
    hues = hsv[:, 0, 0, 0]
    assert ((hues > 90) & (hues < 270)).sum() > 10


def test_colours_stay_bytes() -> None:
    how = JitterPart(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    images = torch.randint(0, 256, (20, 4, 5, 3), dtype=torch.uint8, generator=seeded())
    found = recoloured(images, how, seeded(1))
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)


# The recipe


def test_the_hash_of_an_expert_that_uses_none_of_this_is_what_it_was() -> None:
    assert TrainPart().model_dump(mode="json", exclude_defaults=True) == {}
    given = TrainPart.model_validate({"scales": [1], "jitter": {"hue": 0}})
    assert given.model_dump(mode="json", exclude_defaults=True) == {}
    other = TrainPart.model_validate({"scales": [1, 1.5], "jitter": {"hue": 0.1}})
    assert other.model_dump(mode="json", exclude_defaults=True) == {
        "scales": [1.0, 1.5],
        "jitter": {"hue": 0.1},
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": []},
        {"scales": [0.9]},
        {"scales": [9]},
        {"jitter": {"hue": 0.6}},
        {"jitter": {"brightness": -0.1}},
        {"jitter": {"gamma": 0.1}},
    ],
)
def test_changes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainPart.model_validate(wrong)


def few() -> Samples:
    """Three images of noise, and their own reds for depth."""
    images = np.random.default_rng(0).integers(1, 256, (3, 8, 12, 3), dtype=np.uint8)
    return Samples(images, {"far": images[..., 0].astype(np.float32)})


def test_views_begin_with_the_images_themselves() -> None:
    how = TrainPart(flip=False, scales=(2.0,))
    found = viewed(few(), 3, {"far": "depth"}, how, seeded())
    assert len(found) == 9
    assert np.array_equal(found.images[:3], few().images)
    assert np.array_equal(found.truths["far"][:3], few().truths["far"])


def test_every_view_is_another_and_its_truth_goes_with_it() -> None:
    how = TrainPart(flip=False, scales=(2.0,))
    found = viewed(few(), 3, {"far": "depth"}, how, seeded())
    for row in range(3):
        views = [found.images[row + 3 * view] for view in range(3)]
        assert not any(np.array_equal(views[0], other) for other in views[1:])
        assert not np.array_equal(views[1], views[2])
        # enlarged twice: every depth is one of the image's, halved
        halved = set((few().truths["far"][row] / 2).ravel().tolist())
        assert set(found.truths["far"][row + 3].ravel().tolist()) <= halved


def test_one_view_changes_nothing() -> None:
    found = viewed(few(), 1, {"far": "depth"}, TrainPart(scales=(2.0,)), seeded())
    assert np.array_equal(found.images, few().images)


def test_the_same_seed_gives_the_same_views() -> None:
    how = TrainPart(scales=(1.0, 1.5), jitter=JitterPart(brightness=0.4, hue=0.1))
    one, other = (viewed(few(), 4, {"far": "depth"}, how, seeded(3)) for _ in range(2))
    assert np.array_equal(one.images, other.images)
