"""Intervals: metrics from sums of images, resampled together for both models and the experts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simo_build.evaluate import image_sums
from simo_build.intervals import Bootstrap, Measured, against, difference
from simo_runtime.metrics import METRICS, normalised_performance, relative_drop
from simo_runtime.tasks import TaskSpec

Array = NDArray[Any]
SPECS = {
    "seg": TaskSpec(
        name="seg", kind="segmentation", channels=3, metric="mean_iou", labels=("a", "b", "c")
    ),
    "depth": TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error"),
}
KINDS = {task: spec.metric for task, spec in SPECS.items()}
IMAGES = 12


def truths() -> dict[str, Array]:
    """Truths whose number of valid pixels differs from image to image."""
    draw = np.random.default_rng(0)
    seg = draw.choice([0, 1, 2, 255], (IMAGES, 5, 7), p=[0.5, 0.2, 0.1, 0.2])
    depth = draw.uniform(1, 5, (IMAGES, 5, 7)) * (draw.random((IMAGES, 5, 7)) > 0.3)
    return {"seg": seg, "depth": depth}


def predictions(seed: int, noise: float) -> dict[str, Array]:
    draw, right = np.random.default_rng(seed), truths()
    wrong = draw.random((IMAGES, 5, 7)) < noise
    guess = np.where(right["seg"] == 255, 0, right["seg"])
    seg = np.where(wrong, draw.integers(0, 3, (IMAGES, 5, 7)), guess)
    return {"seg": seg, "depth": right["depth"] + noise * draw.normal(size=(IMAGES, 5, 7))}


def measured(predicted: Mapping[str, Array]) -> Measured:
    right = truths()
    sums = {t: image_sums(SPECS[t], predicted[t], right[t]) for t in SPECS}
    return Measured(SPECS, sums)


def whole(predicted: Mapping[str, Array], rows: Array) -> dict[str, float]:
    """Measure some images, one of them perhaps several times, the plain way."""
    right, found = truths(), {}
    for task, spec in SPECS.items():
        accumulator = METRICS[spec.metric].start(spec.channels)
        accumulator.update(predicted[task][rows], right[task][rows])
        found[task] = accumulator.result()
    return found


EXPERT, ONE, OTHER = (predictions(1, 0.1), predictions(2, 0.2), predictions(3, 0.4))


def test_sums_of_images_give_the_metric_of_the_split() -> None:
    assert measured(ONE).metrics() == pytest.approx(whole(ONE, np.arange(IMAGES)), rel=1e-12)


def test_a_row_compares_as_the_papers_equations_do() -> None:
    found = against(measured(ONE), measured(EXPERT), Bootstrap(images=IMAGES, resamples=10))
    every = np.arange(IMAGES)
    one, expert = whole(ONE, every), whole(EXPERT, every)
    assert found["normalised_performance"] == pytest.approx(
        normalised_performance(one, expert, KINDS)
    )
    assert found["relative_drop"] == pytest.approx(relative_drop(one, expert, KINDS))
    assert found["performance"]["depth"] == pytest.approx(expert["depth"] / one["depth"])
    assert found["performance"]["seg"] == pytest.approx(one["seg"] / expert["seg"])


def test_intervals_are_those_of_measuring_every_resample_anew() -> None:
    bootstrap = Bootstrap(images=IMAGES, resamples=60, seed=5)
    rows = [np.repeat(np.arange(IMAGES), counts.astype(int)) for counts in bootstrap.counts_Rn]
    scores = {
        name: [[equation(whole(p, r), whole(EXPERT, r), KINDS) for p in (ONE, OTHER)] for r in rows]
        for name, equation in (
            ("normalised_performance", normalised_performance),
            ("relative_drop", relative_drop),
        )
    }
    found = against(measured(ONE), measured(EXPERT), bootstrap)["interval"]
    apart = difference(measured(ONE), measured(OTHER), measured(EXPERT), bootstrap)["interval"]
    for name, pairs in scores.items():
        one, other = np.array(pairs).T
        assert found[name] == pytest.approx(np.quantile(one, (0.025, 0.975)))
        assert apart[name] == pytest.approx(np.quantile(one - other, (0.025, 0.975)))


def test_every_resample_has_as_many_images_as_there_are() -> None:
    counts = Bootstrap(images=7).counts_Rn
    assert counts.shape == (2000, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_a_seed_gives_its_own_resamples_every_time() -> None:
    one, same, other = (Bootstrap(images=9, seed=seed).counts_Rn for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_model_does_not_differ_from_itself() -> None:
    bootstrap = Bootstrap(images=IMAGES)
    found = difference(measured(ONE), measured(ONE), measured(EXPERT), bootstrap)
    assert found["normalised_performance"] == 0
    assert found["interval"] == {
        "normalised_performance": (0.0, 0.0),
        "relative_drop": (0.0, 0.0),
    }


def errors(values: Array) -> Measured:
    """A model of depth alone, whose error on every image is given."""
    sums = np.stack((values, np.ones_like(values)), axis=1)
    return Measured({"depth": SPECS["depth"]}, {"depth": sums})


def test_what_is_hard_for_both_models_does_not_widen_their_difference() -> None:
    draw = np.random.default_rng(0)
    hard = draw.uniform(0.5, 3.0, 80)
    one, other, experts = errors(hard), errors(hard + 0.02), errors(np.ones(80))
    bootstrap = Bootstrap(images=80)
    apart = difference(one, other, experts, bootstrap)
    low, high = apart["interval"]["relative_drop"]
    assert low == pytest.approx(0.02, abs=1e-9)
    assert high == pytest.approx(0.02, abs=1e-9)
    alone = against(one, experts, bootstrap)["interval"]["relative_drop"]
    assert alone[1] - alone[0] > 0.2


def test_an_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)
    found = against(errors(values), errors(np.ones(400)), Bootstrap(images=400, resamples=4000))
    low, high = found["interval"]["relative_drop"]
    wide = 2 * 1.96 * values.std() / np.sqrt(400)  # of a mean of 400 independent values
    assert high - low == pytest.approx(wide, rel=0.08)
    assert low < found["relative_drop"] < high


def test_one_image_has_no_interval() -> None:
    found = against(errors(np.ones(1)), errors(np.ones(1)), Bootstrap(images=1))
    assert found["normalised_performance"] == 1.0
    assert found["interval"]["normalised_performance"] is None


def test_resamples_without_any_truth_leave_no_interval() -> None:
    sums = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    model = Measured({"depth": SPECS["depth"]}, {"depth": sums})
    found = against(model, model, Bootstrap(images=3))
    assert found["normalised_performance"] == 1.0
    assert found["interval"]["performance"]["depth"] is None
