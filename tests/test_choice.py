"""Choosing merging parameters: on the select split, or by a proxy on images without labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from simo_build.alignment import Alignment
from simo_build.merging import merge
from simo_build.proxies import PROXIES, SIMILARITIES
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop
from simo_runtime.errors import DataError, RecipeError
from tests.tiny import opened, write_recipe, write_workplace

ONE = {"choose": {"alpha": [0.5, 1.0, 1.5]}, "images": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_workplace(folder)
    return folder


@pytest.fixture
def workplace(made: Path, tmp_path: Path) -> Path:
    """A copy of the tiny recipe, its experts and its data."""
    return Path(shutil.copytree(made, tmp_path / "workplace"))


# Alignment


def scores_of(work: Workshop, weights: StateDict) -> dict[str, float]:
    alignment = Alignment(work, work.unlabelled(4))
    return alignment.scores(alignment.similarities(alignment.features(weights)))


def test_an_experts_own_features_are_the_most_similar(workplace: Path) -> None:
    work = opened(write_recipe(workplace))
    alignment = Alignment(work, work.unlabelled(4))
    features = alignment.features(work.experts["depth"].encoder)
    for name in SIMILARITIES:
        found = alignment.similarity(name, features)
        if "ridge" not in name:  # two images are too few for a map
            assert found["depth"] == pytest.approx(1.0, abs=1e-5)
        assert found["normals"] < found["depth"]


def test_the_base_scores_zero_over_the_base(workplace: Path) -> None:
    work = opened(write_recipe(workplace))
    scores = scores_of(work, work.base)
    assert set(scores) == set(PROXIES)
    for name in ("cka_over_base", "cosine_over_base", "ridge_over_base"):
        assert scores[name] == 0.0


def test_a_similarity_is_the_mean_over_the_taps(workplace: Path) -> None:
    work = opened(write_recipe(workplace))
    alignment = Alignment(work, work.unlabelled(4))
    features = alignment.features(work.base)
    taps = [
        SIMILARITIES["cka"](ours, theirs)
        for ours, theirs in zip(features, alignment.experts["depth"], strict=True)
    ]
    assert alignment.similarity("cka", features)["depth"] == pytest.approx(np.mean(taps))


def test_features_are_patches_alone(workplace: Path) -> None:
    work = opened(write_recipe(workplace))
    alignment = Alignment(work, work.unlabelled(4))
    whole = work.features(work.base, alignment.samples, "the base")
    for tap, patches in zip(whole, alignment.features(work.base), strict=True):
        assert tap.shape == (4, 7, 32)  # CLS and 2 x 3 patches
        assert_close(patches, tap[:, 1:], rtol=0, atol=0)


def test_many_patches_are_thinned_out_evenly(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simo_build.alignment.PATCHES", 4)
    work = opened(write_recipe(workplace))
    alignment = Alignment(work, work.unlabelled(4))
    whole = work.features(work.base, alignment.samples, "the base")
    # of patches 0 .. 5: 0, 6 // 4 = 1, 12 // 4 = 3, 18 // 4 = 4, each after the CLS token
    assert torch.equal(alignment.features(work.base)[0], whole[0][:, [1, 2, 4, 5]])


def test_weights_that_give_no_numbers_score_none(workplace: Path) -> None:
    work = opened(write_recipe(workplace))
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in work.base.items()}
    assert all(np.isnan(score) for score in scores_of(work, broken).values())


# The choice in the merge stage


@pytest.mark.parametrize("by", ["cka", "cosine", "cka_over_base", "cosine_standardised"])
def test_of_one_task_the_expert_itself_is_chosen(workplace: Path, by: str) -> None:
    recipe = write_recipe(workplace, tasks=("depth",), merge={**ONE, "by": by})
    log = merge(opened(recipe)).log
    assert log["params"] == {"alpha": 1.0}
    assert [row["params"]["alpha"] for row in log["tried"]] == [0.5, 1.0, 1.5]
    assert log["tried"][1]["score"] == pytest.approx(1.0, abs=1e-4)


def test_a_choice_by_a_proxy_says_what_it_saw(workplace: Path) -> None:
    log = merge(opened(write_recipe(workplace, merge={**ONE, "by": "cosine"}))).log
    assert (log["by"], log["images"], log["labels"]) == ("cosine", 4, 0)
    for row in log["tried"]:
        assert set(row) == {"params", "score", "proxies", "similarities"}
        assert set(row["proxies"]) == set(PROXIES)
        assert row["score"] == row["proxies"]["cosine"]


def test_a_choice_on_select_says_what_it_saw(workplace: Path) -> None:
    log = merge(opened(write_recipe(workplace))).log
    assert (log["by"], log["images"], log["labels"]) == ("select", 3, 3)
    assert set(log["experts"]) == {"depth", "normals"}
    scores = [row["score"] for row in log["tried"]]
    assert scores == [row["normalised_performance"] for row in log["tried"]]
    assert log["params"] == log["tried"][int(np.argmax(scores))]["params"]


def test_a_choice_by_a_proxy_reads_no_truths(workplace: Path) -> None:
    for folder in ("depth", "normals"):
        shutil.rmtree(workplace / "data" / folder)
    assert merge(opened(write_recipe(workplace, merge={**ONE, "by": "cosine"}))).log["labels"] == 0
    with pytest.raises(DataError, match=r"images of the split .* have no truth of depth"):
        merge(opened(write_recipe(workplace, merge=ONE)))


def test_the_order_of_tasks_changes_no_score(workplace: Path) -> None:
    merging = {**ONE, "by": "ridge"}
    first = merge(opened(write_recipe(workplace, merge=merging)))
    tasks = ("normals", "depth")
    second = merge(opened(write_recipe(workplace, tasks=tasks, merge=merging)))
    assert first.log["tried"] == second.log["tried"]


def test_too_few_images_are_told(workplace: Path) -> None:
    recipe = write_recipe(workplace, merge={**ONE, "by": "cosine", "images": 7})
    with pytest.raises(RecipeError, match=r"merge\.images is 7, but the split .* has 6 images"):
        merge(opened(recipe))


@pytest.mark.parametrize(
    ("merging", "message"),
    [
        ({**ONE, "by": "cosin"}, r"merge\.by: unknown way to choose 'cosin'; .* 'cosine'\?"),
        (
            {"params": {"alpha": 1}, "by": "cka"},
            r"merge: by: cka has nothing to choose; give candidates in `choose`",
        ),
        ({**ONE, "by": "ridge", "images": 1}, r"images is 1; a choice by ridge needs at least 2"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_when_the_recipe_is_read(
    workplace: Path, merging: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        opened(write_recipe(workplace, merge=merging))


# What a kept stage depends on


def test_another_split_of_the_data_is_another_stage(workplace: Path) -> None:
    merging = {**ONE, "by": "cosine", "images": 2}
    first = merge(opened(write_recipe(workplace, merge=merging)))
    other = {"root": "data", "realign": "select"}
    second = merge(opened(write_recipe(workplace, merge=merging, data=other)))
    assert first.key != second.key
    assert first.log["tried"] != second.log["tried"]


def test_another_truth_is_another_stage(workplace: Path) -> None:
    shutil.copytree(workplace / "data" / "depth", workplace / "data" / "depth2")
    recipe = write_recipe(workplace)
    first = opened(recipe).inputs()
    recipe.write_text(recipe.read_text().replace("folder: depth", "folder: depth2"))
    assert opened(recipe).inputs() != first
