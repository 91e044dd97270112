"""The project's own benchmarks: results compared, the generated page, commands that run them."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simo_bench import check, pictures, readme, suite
from simo_bench.devices import device_named
from simo_bench.latency import Options
from simo_bench.measured import Measured, changes, measured
from simo_runtime.errors import DataError, UnknownNameError


def ratio(value: float, low: float, high: float, **more: Any) -> Measured:
    return Measured(
        name=more.pop("name", "r"), sentence="it is {} times", value=value, low=low, high=high,
        higher_is_better=more.pop("higher", True), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (ratio(2.8, 2.7, 2.89), "slower"),  # wholly under 2.9 to 3.1
        (ratio(2.8, 2.7, 2.95), "same"),  # the intervals meet
        (ratio(3.3, 3.2, 3.4), "faster"),
        (ratio(2.0, 1.9, 2.1, unstable=True), "unsure"),
        (ratio(3.0, 2.9, 3.1, name="another"), "gone"),
    ],
)
def test_only_what_lies_outside_both_intervals_is_slower(after: Measured, word: str) -> None:
    assert [one for one, _ in changes([ratio(3.0, 2.9, 3.1)], [after])] == [word]


def test_of_a_share_of_a_limit_less_is_better() -> None:
    before = ratio(1.0, 0.9, 1.1, higher=False)
    assert changes([before], [ratio(1.5, 1.4, 1.6, higher=False)])[0][0] == "slower"
    assert changes([before], [ratio(0.5, 0.4, 0.6, higher=False)])[0][0] == "faster"


MERGING: dict[str, Any] = {
    "schema": "simo.merging/1",
    "compared": [
        {
            "method": "ties",
            "ratios": {
                "stage / limit": {"of_medians": 2.0, "paired": [1.9, 2.0, 2.1]},
                "mergekit / command": {"of_medians": 3.0, "paired": [2.9, 3.0, 3.1]},
            },
        }
    ],
}


def test_the_ratios_of_merging_know_which_way_is_better() -> None:
    limit, mergekit = measured(MERGING)
    assert (limit.value, limit.higher_is_better) == (2.0, False)
    assert (mergekit.value, mergekit.higher_is_better) == (3.0, True)
    assert (mergekit.low, mergekit.high) == (2.9, 3.1)


def test_ratios_told_as_spreads_are_found_by_their_place() -> None:
    spread = {"count": 9, "median": 1.5, "p05": 1.4, "p95": 1.6}
    found = measured({"schema": "simo.exports/1", "slower_than_ours": {"torch": spread},
                      "milliseconds": {"ours": spread}})  # fmt: skip
    assert [(one.name, one.value) for one in found] == [("slower than ours torch", 1.5)]
    bars = {
        "memory": {"small": {"joint": {"ratio": spread}}},
        "one-pass": {"small": {"ratio": spread}},
    }
    found = measured({"schema": "simo.bench.runtime/1", "bars": bars})
    assert [one.higher_is_better for one in found] == [False, True]


def test_what_an_adapter_costs_is_better_when_it_is_less() -> None:
    spread = {"count": 9, "median": 1.5, "p05": 1.4, "p95": 1.6}
    slower = {"torch": spread, "optimum": spread, "adapted": spread}
    found = measured({"schema": "simo.exports/1", "slower_than_ours": slower,
                      "faster_in_int8": spread})  # fmt: skip
    worse = {one.name for one in found if not one.higher_is_better}
    assert worse == {"slower than ours adapted"}


def test_a_ratio_is_told_as_a_sentence() -> None:
    _, mergekit = measured(MERGING)
    assert mergekit.told == "ties: mergekit takes 3.00 times as long as simo-merge (2.90 to 3.10)"
    assert ratio(3.0, 3.0, 3.0, unstable=True).told == "it is 3.00 times UNSTABLE"


def test_a_study_of_accuracy_has_no_ratios_of_time() -> None:
    assert measured({"schema": "simo.study/1"}) == []


def written(folder: Path, found: Any, name: str = "merging-vit-base.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(found))
    return folder


def test_the_check_fails_on_what_became_slower(tmp_path: Path) -> None:
    worse = copy.deepcopy(MERGING)
    worse["compared"][0]["ratios"]["mergekit / command"]["paired"] = [1.0, 1.1, 1.2]
    before = written(tmp_path / "before", MERGING)
    told = CliRunner().invoke(
        check.main, [str(written(tmp_path / "after", worse)), "--against", str(before)]
    )
    assert told.exit_code == 1
    assert "merging-vit-base.json: 1 same, 1 slower" in told.output
    assert "slower ties: time of mergekit / command: 3.00 (2.90 to 3.10) before" in told.output
    same = CliRunner().invoke(check.main, [str(before), "--against", str(before)])
    assert same.exit_code == 0
    assert same.output == "merging-vit-base.json: 2 same\n"


def test_folders_without_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make bench"):
        check.compare(tmp_path, tmp_path / "nothing")
    with pytest.raises(DataError, match="no benchmark in common"):
        check.compare(tmp_path, tmp_path)
    with pytest.raises(DataError, match="no schema"):
        check.compare(written(tmp_path / "a", MERGING), written(tmp_path / "b", [1]))


def test_the_committed_page_is_as_the_results_have_it() -> None:
    page = readme.PAGE.read_text(encoding="utf-8")
    assert readme.filled(page) == page, "run python -m simo_bench.readme"


def test_every_result_says_who_on_what_with_what_and_how() -> None:
    for path in check.COMMITTED.glob("*.json"):
        told = readme.section(path.name, check.read(path))
        for word in ("who", "hardware", "versions", "commit", "command"):
            assert f"| {word} | " in told, path


def test_a_result_that_the_page_does_not_know_is_an_error() -> None:
    with pytest.raises(DataError, match=r"x\.json: there is nothing .* 'simo\.other/1'"):
        readme.section("x.json", {"schema": "simo.other/1"})


def test_every_benchmark_gives_commands_with_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite.Place, "_random", lambda place, shape: tmp_path / shape)
    for quick in (True, False):
        place = suite.Place(out=tmp_path / "out", work=tmp_path, quick=quick)
        for name, commands in suite.BENCHES.items():
            for command in commands(place):
                assert "--json" in command, name
    with pytest.raises(UnknownNameError, match="did you mean 'latency'"):
        suite.run(place, ["latncy"], lambda line: None)


def test_a_benchmark_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        suite, "BENCHES", {"a": lambda place: [["false"]], "b": lambda place: [["true"]]}
    )
    told: list[str] = []
    assert suite.run(suite.Place(out=tmp_path, work=tmp_path), ["a", "b"], told.append) == ["a"]
    assert [line.split(":")[0] for line in told] == ["a ...", "a", "b ...", "b"]


@pytest.mark.skipif(os.name != "posix", reason="memory and load are read from /proc")
def test_the_study_over_tasks_goes_on_where_it_was(tmp_path: Path) -> None:
    from simo_bench import curve

    small = ["--shapes", "toy", "--heads", "linear", "--tasks", "2", "--rounds", "2"]
    arguments = [
        *small, "--processes", "1", "--threads", "1", "--work", str(tmp_path / "work"),
        "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png"), "--device", "t4",
    ]  # fmt: skip
    first = CliRunner().invoke(curve.main, arguments)
    assert first.exit_code == 0, first.output
    assert "toy-linear-2: 1 of 2 tasks" in first.stderr
    assert "| a toy at 32 x 48, linear heads | 2 |" in first.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    rows = curve.rows_of(found["curves"][0])
    assert [row["tasks"] for row in rows] == [1, 2]
    assert rows[0]["ideal"] == pytest.approx(1.0)
    assert set(rows[1]["ms"]) == {"joint", "sequential", "concurrent"}
    assert len(measured(found)) == 4
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert "tasks" not in CliRunner().invoke(curve.main, arguments).stderr
    kept = tmp_path / "work" / "toy-linear-2-of-1-onnxruntime-cpu.json"
    same = {"rounds": 2, "processes": 1, "threads": 1, "arms": curve.ARMS, "batches": ()}
    assert curve._kept(kept, Options(**same)) is not None
    assert curve._kept(kept, Options(**{**same, "threads": 2})) is None
    other = device_named("a100", threads=1)
    assert curve._kept(kept, Options(**same, device=other)) is None


def test_the_pictures_of_results_are_those_that_the_page_shows(tmp_path: Path) -> None:
    made = pictures.draw(tmp_path)
    page = (pictures.FOLDER.parent / "results.md").read_text(encoding="utf-8")
    for path in made:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert (pictures.FOLDER / path.name).is_file()
        assert f"(images/{path.name})" in page
