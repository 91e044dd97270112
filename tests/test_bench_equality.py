"""No latency for wrong answers: the comparison of an arm's outputs with its reference."""

import numpy as np
import pytest

from simo_bench.equality import compare


def test_equal_outputs_pass() -> None:
    outputs = {"seg": np.array([[1, 2]], np.uint8), "depth": np.array([[1.0, 2.0]], np.float32)}
    rows = compare(outputs, outputs, "fp32")
    assert [(row.task, row.measure, row.found) for row in rows] == [
        ("seg", "equal pixels", 1.0),
        ("depth", "cosine", pytest.approx(1.0)),
    ]
    assert all(row.passed for row in rows)


def test_a_cosine_by_hand() -> None:
    # (1, 0) and (1, 1): 1 / sqrt 2
    (row,) = compare({"d": np.array([1.0, 1.0])}, {"d": np.array([1.0, 0.0])}, "fp16")
    assert row.found == pytest.approx(0.5**0.5)
    assert not row.passed


@pytest.mark.parametrize(("precision", "wrong", "passed"), [
    ("fp32", 1, True), ("fp32", 2, False), ("fp16", 10, True), ("int8", 101, False),
])  # fmt: skip
def test_so_many_of_a_thousand_pixels_may_be_of_another_class(
    precision: str, wrong: int, passed: bool
) -> None:
    wanted = np.zeros(1000, np.uint8)
    found = wanted.copy()
    found[:wrong] = 1
    (row,) = compare({"seg": found}, {"seg": wanted}, precision)
    assert row.found == pytest.approx(1 - wrong / 1000)
    assert row.passed is passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    found = np.array([1.0, value], np.float32)
    (row,) = compare({"d": found}, {"d": np.array([1.0, 1.0], np.float32)}, "fp16")
    assert not row.finite
    assert not row.passed


def test_a_missing_output_and_another_shape_fail() -> None:
    wanted = {"d": np.ones((1, 2), np.float32)}
    assert not compare({}, wanted, "fp16")[0].passed
    assert not compare({"d": np.ones((2, 1), np.float32)}, wanted, "fp16")[0].passed
