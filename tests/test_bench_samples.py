"""Every statistic of simo-bench against a case computed by hand."""

import pytest

from simo_bench.samples import (
    Ratio,
    disturbed,
    drift,
    interval,
    paired,
    ratio_of,
    spread,
    summary,
    unsteady,
)


def test_the_summary_of_0_to_100_by_hand() -> None:
    # 101 numbers from 0 to 100: the mean is 50, percentile p is p itself; the sample variance of
    # 0 .. n - 1 is n (n + 1) / 12 = 101 * 102 / 12 = 858.5
    found = summary([list(range(51)), list(range(51, 101))])
    assert (found.count, found.mean, found.least, found.most) == (101, 50.0, 0.0, 100.0)
    assert (found.p50, found.p90, found.p95, found.p99) == (50.0, 90.0, 95.0, 99.0)
    assert found.std == pytest.approx(858.5**0.5)
    assert found.cv == pytest.approx(858.5**0.5 / 50)


def test_a_percentile_between_two_samples_is_interpolated() -> None:
    # ten samples: the 90th percentile lies at 0.9 * 9 = 8.1, between 8 and 9
    assert summary([list(range(10))]).p90 == pytest.approx(8.1)


@pytest.mark.parametrize(("count", "there"), [(9, 0), (10, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_a_percentile_needs_a_sample_beyond_it(count: int, there: int) -> None:
    found = summary([[1.0] * count])
    assert [found.p90, found.p95, found.p99] == [1.0] * there + [None] * (3 - there)


def test_the_spread_is_median_and_percentiles() -> None:
    # 0 .. 100: the median is 50, the 5th and 95th percentile are 5 and 95
    found = spread(list(range(101)))
    assert (found.count, found.median, found.p05, found.p95) == (101, 50.0, 5.0, 95.0)


def test_one_sample_has_no_spread() -> None:
    assert (summary([[2.0]]).std, summary([[2.0]]).cv) == (0.0, 0.0)


def test_ratios_are_formed_round_by_round() -> None:
    assert paired([[6.0, 8.0], [3.0]], [[2.0, 4.0], [1.0]]) == [[3.0, 2.0], [3.0]]


def test_arms_with_other_numbers_of_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired([[1.0, 2.0]], [[1.0]])


def test_a_machine_that_slows_down_does_not_change_a_paired_ratio() -> None:
    found = ratio_of([[3.0, 30.0, 300.0]], [[1.0, 10.0, 100.0]])
    assert found == Ratio(median=3.0, low=3.0, high=3.0, count=3, processes=1)


def test_the_interval_of_three_samples_by_hand() -> None:
    # Of 27 draws of three out of 1, 2, 3 with replacement, 7 have the median 1, 13 have 2 and 7
    # have 3: 26 % lie at either end, so that 2.5 and 97.5 % are the ends themselves.
    assert interval([[1.0, 2.0, 3.0]]) == (1.0, 3.0)


def test_the_interval_knows_that_processes_differ() -> None:
    # Within a process all rounds agree. Two draws out of {1, 3}: both 1 (a quarter), both 3 (a
    # quarter), or one of each, whose median is 2.
    assert interval([[1.0] * 5, [3.0] * 5]) == (1.0, 3.0)


def test_a_short_process_gives_as_many_rounds_as_it_has() -> None:
    # One round of 5 and nine of 1: whoever draws the short process twice gets 5, else 1.
    assert interval([[5.0], [1.0] * 9]) == (1.0, 5.0)
    assert interval([[5.0], [5.0] * 9]) == (5.0, 5.0)


def test_the_interval_of_a_single_outlier_leaves_it_out() -> None:
    # With 1 of 41 rounds at 100, the median of a draw is 100 only if it came 21 times of 41.
    assert interval([[2.0] * 40 + [100.0]]) == (2.0, 2.0)


def test_the_interval_is_the_same_every_time() -> None:
    groups = [[1.0, 1.5, 2.0, 2.5], [1.2, 1.7]]
    assert interval(groups) == interval(groups)


@pytest.mark.parametrize(("high", "wide"), [(3.07, False), (3.12, True)])
def test_an_interval_is_wide_from_3_percent_to_a_side(high: float, wide: bool) -> None:
    # from 2.9 to high: (high - 2.9) / 2 against 0.03 * 3 = 0.09
    assert Ratio(median=3.0, low=2.9, high=high, count=9, processes=3).wide is wide


def test_drift_compares_the_medians_of_the_halves() -> None:
    # medians 1 and 1.2
    assert drift([1, 1, 1, 9, 1.2, 1.2, 1.2, 0]) == pytest.approx(0.2)
    assert drift([1.0, 2.0]) == 0.0


def test_steady_times_are_steady() -> None:
    assert unsteady([[1.0, 1.01] * 10] * 3, device="cpu") == []


def test_the_spread_a_gpu_may_not_have_is_nothing_to_a_cpu() -> None:
    times = [[1.0, 1.1] * 10]  # mean 1.05, standard deviation 0.0513: 4.9 %
    assert unsteady(times, device="cpu") == []
    assert unsteady(times, device="gpu") == ["spread 5%, at most 2.5%"]


def test_drift_and_processes_apart_are_said() -> None:
    slower = [1.0] * 8 + [1.08] * 8
    assert unsteady([slower], device="cpu") == ["drift 8% within a process, at most 5%"]
    apart = [[1.0] * 9, [1.12] * 9]
    assert unsteady(apart, device="cpu") == ["processes 12% apart, at most 10%"]


def test_other_load_and_throttling_are_said() -> None:
    assert disturbed([0.01, None, 0.04], throttled=False) == []
    assert disturbed([0.01, 0.3], throttled=True) == [
        "other programs used 30% of the CPUs, at most 5%",
        "the clock was throttled",
    ]
