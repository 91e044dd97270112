"""The study of ways of re-alignment: its list of rows, and what it says of them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simo_bench.kept import Earlier
from simo_bench.realignments import ROWS_FILE, chosen, limited, read_entries, run, table_of
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_runtime.errors import SimoError
from tests.tiny import SPLITS, write_recipe, write_workplace

QUICK = {"epochs": 1, "lr": 1e-3, "batch": 3}
ROWS: list[dict[str, Any]] = [
    {"name": "alone", "merge": {"method": "task_arithmetic", "choose": {"alpha": [0.5, 5.0]}}},
    {"name": "base", "start": "base", "realign": [{"step": "head", **QUICK}]},
    {
        "name": "taught",
        "merge": {"params": {"alpha": 0.5}},
        "realign": [{"step": "distill", "views": 1, **QUICK}],
        "seeds": 2,
        "against": ["alone"],
    },
    {"name": "joint", "joint": "realign", "epochs": 2, "seeds": 2},
]


def written(folder: Path, rows: object) -> Path:
    path = folder / "rows.yaml"
    path.write_text(yaml.safe_dump(rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    phases = {"batch": 3, "head": {"epochs": 1, "lr": 1e-3}, "full": {"epochs": 1, "lr": 1e-3}}
    return write_recipe(folder, train=phases).parent


def again(
    place: Path, rows: list[dict[str, Any]], only: list[str], *earlier: Earlier
) -> dict[str, Any]:
    loaded = load_recipe(str(place / "tiny.yaml"), experts=place / "experts")
    every = read_entries(written(place, rows))
    entries = chosen(every, only, place)
    stages = place / ".stages"
    return run(loaded, every, entries, "test", stages, progress=Silent(), earlier=earlier)


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    return again(place, ROWS, [])


def test_every_row_is_measured_on_the_split_that_was_asked_for(found: dict[str, Any]) -> None:
    assert [row["row"] for row in found["rows"]] == [row["name"] for row in ROWS]
    assert (found["split"], found["images"]) == ("test", SPLITS["test"])


def test_a_row_is_the_mean_of_its_seeds(found: dict[str, Any]) -> None:
    row = found["rows"][2]
    scores = [seed["normalised_performance"] for seed in row["seeds"]]
    assert len(set(scores)) == 2  # other seeds, other batches
    assert row["normalised_performance"] == pytest.approx(sum(scores) / 2)
    low, high = row["interval"]["normalised_performance"]
    assert low <= row["normalised_performance"] <= high


def test_rows_say_which_images_and_labels_they_have_seen(found: dict[str, Any]) -> None:
    both = {"realign": SPLITS["realign"], "select": SPLITS["select"]}
    alone, base, taught, joint = found["rows"]
    assert alone["images"] == alone["labels"] == {"select": SPLITS["select"]}  # to choose alpha
    assert (alone["params"], taught["params"]) == ({"alpha": 0.5}, {"alpha": 0.5})
    assert base["params"] is joint["params"] is None
    assert base["images"] == base["labels"] == both
    assert (taught["images"], taught["labels"]) == (both, {"select": SPLITS["select"]})
    assert joint["images"] == joint["labels"] == both
    assert found["experts_took"] == {"images": {}, "labels": {}, "steps": None, "seconds": {}}
    assert taught["steps"] == 4  # 6 images and their mirror images in batches of 3


def test_joint_training_has_seeds_and_a_length_of_its_own(found: dict[str, Any]) -> None:
    joint = found["rows"][3]
    assert len({seed["normalised_performance"] for seed in joint["seeds"]}) == 2
    heads, together = 2 * 2, 2 * 2  # two batches: of two heads once, of all together twice
    assert joint["steps"] == heads + together


def test_a_comparison_is_the_difference_of_two_rows(found: dict[str, Any]) -> None:
    (one,) = found["comparisons"]
    alone, _, taught, _ = (row["normalised_performance"] for row in found["rows"])
    assert (one["row"], one["against"]) == ("taught", "alone")
    assert one["normalised_performance"] == pytest.approx(taught - alone)


def test_the_table_has_a_line_for_every_row(found: dict[str, Any]) -> None:
    lines = table_of(found).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert lines[4].startswith("| taught | 6 realign, 3 select | 3 select | 4 |")


def test_the_list_that_comes_with_the_project_can_be_read() -> None:
    assert len(read_entries(ROWS_FILE)) > 5


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"name": "a"}, {"name": "a"}], "'a' stands twice"),
        ([{"name": "abc", "against": ["abd"]}], "abd.*did you mean 'abc'"),
        ([{"name": "a", "joint": "train", "start": "base"}], "start has no meaning beside joint"),
        ([{"name": "a", "epochs": 2}], "epochs is how long joint training takes"),
        ([{"name": "a", "joint": "test"}], "joint"),
        ([{"nam": "a"}], "nam"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, rows: object, told: str) -> None:
    with pytest.raises(SimoError, match=told):
        read_entries(written(tmp_path, rows))


def test_rows_are_asked_for_by_name(tmp_path: Path) -> None:
    entries = read_entries(written(tmp_path, ROWS))
    assert [one.name for one in chosen(entries, ["joint"], tmp_path)] == ["joint"]
    assert chosen(entries, [], tmp_path) == entries
    with pytest.raises(SimoError, match="did you mean 'joint'"):
        chosen(entries, ["jount"], tmp_path)


def test_a_shorter_run_has_fewer_seeds(tmp_path: Path) -> None:
    entries = read_entries(written(tmp_path, ROWS))
    assert [one.seeds for one in limited(entries, None)] == [1, 1, 2, 2]
    assert [one.seeds for one in limited(entries, 1)] == [1, 1, 1, 1]


def test_rows_of_an_earlier_report_stay_in_the_order_of_the_list(
    place: Path, found: dict[str, Any]
) -> None:
    earlier = Earlier(place / "earlier.json", {**found, "commit": "abc"})
    both = again(place, ROWS, ["base"], earlier)
    assert [row["row"] for row in both["rows"]] == [row["name"] for row in ROWS]
    assert both["comparisons"] == found["comparisons"]
    one, two = (
        Earlier(place, {**found, "rows": [found["rows"][index]], "comparisons": []})
        for index in (3, 0)
    )
    rows = again(place, ROWS, ["base"], one, two)["rows"]
    assert [row["row"] for row in rows] == ["alone", "base", "joint"]
    without = {**found["rows"][0]}
    del without["commit"]  # reports of before rows had one
    earlier = Earlier(place / "earlier.json", {**found, "commit": "abc", "rows": [without]})
    alone, base = again(place, ROWS, ["base"], earlier)["rows"]
    assert (alone["commit"], base["commit"]) == ("abc", found["commit"])


def test_a_comparison_with_a_row_that_is_built_anew_goes(
    place: Path, found: dict[str, Any]
) -> None:
    assert not again(place, ROWS, ["alone"], Earlier(place, found))["comparisons"]


def test_rows_of_other_inputs_or_settings_do_not_stay(place: Path, found: dict[str, Any]) -> None:
    with pytest.raises(SimoError, match="inputs is not the same"):
        again(place, ROWS, ["alone"], Earlier(place, {**found, "inputs": {}}))
    longer = [{**row, "epochs": 3} if row["name"] == "joint" else row for row in ROWS]
    with pytest.raises(SimoError, match=r"asks for otherwise\n.*joint\n.*--only"):
        again(place, longer, ["alone"], Earlier(place, found))
    with pytest.raises(SimoError, match="has no more"):
        again(place, ROWS[:3], ["alone"], Earlier(place, found))


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text, told in (("{", "cannot be read as JSON"), ("[]", "not a report")):
        path.write_text(text)
        with pytest.raises(SimoError, match=told):
            Earlier.read(path)
