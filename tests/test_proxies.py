"""Similarities of features with known answers, and the scores that proxies make of them."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from simo_build.proxies import (
    PROXIES,
    SIMILARITIES,
    Proxy,
    Similarity,
    check_choice,
    cka,
    cosine,
    ridge,
    standardised,
)
from simo_runtime.errors import UnknownNameError

IMAGES, PATCHES, CHANNELS = 10, 30, 4
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES.values(), ids=SIMILARITIES)


def features(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(IMAGES, PATCHES, CHANNELS, generator=generator, dtype=torch.float64)
    return (drawn * torch.tensor([1.0, 3.0, 0.2, 1.0]) + 2.0).to(dtype)


def rotation(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(CHANNELS, CHANNELS, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q


def rows(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.reshape(-1, tensor.shape[-1]).numpy()


# What every similarity promises


@every_similarity
def test_features_are_as_similar_as_can_be_to_themselves(similarity: Similarity) -> None:
    assert similarity(features(0), features(0)) == pytest.approx(1.0, abs=1e-4)


@every_similarity
def test_less_noise_is_more_similar(similarity: Similarity) -> None:
    expert = features(0)
    near, far = (similarity(expert + scale * features(1), expert) for scale in (0.2, 2.0))
    assert far < near - 0.1 < 0.95


@every_similarity
def test_single_precision_agrees_with_double(similarity: Similarity) -> None:
    merged = features(0) + features(1)
    single = similarity(merged.float(), features(0, torch.float32))
    assert single == pytest.approx(similarity(merged, features(0)), abs=1e-5)


@every_similarity
def test_features_that_do_not_vary_give_a_number(similarity: Similarity) -> None:
    still = torch.full((IMAGES, PATCHES, CHANNELS), 0.1)
    assert math.isfinite(similarity(still, features(0, torch.float32)))
    assert math.isfinite(similarity(features(0, torch.float32), still))


@every_similarity
def test_inputs_are_not_written_to(similarity: Similarity) -> None:
    merged, expert = features(0), features(1)
    similarity(merged, expert)
    assert torch.equal(merged, features(0))
    assert torch.equal(expert, features(1))


# CKA


def test_cka_is_that_of_the_matrices_of_inner_products() -> None:
    # the other form: HSIC of the centred R x R matrices of inner products
    merged, expert = features(0) + features(1), features(0)
    x, y = rows(merged), rows(expert)
    centre = np.eye(len(x)) - 1 / len(x)
    one, two = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (one * two).sum() / np.sqrt((one * one).sum() * (two * two).sum())
    assert cka(merged, expert) == pytest.approx(expected, abs=1e-12)


def test_cka_does_not_see_a_rotation_a_scale_or_a_shift() -> None:
    merged, expert = features(0) + features(1), features(0)
    turned = 3.0 * merged @ rotation(5) - 7.0
    assert cka(turned, expert) == pytest.approx(cka(merged, expert), abs=1e-12)
    assert cka(turned, merged) == pytest.approx(1.0, abs=1e-12)


def test_cka_of_channels_that_do_not_go_together_is_zero() -> None:
    # (1, 1, -1, -1) and (1, -1, 1, -1)
    merged = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 4, 1)
    expert = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1)
    assert cka(merged, expert) == 0.0


# Cosine


def test_cosine_by_hand() -> None:
    # the expert's mean patch is (1, 1): seen from there its patches are (1, 0) and (-1, 0), the
    # merged ones (1, 1) and (-2, 0), so the cosines are 1 / sqrt(2) and 1
    expert = torch.tensor([[[2.0, 1.0], [0.0, 1.0]]])
    merged = torch.tensor([[[2.0, 2.0], [-1.0, 1.0]]])
    assert cosine(merged, expert) == pytest.approx((math.sqrt(0.5) + 1) / 2)


def test_cosine_sees_a_shift_that_all_patches_share() -> None:
    expert = features(0)
    assert cosine(expert + 5.0, expert) < 0.5


# Ridge


def test_ridge_finds_a_linear_map() -> None:
    merged = features(0)
    assert ridge(merged, merged @ rotation(5) * 3.0 + 1.0) > 0.995


def test_ridge_by_least_squares_on_every_other_image() -> None:
    # the penalty is 1e-3 of the mean diagonal of the Gram matrix: rows of sqrt(penalty) beside X
    merged, expert = features(0) + features(1), features(0)
    x, y = rows(merged[::2]), rows(expert[::2])
    seen, truth = rows(merged[1::2]) - x.mean(0), rows(expert[1::2])
    level = y.mean(0)
    x, y = x - x.mean(0), y - level
    penalty = np.sqrt(1e-3 * (x * x).sum() / CHANNELS) * np.eye(CHANNELS)
    found, *_ = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, 0 * penalty]))
    missed = ((truth - seen @ found - level) ** 2).sum()
    expected = 1 - missed / ((truth - truth.mean(0)) ** 2).sum()
    assert ridge(merged, expert) == pytest.approx(expected, abs=1e-10)


def test_ridge_does_not_reward_what_only_fits_the_images_it_was_fitted_on() -> None:
    # 300 channels of noise fit 150 rows of anything, and tell nothing of the other images
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(IMAGES, PATCHES, 300, generator=generator, dtype=torch.float64)
    assert ridge(noise, features(0)) < 0.0


# Standardised


def test_standardised_features_are_divided_by_the_experts_deviations() -> None:
    merged, expert = features(0) + features(1), features(0)
    deviations = torch.from_numpy(rows(expert).std(0))
    for similarity in (cka, cosine, ridge):
        expected = similarity(merged / deviations, expert / deviations)
        assert standardised(similarity)(merged, expert) == pytest.approx(expected, abs=1e-10)
        assert similarity(merged, expert) != pytest.approx(expected, abs=1e-3)


def test_a_channel_in_which_the_expert_does_not_vary_stays_as_it_is() -> None:
    expert = features(0, torch.float32)
    expert[..., 3] = 0.1
    merged = expert + 0.01 * features(1, torch.float32)
    assert standardised(cka)(merged, expert) > 0.9


# Scores

FOUND, BASE = {"a": 0.9, "b": 0.5}, {"a": 0.6, "b": 0.0}


def test_scores_by_hand() -> None:
    # over the base: (0.9 - 0.6) / 0.4 = 0.75 and 0.5
    assert Proxy("cka").score(FOUND, BASE) == 0.5
    assert Proxy("cka", over="mean").score(FOUND, BASE) == pytest.approx(0.7)
    assert Proxy("cka", over_base=True).score(FOUND, BASE) == 0.5
    assert Proxy("cka", over="mean", over_base=True).score(FOUND, BASE) == pytest.approx(0.625)


def test_a_task_whose_expert_is_the_base_does_not_count_over_the_base() -> None:
    proxy = Proxy("cka", over="mean", over_base=True)
    assert proxy.score({"a": 0.9, "b": 0.5}, {"a": 0.6, "b": 1.0}) == pytest.approx(0.75)
    assert proxy.score({"b": 0.5}, {"b": 1.0}) == 0.0


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("found", [{"a": math.nan, "b": 0.5}, {"a": 0.5, "b": math.nan}])
def test_a_similarity_that_is_no_number_makes_the_score_none(
    name: str, found: dict[str, float]
) -> None:
    assert math.isnan(PROXIES[name].score(found, BASE))


@pytest.mark.parametrize("name", PROXIES)
def test_the_order_of_tasks_does_not_change_a_score(name: str) -> None:
    found = {"a": 0.1, "b": 0.2, "c": 0.3}
    base = {"a": 0.01, "b": 0.02, "c": 0.07}
    turned = dict(reversed(found.items()))
    assert PROXIES[name].score(found, base) == PROXIES[name].score(turned, base)


def test_every_proxy_names_a_similarity() -> None:
    assert {proxy.similarity for proxy in PROXIES.values()} == set(SIMILARITIES)


def test_a_way_to_choose_that_does_not_exist_is_refused_with_the_closest() -> None:
    for name in ("select", *PROXIES):
        check_choice(name)
    with pytest.raises(UnknownNameError, match=r"way to choose 'cosin'; did you mean 'cosine'\?"):
        check_choice("cosin")
