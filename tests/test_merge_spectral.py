"""Methods of singular vectors, worked by hand and held to their formulas."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.merge.matrices import polar, svd
from tests.merging import PARAMS, Matrix, delta, matrices


def test_tsv_m_by_hand() -> None:
    # int(2 / 2) = 1 direction each: 3 along the first axis, 5 along the second; orthogonal already
    merged = METHODS["tsv_m"](matrices([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 5.0]]))
    assert_close(merged["blocks.0.w"], torch.diag(torch.tensor([3.0, 5.0])))


def test_iso_c_by_hand() -> None:
    # the sum diag(3, 1) has singular values 3 and 1, their mean is 2; halved
    deltas = matrices([[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert_close(METHODS["iso_c"](deltas, alpha=0.5)["blocks.0.w"], torch.eye(2))


def test_iso_cts_by_hand() -> None:
    # nothing is common, each task brings round(2 / 2) = 1 direction: 3 and 5, the mean is 4
    deltas = matrices([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 5.0]])
    merged = METHODS["iso_cts"](deltas, alpha=1.0, common=0.0)
    assert_close(merged["blocks.0.w"], 4 * torch.eye(2))


def tsv_formula(tau: Matrix) -> Matrix:
    keep = min(tau.shape[1:]) // len(tau)
    parts = [np.linalg.svd(one, full_matrices=False) for one in tau]
    return summed_up([(u[:, :keep], s[:keep], v[:keep]) for u, s, v in parts])


def iso_c_formula(tau: Matrix) -> Matrix:
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    return np.asarray(s.mean() * u @ v)


def iso_cts_formula(tau: Matrix) -> Matrix:
    rank = min(tau.shape[1:])
    own = round((rank - int(0.6 * rank)) / len(tau))
    shared = rank - own * len(tau)
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    u, s, v = u[:, :shared], s[:shared], v[:shared]
    rests = [np.linalg.svd(one - u @ u.T @ one, full_matrices=False) for one in tau]
    parts = [*((a[:, :own], b[:own], c[:own]) for a, b, c in rests), (u, s, v)]
    mean = np.concatenate([b for _, b, _ in parts]).mean()
    return summed_up([(a, np.full_like(b, mean), c) for a, b, c in parts])


def summed_up(parts: Sequence[tuple[Matrix, Matrix, Matrix]]) -> Matrix:
    a, _, b = np.linalg.svd(np.concatenate([u for u, _, _ in parts], axis=1), full_matrices=False)
    c, _, d = np.linalg.svd(np.concatenate([v for _, _, v in parts]), full_matrices=False)
    return np.asarray(a @ b @ np.diag(np.concatenate([s for _, s, _ in parts])) @ c @ d)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (8, 8)])
@pytest.mark.parametrize(
    ("name", "params", "formula"),
    [
        ("tsv_m", {}, tsv_formula),
        ("iso_c", {"alpha": 1.0}, iso_c_formula),
        ("iso_cts", {"alpha": 1.0, "common": 0.6}, iso_cts_formula),
    ],
)
def test_a_spectral_method_is_its_formula(
    name: str, params: dict[str, Any], formula: Callable[[Matrix], Matrix], shape: tuple[int, int]
) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    merged = METHODS[name]([{"w": one} for one in stack], **params)["w"]
    assert_close(merged.double().numpy(), formula(stack.double().numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts"])
def test_a_spectral_method_takes_the_mean_of_what_is_no_matrix(name: str) -> None:
    merged = METHODS[name]([delta(0), delta(1)], alpha=1.0)
    for rest in ("cls_token", "mask_token", "pos_embed", "patch_embed.proj.weight", "scalar"):
        assert_close(merged[rest], (delta(0)[rest] + delta(1)[rest]) / 2)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_a_patch_embedding_can_be_a_matrix(name: str) -> None:
    # the same weights laid out as (6, 12) give the same result
    params, conv = PARAMS.get(name, {}), "patch_embed.proj.weight"
    merged = METHODS[name]([delta(0), delta(1)], conv="flatten", **params)[conv]
    plain = METHODS[name]([{"w": delta(seed)[conv].flatten(1)} for seed in (0, 1)], **params)["w"]
    assert torch.equal(merged.flatten(1), plain)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_q_k_and_v_can_be_matrices_of_their_own(name: str) -> None:
    params, qkv = PARAMS.get(name, {}), "blocks.0.attn.qkv.weight"
    merged = METHODS[name]([delta(0), delta(1)], split_qkv=True, **params)[qkv]
    parts = [delta(seed)[qkv].chunk(3) for seed in (0, 1)]
    alone = METHODS[name]([dict(zip("qkv", part, strict=True)) for part in parts], **params)
    assert_close(merged, torch.cat([alone[part] for part in "qkv"]))


def test_an_expert_that_did_not_move_adds_no_direction() -> None:
    # two of four directions of the first expert stay as they are
    given = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    merged = METHODS["tsv_m"]([{"w": given}, {"w": torch.zeros(4, 4)}])["w"]
    assert_close(merged, torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0])))


@pytest.mark.parametrize("smallest", [1e-1, 1e-5, 1e-8, 0.0])
def test_singular_values_come_without_null_directions(smallest: float) -> None:
    # by eigenvectors where that is exact enough, else directly
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(7, 4, generator=generator).double()).Q
    strengths = torch.tensor([2.0, 1.0, 0.5, smallest], dtype=torch.float64)
    matrix = frame * strengths @ torch.linalg.qr(torch.randn(4, 4, generator=generator).double()).Q
    for given in (matrix, matrix.T):
        u, s, v = svd(given)
        assert_close(s, strengths[strengths > 1e-6], rtol=1e-8, atol=0)
        assert_close(u * s @ v, given, rtol=0, atol=1e-8)
        assert_close(u.T @ u, torch.eye(len(s), dtype=torch.float64), rtol=0, atol=1e-8)


def test_tasks_without_directions_of_their_own_add_none() -> None:
    # rank 1 each, so the sum's two directions hold both; their strength is the mean of all six
    generator = torch.Generator().manual_seed(0)
    columns, rows = (
        torch.randn(2, 6, 1, generator=generator),
        torch.randn(2, 1, 6, generator=generator),
    )
    deltas = [{"w": column @ row} for column, row in zip(columns, rows, strict=True)]
    merged = METHODS["iso_cts"](deltas, alpha=1.0)["w"]
    assert_close(merged, METHODS["iso_c"](deltas, alpha=1.0)["w"])
    assert int(torch.linalg.matrix_rank(merged)) == 2


def test_two_directions_that_are_alike_are_one() -> None:
    # the nearest orthogonal vectors to e, e are the partial isometry e, e / sqrt(2)
    twice = torch.tensor([[1.0, 1.0], [0.0, 1e-9], [0.0, 0.0]])
    expected = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]).sqrt()
    assert_close(polar(twice).float(), expected)
