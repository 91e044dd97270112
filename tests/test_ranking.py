"""How well proxies choose: correlation and regret by hand, and the proxies of a small study."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simo_bench.ranking import SELECT, rank, read_study, regret, spearman, table
from simo_bench.study import Entry, run
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_build.proxies import PROXIES
from simo_runtime.errors import DataError
from tests.tiny import write_workplace

# Spearman


def by_counting(one: list[float], other: list[float]) -> float:
    """Pearson's correlation of ranks, each rank counted: 1 + smaller ones + half the equals."""

    def ranks(values: list[float]) -> list[float]:
        return [
            1 + sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2
            for value in values
        ]

    a, b = ranks(one), ranks(other)
    middle = (len(a) + 1) / 2
    shared = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    spread = [math.sqrt(sum((x - middle) ** 2 for x in side)) for side in (a, b)]
    return shared / (spread[0] * spread[1])


def test_spearman_by_hand() -> None:
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * (1 + 1 + 1 + 1) / (4 * 15) = 0.6
    assert spearman([0.1, 0.2, 0.3, 0.4], [5, 1, 90, 80]) == pytest.approx(0.6)


def test_spearman_does_not_see_how_far_apart_values_are() -> None:
    assert spearman([1, 2, 3], [0, 1, 1e9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, -1e9]) == pytest.approx(-1.0)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_with_ties_is_that_of_counted_ranks(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = (draw.integers(0, 4, 12).astype(float).tolist() for _ in range(2))
    assert spearman(one, other) == pytest.approx(by_counting(one, other))


def test_a_score_that_is_no_number_is_the_least() -> None:
    assert spearman([math.nan, 1, 2], [0, 1, 2]) == pytest.approx(1.0)


@pytest.mark.parametrize(("one", "other"), [([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1], [1])])
def test_what_does_not_vary_has_no_correlation(one: list[float], other: list[float]) -> None:
    assert spearman(one, other) is None


# Regret


def test_regret_by_hand() -> None:
    # the highest score is that of 0.85, the best is 0.9: five points off
    assert regret([0.1, 0.7, 0.3], [0.9, 0.85, 0.2]) == pytest.approx(5.0)
    assert regret([0.8, 0.7, 0.3], [0.9, 0.85, 0.2]) == 0.0


def test_a_candidate_without_a_score_is_not_chosen() -> None:
    assert regret([math.nan, 0.1], [0.5, 0.9]) == 0.0
    assert regret([0.2, 0.1], [math.nan, 0.9]) == pytest.approx(90.0)


# The report


def row(name: str, merged: float, realigned: float | None, score: float) -> dict[str, Any]:
    return {
        "name": name,
        "merged": {"normalised_performance": merged},
        "realigned": None if realigned is None else {"normalised_performance": realigned},
        "proxies": {"cosine": score},
        "seconds": {"select": 4.0, "proxies": {"cosine": 2.0}}
        | ({} if realigned is None else {"realign": 10.0}),
    }


def study() -> dict[str, Any]:
    return {
        "schema": "simo.study/1",
        "recipe": "tiny",
        "commit": "abc",
        "versions": {"torch": "2.14.1"},
        "inputs": {},
        "machine": "a machine",
        "unlabelled": 4,
        "candidates": [
            row("one", 0.5, 0.90, 0.1),
            row("one", 0.8, 0.95, 0.2),
            row("one", 0.7, 0.92, 0.3),
            row("two", 0.6, None, 0.5),
            row("two", 0.4, 0.70, 0.4),
            {"name": "a reference, which no proxy has seen", "merged": {}, "seconds": 1.0},
        ],
    }


def test_the_report_by_hand() -> None:
    found = rank(study())
    assert (found["methods"], found["unlabelled"]) == (2, 4)
    merged, realigned = (found["proxies"]["cosine"][kind] for kind in ("merged", "realigned"))
    # scores rank 1 2 3 5 4, performance 2 5 4 3 1: 1 - 6 * (1 + 9 + 1 + 4 + 9) / (5 * 24) = -0.2;
    # chosen is 0.6 in place of 0.8. Within: 1 2 3 on 1 3 2 is 0.5, and 1; 0.7 for 0.8, and right.
    assert merged["candidates"] == 5
    assert merged["spearman"] == pytest.approx(-0.2)
    assert merged["regret"] == pytest.approx(20.0)
    assert merged["spearman_within"] == pytest.approx(0.75)
    assert merged["regret_within"] == pytest.approx(5.0)
    # of the four that were re-aligned: 1 2 3 4 on 2 4 3 1, -0.4; 0.70 in place of 0.95. Within
    # `one` alone, since `two` has one candidate left: 1 2 3 on 1 3 2, 0.92 for 0.95
    assert (realigned["candidates"], realigned["methods"]) == (4, 1)
    assert realigned["spearman"] == pytest.approx(-0.4)
    assert realigned["regret"] == pytest.approx(25.0)
    assert realigned["spearman_within"] == pytest.approx(0.5)
    assert realigned["regret_within"] == pytest.approx(3.0)
    # 4 seconds against 2, and 10 + 4 against 2
    assert found["proxies"]["cosine"]["faster"] == {"merged": 2.0, "realigned": 7.0}


def test_measuring_on_select_is_its_own_best_choice() -> None:
    found = rank(study())["proxies"][SELECT]
    assert found["merged"]["spearman"] == pytest.approx(1.0)
    assert found["merged"]["regret"] == 0.0
    assert found["faster"] == {"merged": 1.0, "realigned": 3.5}


def test_the_table_has_a_line_a_proxy_for_both_kinds_of_heads() -> None:
    lines = table(rank(study())).splitlines()
    assert "| `cosine` | -0.200 | 20.00 points | +0.750 | 5.00 points | 2.0 |" in lines
    assert "| `cosine` | -0.400 | 25.00 points | +0.500 | 3.00 points | 7.0 |" in lines
    assert sum(line.startswith(f"| `{SELECT}`") for line in lines) == 2


def test_a_study_without_re_alignment_has_none_to_show() -> None:
    given = study()
    for one in given["candidates"][:5]:
        one["realigned"] = None
        one["seconds"].pop("realign", None)
    found = rank(given)
    assert found["proxies"]["cosine"]["realigned"]["spearman"] is None
    assert "| `cosine` | - | - | - | - | - |" in table(found)


# The study and the command


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("study")
    loaded = load_recipe(str(write_workplace(folder)))
    entries = [
        Entry(method="task_arithmetic", params={}, grid={"alpha": [0.2, 0.5, 1.0]}, realign="all"),
        Entry(method="average", params={}, grid={}),
    ]
    return run(loaded, entries, "select", folder / ".stages", progress=Silent())


def test_every_candidate_of_a_study_has_the_scores_of_all_proxies_and_their_times(
    measured: dict[str, Any],
) -> None:
    assert measured["unlabelled"] == 4
    assert len(measured["candidates"]) == 4
    for one in measured["candidates"]:
        assert set(one["proxies"]) == set(one["seconds"]["proxies"]) == set(PROXIES)
        assert all(seconds > 0 for seconds in one["seconds"]["proxies"].values())
        assert one["proxies"]["cosine"] == min(one["similarities"]["cosine"].values())


def test_the_command_reads_a_study_and_writes_json(
    measured: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(measured))
    told = ranking(tmp_path / "study.json", "--json", tmp_path / "ranking.json")
    assert told.returncode == 0, told.stderr
    assert "heads as they are: 4 candidates, 1 methods" in told.stdout
    report = json.loads((tmp_path / "ranking.json").read_text())
    assert set(report["proxies"]) == {SELECT, *PROXIES}
    assert report["command"] == "python -m simo_bench.ranking study.json"


def ranking(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simo_bench.ranking", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"study\.json: cannot be read as JSON"),
        ("[1]", r"its schema is None, not 'simo\.study/1'"),
        ('{"schema": "simo.eval/1"}', r"its schema is 'simo\.eval/1'"),
        (
            '{"schema": "simo.study/1", "candidates": [{"name": "ties"}]}',
            r"no candidate has proxies; run the study again",
        ),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path / "study.json")
