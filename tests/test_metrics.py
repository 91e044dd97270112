"""Metrics, each against an example worked by hand, and the paper's two summary equations.

`paper-tables.json` holds every row of the tables 1 to 3 of arXiv 2504.11268: `printed_pct` and
`printed_delta` as printed, and, worked out from the metric values that the tables print,
`pct` (100 * measured / baseline, or its inverse where lower is better), `mean_norm` (the mean of
`pct`, equation 1) and `delta_eq2` (equation 2), all in percent with four decimals.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simo_runtime.errors import UnknownNameError
from simo_runtime.metrics import (
    METRICS,
    Metric,
    metric_named,
    normalised_performance,
    relative_drop,
    unit,
)

Array = NDArray[Any]
HIGHER, LOWER = "mean_iou", "absolute_error"
VECTORS = {"mean_angle", "component_error"}
EMPTY = {"mean_iou": 255, "value_error": math.nan}  # the truth of a pixel without one; else 0


def measure(name: str, predicted: Array, truth: Array, *, classes: int = 0) -> float:
    accumulator = METRICS[name].start(classes)
    accumulator.update(predicted, truth)
    return accumulator.result()


def example(name: str) -> tuple[Array, Array]:
    """Seven images whose difficulty differs, with invalid pixels, so that batches are unequal."""
    random = np.random.default_rng(3)
    if name == "mean_iou":
        return random.integers(0, 4, (7, 5, 6)), random.choice([0, 1, 2, 3, 255], (7, 5, 6))
    shape = (7, 5, 6, 3) if name in VECTORS else (7, 5, 6)
    truth = random.normal(size=shape) if name in VECTORS else random.uniform(1, 9, shape)
    truth[2:4, :3] = EMPTY.get(name, 0)
    return truth + random.normal(size=shape) * np.arange(7).reshape(
        7, *[1] * (len(shape) - 1)
    ), truth


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
class TestEveryMetric:
    def test_is_found_by_its_own_name(self, metric: Metric) -> None:
        assert metric_named(metric.name) is metric

    def test_does_not_depend_on_the_batch_size(self, metric: Metric) -> None:
        predicted, truth = example(metric.name)
        at_once, one_by_one = metric.start(4), metric.start(4)
        at_once.update(predicted, truth)
        for index in range(7):
            one_by_one.update(predicted[index : index + 1], truth[index : index + 1])
        # float64 sums in another order
        assert one_by_one.result() == pytest.approx(at_once.result(), rel=1e-12)

    def test_sums_of_images_add_up_to_those_of_all(self, metric: Metric) -> None:
        predicted, truth = example(metric.name)
        at_once, total = metric.start(4), np.zeros_like(metric.start(4).sums())
        at_once.update(predicted, truth)
        for index in range(7):
            alone = metric.start(4)
            alone.update(predicted[index : index + 1], truth[index : index + 1])
            total += alone.sums()
        assert total == pytest.approx(at_once.sums(), rel=1e-12)
        assert metric.score(np.stack((total, 2 * total))) == pytest.approx(
            [at_once.result()] * 2, rel=1e-12
        )

    def test_is_nan_when_nothing_was_seen(self, metric: Metric) -> None:
        assert math.isnan(metric.start(4).result())

    def test_is_nan_when_no_truth_is_valid(self, metric: Metric) -> None:
        predicted, truth = example(metric.name)
        nothing = np.full_like(truth, EMPTY.get(metric.name, 0))
        accumulator = metric.start(4)
        accumulator.update(predicted, nothing)
        assert math.isnan(accumulator.result())

    def test_leaves_its_inputs_alone(self, metric: Metric) -> None:
        predicted, truth = example(metric.name)
        before = predicted.copy(), truth.copy()
        metric.start(4).update(predicted, truth)
        np.testing.assert_array_equal(predicted, before[0])
        np.testing.assert_array_equal(truth, before[1])

    def test_takes_the_truth_for_the_best_prediction(self, metric: Metric) -> None:
        _, truth = example(metric.name)
        best = measure(metric.name, np.where(truth == 255, 0, truth), truth, classes=4)
        assert best == pytest.approx(0.0 if metric.lower_is_better else 1.0, abs=1e-12)

    def test_a_number_is_better_than_a_worse_one(self, metric: Metric) -> None:
        good, bad = (0.1, 0.2) if metric.lower_is_better else (0.2, 0.1)
        assert (metric.better(good, bad), metric.better(bad, good)) == (True, False)

    def test_no_number_is_better_than_itself(self, metric: Metric) -> None:
        assert not metric.better(0.5, 0.5)

    @pytest.mark.parametrize("other", [0.5, math.inf, -math.inf, math.nan])
    def test_nan_is_never_better(self, metric: Metric, other: float) -> None:
        assert not metric.better(math.nan, other)


def test_an_unknown_metric_is_refused_with_the_closest_name() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown metric 'mean_iuo'; did you mean 'mean_iou'"
    ):
        metric_named("mean_iuo")


class TestMeanIoU:
    def test_by_hand(self) -> None:
        #   truth   0 0 1     predicted   0 1 1
        #           1 2 2                 1 2 0
        # class 0: hits 1, union 2 + 2 - 1 = 3; class 1: hits 2, union 2 + 3 - 2 = 3;
        # class 2: hits 1, union 2 + 1 - 1 = 2; mean (1/3 + 2/3 + 1/2) / 3 = 1/2.
        truth = np.array([[[0, 0, 1], [1, 2, 2]]], np.uint8)
        predicted = np.array([[[0, 1, 1], [1, 2, 0]]], np.uint8)
        assert measure("mean_iou", predicted, truth, classes=3) == pytest.approx(1 / 2)

    def test_a_class_that_never_occurs_does_not_count(self) -> None:
        # classes 0 and 2 do not occur: only class 1 is in the mean, with 2 / 2.
        ones = np.ones((1, 1, 2), np.uint8)
        assert measure("mean_iou", ones, ones, classes=3) == 1.0

    def test_a_class_that_is_only_predicted_counts_as_missed(self) -> None:
        # class 0: hits 1, union 2; class 1: hits 0, union 1; mean (1/2 + 0) / 2 = 1/4.
        predicted, truth = np.array([[[0, 1]]]), np.array([[[0, 0]]])
        assert measure("mean_iou", predicted, truth, classes=3) == pytest.approx(1 / 4)

    @pytest.mark.parametrize("ignored", [255, 2, -1])
    def test_truths_outside_the_classes_do_not_count(self, ignored: int) -> None:
        # the last pixel is left out: class 0 has 1 / 2, class 1 has 1 / 2.
        truth, predicted = np.array([[[0, 1, 1, ignored]]]), np.array([[[0, 0, 1, 1]]])
        assert measure("mean_iou", predicted, truth, classes=2) == pytest.approx(1 / 2)

    def test_is_one_matrix_over_all_images_and_not_a_mean_over_them(self) -> None:
        # image 1: class 0 in 3 of 3 pixels; image 2: class 0 in 0 of 1, predicted 1.
        # one matrix: class 0 has 3 / 4, class 1 has 0 / 1, mean 3/8; per image: (1 + 0) / 2.
        accumulator = METRICS["mean_iou"].start(2)
        accumulator.update(np.array([[[0, 0, 0]]]), np.array([[[0, 0, 0]]]))
        accumulator.update(np.array([[[1]]]), np.array([[[0]]]))
        assert accumulator.result() == pytest.approx(3 / 8)

    @pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64])
    def test_takes_any_kind_of_integer(self, kind: type[np.generic]) -> None:
        labels = np.array([[[0, 1, 1]]]).astype(kind)
        assert measure("mean_iou", labels, labels, classes=2) == 1.0

    @pytest.mark.parametrize("wrong", [2, -1])
    def test_a_prediction_that_is_no_class_is_refused(self, wrong: int) -> None:
        with pytest.raises(ValueError, match="of 2 classes"):
            measure("mean_iou", np.array([[[0, wrong]]]), np.array([[[0, 0]]]), classes=2)


class TestAbsoluteError:
    def test_by_hand(self) -> None:
        # |1.5 - 1| = 0.5, |2 - 4| = 2, the third has no truth: 2.5 / 2 = 1.25.
        predicted = np.array([[[1.5, 2.0, 9.0]]], np.float32)
        truth = np.array([[[1.0, 4.0, 0.0]]], np.float32)
        assert measure("absolute_error", predicted, truth) == 1.25

    def test_every_valid_pixel_weighs_the_same(self) -> None:
        # image 1 has one valid pixel, off by 4; image 2 three, exact: 4 / 4 = 1, not (4 + 0) / 2.
        accumulator = METRICS["absolute_error"].start(0)
        accumulator.update(np.array([[[5.0, 7.0, 7.0]]]), np.array([[[1.0, 0.0, 0.0]]]))
        accumulator.update(np.ones((1, 1, 3)), np.ones((1, 1, 3)))
        assert accumulator.result() == 1.0

    def test_a_truth_that_is_not_a_number_does_not_count(self) -> None:
        truth = np.array([[[1.0, math.nan]]])
        assert measure("absolute_error", np.array([[[2.0, 2.0]]]), truth) == 1.0

    def test_keeps_its_accuracy_over_millions_of_float32_pixels(self) -> None:
        # every error is 0.1 as float32, which is 0.10000000149 in float64.
        predicted, truth = np.full((1, 1000, 1000), 1.1, np.float32), np.ones((1, 1000, 1000))
        expected = float(np.float32(1.1)) - 1.0
        assert measure("absolute_error", predicted, truth) == pytest.approx(expected, rel=1e-9)


class TestDisparityError:
    def test_is_absolute_error_without_a_unit(self) -> None:
        # |0.5 - 0.25| = 0.25, |1 - 0.25| = 0.75, the third has no truth: mean 0.5
        predicted, truth = np.array([[[0.5, 1.0, 9.0]]]), np.array([[[0.25, 0.25, 0.0]]])
        assert measure("disparity_error", predicted, truth) == 0.5
        assert METRICS["disparity_error"].unit == ""


class TestValueError:
    def test_by_hand(self) -> None:
        # |1 - 0| = 1, |-1 - 1| = 2, the third has no truth: 3 / 2; a truth of 0 counts
        predicted, truth = np.array([[[1.0, -1.0, 9.0]]]), np.array([[[0.0, 1.0, math.nan]]])
        assert measure("value_error", predicted, truth) == 1.5

    def test_of_colours_is_the_mean_over_the_channels(self) -> None:
        # pixel 1: (1 + 0 + 2) / 3 = 1; pixel 2 lacks one component of its truth
        predicted = np.array([[[[1.0, 0, 0], [5, 5, 5]]]])
        truth = np.array([[[[0.0, 0, 2], [0, math.nan, 0]]]], np.float16)
        assert measure("value_error", predicted, truth) == 1.0

    def test_of_no_truth_is_not_a_number(self) -> None:
        assert math.isnan(measure("value_error", np.ones((1, 1, 2)), np.full((1, 1, 2), math.nan)))


class TestComponentError:
    def test_by_hand(self) -> None:
        # (3, 0, 4) / 5 = (0.6, 0, 0.8) against z: (0.6 + 0 + 0.2) / 3; the second has no truth
        predicted = np.array([[[[3.0, 0, 4], [1, 1, 1]]]])
        truth = np.array([[[[0.0, 0, 2], [0, 0, 0]]]])
        assert measure("component_error", predicted, truth) == pytest.approx(0.8 / 3, rel=1e-12)

    def test_of_no_truth_is_not_a_number(self) -> None:
        nothing = np.zeros((1, 1, 2, 3))
        assert math.isnan(measure("component_error", nothing, nothing))


class TestMeanAngle:
    def test_by_hand(self) -> None:
        # z against z: 0; x against z: 90; (0, 1, 1) against z: 45; mean 135 / 3 = 45.
        predicted = np.array([[[[0, 0, 1], [1, 0, 0], [0, 1, 1]]]], np.float32)
        truth = np.array([[[[0, 0, 1], [0, 0, 1], [0, 0, 1]]]], np.float32)
        assert measure("mean_angle", predicted, truth) == pytest.approx(45.0, abs=1e-12)

    @pytest.mark.parametrize("length", [1e-6, 0.5, 30.0])
    def test_the_length_of_a_prediction_does_not_matter(self, length: float) -> None:
        truth = np.array([[[[0.0, 0.0, 1.0]]]])
        predicted = length * np.array([[[[0.0, 1.0, 1.0]]]])
        assert measure("mean_angle", predicted, truth) == pytest.approx(45.0, abs=1e-9)

    def test_a_truth_of_zero_does_not_count(self) -> None:
        truth = np.array([[[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
        predicted = np.array([[[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]])
        assert measure("mean_angle", predicted, truth) == pytest.approx(90.0)

    def test_a_truth_with_one_zero_coordinate_counts(self) -> None:
        truth = np.array([[[[0.0, -1.0, 0.0]]]])
        assert measure("mean_angle", -truth, truth) == pytest.approx(180.0)

    def test_a_prediction_of_zero_counts_as_a_right_angle(self) -> None:
        truth = np.array([[[[0.0, 0.0, 1.0]]]])
        assert measure("mean_angle", np.zeros((1, 1, 1, 3)), truth) == pytest.approx(90.0)

    @pytest.mark.parametrize("radians", [1e-7, math.pi - 1e-7])
    def test_stays_accurate_near_0_and_180_degrees(self, radians: float) -> None:
        truth = np.array([[[[1.0, 0.0, 0.0]]]])
        predicted = np.array([[[[math.cos(radians), math.sin(radians), 0.0]]]])
        found = math.radians(measure("mean_angle", predicted, truth))
        assert found == pytest.approx(radians, abs=1e-15, rel=0)


class TestUnit:
    def test_gives_vectors_of_length_one(self) -> None:
        # (3, 0, 4) has length 5.
        np.testing.assert_allclose(unit(np.array([3, 0, 4], np.float32)), [0.6, 0.0, 0.8])

    def test_keeps_the_zero_vector(self) -> None:
        np.testing.assert_array_equal(unit(np.zeros((2, 3), np.float32)), np.zeros((2, 3)))


# seg 0.6 of 0.8 is a ratio of 0.75, a change of -0.25;
# depth 0.2 m where the expert has 0.1 m is a ratio of 0.5, a change of -1.
MEASURED = {"seg": 0.6, "depth": 0.2}
BASELINE = {"depth": 0.1, "seg": 0.8}
METRIC_OF = {"seg": HIGHER, "depth": LOWER}


class TestEquationsByHand:
    def test_normalised_performance_is_the_mean_of_the_ratios(self) -> None:
        # (0.75 + 0.5) / 2
        found = normalised_performance(MEASURED, BASELINE, METRIC_OF)
        assert found == pytest.approx(0.625)

    def test_relative_drop_is_the_mean_of_the_changes(self) -> None:
        # (-0.25 - 1) / 2
        found = relative_drop(MEASURED, BASELINE, METRIC_OF)
        assert found == pytest.approx(-0.625)

    def test_a_model_as_good_as_the_baseline_has_one_and_no_drop(self) -> None:
        same = (BASELINE, BASELINE, METRIC_OF)
        assert (normalised_performance(*same), relative_drop(*same)) == (1.0, 0.0)

    def test_a_baseline_of_zero_gives_infinity(self) -> None:
        values = ({"seg": 0.5}, {"seg": 0.0}, {"seg": HIGHER})
        assert (normalised_performance(*values), relative_drop(*values)) == (math.inf, math.inf)

    def test_zero_over_zero_is_not_a_number(self) -> None:
        assert math.isnan(normalised_performance({"a": 0.0}, {"a": 0.0}, {"a": LOWER}))

    def test_an_unknown_metric_is_refused(self) -> None:
        with pytest.raises(UnknownNameError):
            relative_drop({"seg": 1.0}, {"seg": 1.0}, {"seg": "accuracy"})


# Table -> the direction of each column.  Taskonomy's five are all errors, its columns 2, 3 and 4
# those of normals, edges and keypoints.
COLUMNS = {
    "Table1_NYUv2": (HIGHER, "absolute_error", "mean_angle"),
    "Table2_Cityscapes": (HIGHER, HIGHER, LOWER),
    "Table3_Taskonomy": (LOWER,) * 5,
}
PAPER = json.loads((Path(__file__).parent / "paper-tables.json").read_text(encoding="utf-8"))
ROWS = [(table, row) for table, rows in PAPER.items() for row in rows]

# Cells whose printed percentage is more than 0.1 points from that of the printed metric values.
# (table, row, column) -> (printed, recomputed, why)
WRONG_CELLS = {
    ("Table2_Cityscapes", "TA + repr", 2): (96.7, 97.14, "0.0102 is rounded by up to 0.5 %"),
    ("Table2_Cityscapes", "TIES + head", 2): (99.4, 99.03, "0.0102 is rounded by up to 0.5 %"),
    ("Table3_Taskonomy", "Task Arithmetic", 2): (25.6, 15.58, "misprint: .0696/.4467 is 15.6 %"),
    ("Table3_Taskonomy", "TA + repr", 3): (68.3, 63.32, "misprint: .0126/.0199 is 63.3 %"),
    ("Table3_Taskonomy", "TIES + head", 4): (100.3, 103.33, "misprint: .0062/.0060 is 103.3 %"),
}
# Rows whose printed mean is more than 0.1 points from equation 1.
WRONG_MEANS = {
    ("Table2_Cityscapes", "MTL"): (-3.7, -3.55, "no rounding of equation 1; equation 2 is -3.66"),
    ("Table2_Cityscapes", "TIES"): (-26.1, -25.95, "the printed cells give -26.0"),
    ("Table2_Cityscapes", "TA + repr"): (-4.5, -4.31, "follows from the 96.7 above"),
    ("Table3_Taskonomy", "Task Arithmetic"): (-83.3, -85.27, "follows from the 25.6 above"),
    ("Table3_Taskonomy", "TA + repr"): (-21.1, -22.12, "follows from the 68.3 above"),
    ("Table3_Taskonomy", "TIES + head"): (-31.1, -30.48, "follows from the 100.3 above"),
}
PRINTED = 0.1  # percentage points: the tables have one decimal, made from rounded metric values
RECOMPUTED = 0.002  # percentage points, relative to 100 %: the file has four decimals


def paper_row(table: str, row: str) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Turn percentages back to metric values over baselines of 0.2, 0.3, ...; equations cancel."""
    metrics = {str(column): metric for column, metric in enumerate(COLUMNS[table])}
    baseline = {column: 0.2 + 0.1 * int(column) for column in metrics}
    ratios = {column: PAPER[table][row]["pct"][int(column)] / 100 for column in metrics}
    measured = {
        column: baseline[column] / ratio if metric != HIGHER else baseline[column] * ratio
        for (column, metric), ratio in zip(metrics.items(), ratios.values(), strict=True)
    }
    return measured, baseline, metrics


def test_the_paper_has_22_rows() -> None:
    assert len(ROWS) == 7 + 7 + 8


@pytest.mark.parametrize(("table", "row"), ROWS)
class TestEveryRowOfThePaper:
    def test_equation_1_gives_the_recomputed_mean(self, table: str, row: str) -> None:
        found = 100 * normalised_performance(*paper_row(table, row))
        assert found == pytest.approx(PAPER[table][row]["mean_norm"], abs=RECOMPUTED)

    def test_equation_2_gives_the_recomputed_drop(self, table: str, row: str) -> None:
        found = 100 * relative_drop(*paper_row(table, row))
        # an inverse ratio of 20 magnifies the rounding of its percentage by 20 * 20
        assert found == pytest.approx(PAPER[table][row]["delta_eq2"], abs=RECOMPUTED, rel=2e-5)

    def test_equation_1_gives_the_printed_mean(self, table: str, row: str) -> None:
        found = 100 * normalised_performance(*paper_row(table, row)) - 100
        printed = PAPER[table][row]["printed_delta"]
        if (table, row) in WRONG_MEANS:
            assert (printed, round(found, 2)) == WRONG_MEANS[table, row][:2]
        else:
            assert found == pytest.approx(printed, abs=PRINTED)

    def test_each_ratio_is_the_printed_percentage(self, table: str, row: str) -> None:
        measured, baseline, metrics = paper_row(table, row)
        for column, printed in enumerate(PAPER[table][row]["printed_pct"]):
            key = str(column)
            one = ({key: measured[key]}, {key: baseline[key]}, {key: metrics[key]})
            found = 100 * normalised_performance(*one)
            if (table, row, column) in WRONG_CELLS:
                assert (printed, round(found, 2)) == WRONG_CELLS[table, row, column][:2]
            else:
                assert found == pytest.approx(printed, abs=PRINTED)


@pytest.mark.parametrize("table", PAPER)
def test_equation_2_weighs_an_exploded_task_more_than_equation_1(table: str) -> None:
    values = paper_row(table, "Task Arithmetic")
    assert relative_drop(*values) < normalised_performance(*values) - 1
