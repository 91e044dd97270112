"""simo-scaling: subsets of experts, each merged and measured on its own tasks, kept, and drawn."""

import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from matplotlib.colors import to_hex

from simo_build.build import realign
from simo_build.cli import scaling_command
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.plots import COLOURS, draw_scaling
from simo_build.progress import Silent
from simo_build.scaling import by_count, scaling, spread, subsets, table
from simo_build.workshop import against, measure_experts
from simo_runtime.errors import SimoError
from tests.commands import invoked, report_in
from tests.tiny import opened, write_recipe, write_workplace

FOUR = ("a", "b", "c", "d")
STEP = {"step": "tint", "epochs": 1, "lr": 3e-2, "batch": 3}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaling")
    write_workplace(folder)
    write_recipe(folder, realign=[STEP])
    return folder


def measured(workplace: Path, **changes: Any) -> dict[str, Any]:
    given = {"most": 32, "seed": 0, "realigned": True, **changes}
    loaded = load_recipe(str(workplace / "tiny.yaml"))
    return scaling(loaded, workplace / "kept", progress=Silent(), **given)


@pytest.fixture(scope="module")
def found(workplace: Path) -> dict[str, Any]:
    return measured(workplace)


# Subsets


def test_all_subsets_are_taken_where_they_are_few() -> None:
    every = list(subsets(FOUR, 6, 0))
    assert len(every) == len(set(every)) == 2**4 - 1
    assert [len(one) for one in every] == [1] * 4 + [2] * 6 + [3] * 4 + [4]
    assert all(list(one) == sorted(one) for one in every)


def test_of_many_subsets_some_are_drawn() -> None:
    tasks = [f"t{index:02d}" for index in range(40)]
    drawn = list(subsets(tasks, 5, 0))
    assert len(drawn) == len(set(drawn)) == 5 * 39 + 1
    assert all(list(one) == sorted(one) for one in drawn)
    assert drawn == list(subsets(tasks, 5, 0))
    assert drawn != list(subsets(tasks, 5, 1))
    assert set(drawn) < set(subsets(tasks, 7, 0))


# What is measured


def test_every_subset_has_its_row(found: dict[str, Any]) -> None:
    assert [row["tasks"] for row in found["rows"]] == [["depth"], ["normals"], ["depth", "normals"]]
    assert all(set(row["merged"]["metrics"]) == set(row["tasks"]) for row in found["rows"])


def test_all_of_the_experts_are_what_a_build_merges_and_re_aligns(
    found: dict[str, Any], workplace: Path
) -> None:
    work = opened(workplace / "tiny.yaml")
    merged = merge(work)
    row, best = found["rows"][-1], max(merged.log["tried"], key=lambda one: one["score"])
    assert row["params"] == merged.log["params"]
    assert row["merged"]["metrics"] == pytest.approx(best["metrics"])
    assert row["realigned"]["metrics"] == pytest.approx(realign(work, merged).log["metrics"])


def test_a_subset_is_merged_as_a_recipe_of_these_tasks_alone(
    found: dict[str, Any], workplace: Path, tmp_path: Path
) -> None:
    for name in ("data", "base.safetensors", "depth.safetensors"):
        (tmp_path / name).symlink_to(workplace / name)
    work = opened(write_recipe(tmp_path, ("depth",), realign=[STEP]))
    merged = merge(work)
    aligned = realign(work, merged)
    row = found["rows"][0]
    assert row["params"] == merged.log["params"]
    for stage, metrics in (
        ("merged", max(merged.log["tried"], key=lambda one: one["score"])["metrics"]),
        ("realigned", aligned.log["metrics"]),
    ):
        assert row[stage]["metrics"] == pytest.approx(metrics)
        expected = against(work, metrics, measure_experts(work, work.samples["select"]))
        assert row[stage]["normalised_performance"] == pytest.approx(
            expected["normalised_performance"]
        )


def test_what_was_done_is_kept(found: dict[str, Any], workplace: Path) -> None:
    # the experts; and of three subsets the merge, the re-alignment and two measurements
    before = {path: path.stat().st_mtime_ns for path in (workplace / "kept").iterdir()}
    assert len(before) == 1 + 3 * 4
    assert measured(workplace)["rows"] == found["rows"]
    assert {path: path.stat().st_mtime_ns for path in (workplace / "kept").iterdir()} == before
    without = measured(workplace, realigned=False)
    assert [set(row) for row in without["rows"]] == [{"tasks", "params", "merged"}] * 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"realign": []}, "`realign` has no steps; give some, or leave --realign out"),
        ({"base": "random(0)", "merge": {}, "realign": []}, "it has no accuracy"),
        ({"merge": {"method": "tis"}}, "did you mean 'ties'"),
    ],
)
def test_a_recipe_that_cannot_be_measured_so_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    loaded = load_recipe(str(write_recipe(tmp_path, **changes)))
    with pytest.raises(SimoError, match=told):
        scaling(loaded, tmp_path, most=1, seed=0, realigned=True, progress=Silent())


# Counts, the table and the plot


def row(tasks: str, merged: float, realigned: float) -> dict[str, Any]:
    stages = {"merged": merged, "realigned": realigned}
    return {
        "tasks": list(tasks),
        **{name: {"normalised_performance": value} for name, value in stages.items()},
    }


ROWS = [row("a", 1.0, 1.0), row("b", 0.75, 1.0), row("ab", 0.5, 0.75)]
BY_HAND = {"rows": ROWS, "by_count": by_count(ROWS)}


def test_mean_and_spread_by_hand() -> None:
    expected = {"mean": 2.0, "deviation": math.sqrt(2 / 3), "lowest": 1.0, "highest": 3.0}
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(expected)
    assert spread([0.5])["deviation"] == 0


def test_the_table_has_a_line_a_count() -> None:
    assert table(BY_HAND).splitlines() == [
        "| tasks | subsets | merged | merged, lowest to highest | re-aligned "
        "| re-aligned, lowest to highest |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 2 | 87.5% ± 12.5% | 75.0% to 100.0% | 100.0% ± 0.0% | 100.0% to 100.0% |",
        "| 2 | 1 | 50.0% ± 0.0% | 50.0% to 50.0% | 75.0% ± 0.0% | 75.0% to 75.0% |",
    ]


def test_the_plot_has_a_curve_a_stage_and_a_dot_a_subset() -> None:
    (panel,) = draw_scaling(BY_HAND).axes
    curves = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    assert [line.get_label() for line in curves] == ["merged, experts' heads", "re-aligned"]
    assert [list(line.get_ydata()) for line in curves] == [[87.5, 50.0], [100.0, 75.0]]
    assert tuple(to_hex(line.get_color()).upper() for line in curves) == COLOURS[:2]
    dots = [len(one.get_offsets()) for one in panel.collections if len(one.get_offsets()) > 1]
    assert dots == [3, 3]
    assert list(panel.get_xticks()) == [1, 2]


def test_without_re_alignment_there_is_one_curve() -> None:
    rows = [{key: value for key, value in one.items() if key != "realigned"} for one in ROWS]
    (panel,) = draw_scaling({"rows": rows, "by_count": by_count(rows)}).axes
    assert len(panel.get_legend_handles_labels()[0]) == 1


# The command


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    return invoked(scaling_command, "simo-scaling", folder, monkeypatch, *options)


def test_the_command_prints_writes_and_draws(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command(workplace, monkeypatch, "--json", "a.json", "--plot", str(workplace / "a.png"))
    assert told.exit_code == 0, told.output
    assert "| tasks | subsets | merged |" in told.stdout
    report = report_in(workplace)
    assert report["schema"] == "simo.scaling/1"
    assert report["split"] == "select"
    assert report["command"] == ("simo-scaling --recipe tiny.yaml --json a.json --plot a.png")
    assert {"experts", "images"} <= set(report)
    assert (workplace / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subsets", "0"], "0 is not in the range x>=1"),
        (["--plot", "a.jpg"], "a.jpg must end in one of .png, .svg, .pdf"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    told = command(workplace, monkeypatch, *options)
    assert told.exit_code == 2
    assert message in told.output
