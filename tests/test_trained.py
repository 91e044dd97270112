"""The record of how experts were trained."""

from pathlib import Path

import pytest

from simo_bench.epochs import draw
from simo_bench.trained import row_of, run, table
from simo_build.checkpoints import Expert
from simo_runtime.errors import CheckpointError
from tests.tiny import opened, write_recipe

TRAIN = {"batch": 2, "head": {"epochs": 3, "lr": 1e-3}, "full": {"epochs": 2, "lr": 1e-4}}


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, object]:
    tasks = {task: {"kind": task, "target": {"folder": task}} for task in ("depth", "normals")}
    return run(opened(write_recipe(place, tasks, train=TRAIN, train_missing=True)))


def test_a_row_tells_every_epoch_and_the_best(found: dict[str, list[dict[str, dict]]]) -> None:
    assert [row["task"] for row in found["rows"]] == ["depth", "normals"]
    for row in found["rows"]:
        head, full = row["phases"]["head"], row["phases"]["full"]
        assert (len(head["history"]), len(full["history"])) == (1 + 3, 1 + 2)
        assert head["metric"] == head["history"][head["epoch"]] == min(head["history"])
        assert full["history"][0] == pytest.approx(head["metric"])
        assert row["steps"] == 3 + 2  # two images of `train` are one batch
        assert row["images"] == row["labels"] == {"train": 2, "select": 3}


def test_the_table_has_a_line_for_each_expert(found: dict[str, list[dict[str, dict]]]) -> None:
    lines = table(found).splitlines()
    assert len(lines) == 2 + 2
    best = found["rows"][0]["phases"]["full"]["epoch"]
    assert f"of 3, {best} of 2 | 2 train, 3 select | 5 |" in lines[2]


def test_the_picture_marks_the_best_epoch_of_each_phase(
    found: dict[str, list[dict[str, dict]]],
) -> None:
    panels = draw(found).axes
    assert [panel.get_title() for panel in panels] == ["depth", "normals"]
    assert panels[0].get_ylabel() == "absolute error, m"
    head, mark, _, _ = panels[0].get_lines()
    phase = found["rows"][0]["phases"]["head"]
    assert list(head.get_xdata()) == [1, 2, 3]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (phase["epoch"], phase["metric"])


def test_an_expert_from_elsewhere_is_told(tmp_path: Path) -> None:
    place = str(tmp_path / "own.safetensors")
    expert = Expert(task="depth", encoder={}, head={}, about={}, source=place, hash="")
    with pytest.raises(CheckpointError, match=r"own.safetensors: does not say .* no 'head'"):
        row_of(expert, "absolute_error")
