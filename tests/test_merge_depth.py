"""Merging parameters by layer, and their check before any heavy work."""

from typing import Any

import pytest
import torch

from simo_build.merge import METHODS, by_layer, depths
from simo_runtime.errors import RecipeError

NAMES = (
    "cls_token",
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.norm1.weight",
    "blocks.1.mlp.fc1.weight",
    "blocks.2.mlp.fc1.weight",
    "norm.weight",
)


def test_depth_runs_from_the_first_block_to_the_last() -> None:
    assert list(depths(NAMES).values()) == [0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0]


def test_depth_of_blocks_in_chunks_is_that_of_the_block() -> None:
    names = [f"blocks.{chunk}.{block}.x" for chunk, block in ((0, 0), (0, 1), (1, 2))]
    assert list(depths(names).values()) == [0.0, 0.5, 1.0]


def test_a_number_is_for_all_tensors() -> None:
    assert by_layer("alpha", 0.3, NAMES) == dict.fromkeys(NAMES, 0.3)


def test_a_list_is_interpolated_over_the_depth() -> None:
    # three knots at depths 0, 1/2 and 1; blocks of five at quarters
    names = [f"blocks.{block}.w" for block in range(5)]
    assert list(by_layer("alpha", [0.2, 0.4, 1.0], names).values()) == pytest.approx(
        [0.2, 0.3, 0.4, 0.7, 1.0]
    )


def test_a_list_of_one_is_for_all_tensors() -> None:
    assert set(by_layer("alpha", [0.5], NAMES).values()) == {0.5}


def test_the_last_key_of_a_map_that_fits_counts() -> None:
    found = by_layer("alpha", {"*": 0.1, 0: 0.2, "*.mlp.*": 0.3, "2": 0.4}, NAMES)
    assert list(found.values()) == [0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.1]


def test_a_key_that_fits_no_tensor_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"merge\.alpha: '\*\.mpl\.\*' fits no tensor"):
        by_layer("alpha", {"*": 0.1, "*.mpl.*": 0.3}, NAMES)


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'3' fits no tensor.*there are blocks 0 to 2"):
        by_layer("alpha", {"*": 0.1, 3: 0.3}, NAMES)


def test_a_tensor_without_a_key_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"3 tensors are fitted by no key; put '\*' first"):
        by_layer("alpha", {"blocks.*": 0.1}, NAMES)


def test_every_value_is_held_to_the_bounds() -> None:
    with pytest.raises(RecipeError, match=r"merge\.drop\.1 is 1\.0; it must be below 1"):
        by_layer("drop", {"*": 0.5, 1: 1.0}, NAMES, below=1)
    with pytest.raises(RecipeError, match=r"merge\.drop\[1\] is 2; it must be below 1"):
        by_layer("drop", [0.5, 2], NAMES, below=1)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"merge\.alpha is an empty list"):
        by_layer("alpha", [], NAMES)


def test_task_arithmetic_by_layer_by_hand() -> None:
    deltas = [{"blocks.0.w": torch.tensor([1.0]), "blocks.1.w": torch.tensor([1.0])}] * 2
    merged = METHODS["task_arithmetic"](deltas, alpha=[0.5, 2.0])
    assert {name: float(tensor) for name, tensor in merged.items()} == {
        "blocks.0.w": 1.0,
        "blocks.1.w": 4.0,
    }


def test_ranks_over_the_whole_vector_take_one_density() -> None:
    deltas = [{"blocks.0.w": torch.ones(4)}]
    with pytest.raises(RecipeError, match="`trim: tensor` it may be one by layer"):
        METHODS["ties"](deltas, density=[0.2, 0.4])
    METHODS["ties"](deltas, density=[0.2, 0.4], trim="tensor")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("task_arithmetic", {"alpha": {"*": 1, "*.mpl.*": 2}}, "fits no tensor"),
        ("ties", {"density": 2}, r"merge\.density is 2"),
        ("consensus", {"alpha": 1, "threshold": 0.4, "min_tasks": 4}, "there are 3 tasks"),
        ("iso_cts", {"alpha": 1, "common": 2}, r"merge\.common is 2"),
        ("wudi", {"steps": 0}, r"merge\.steps is 0"),
        ("doge", {"rest": "zero"}, r"merge\.rest is 'zero'"),
        ("tsv_m", {"conv": "mean"}, r"merge\.conv is 'mean'"),
    ],
)
def test_a_rehearsal_refuses_what_merging_would(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        METHODS[name].rehearse(NAMES, tasks=3, **params)
