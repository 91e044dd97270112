"""Several-pass methods in a study: rows of their own, every task on its own encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simo_bench import study
from simo_bench.references import measure_apart, merged_apart, table
from simo_build.loading import load_recipe
from simo_build.progress import Silent
from simo_build.several import SEVERAL
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop, measure
from simo_runtime.errors import RecipeError, UnknownNameError
from tests.conftest import RECIPE

ENTRIES = Path(__file__).resolve().parents[1] / "benchmarks" / "recipes" / "methods-several.yaml"

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def work(rooms_data: Path, folder: Path) -> Workshop:
    return Workshop(load_recipe(str(RECIPE), data=rooms_data), Stages(folder, Silent()))


@pytest.fixture
def run(rooms_data: Path, folder: Path) -> Run:
    def run_with(*entries: dict[str, Any], split: str = "select") -> dict[str, Any]:
        loaded = load_recipe(str(RECIPE), data=rooms_data)
        given = [study.Entry(**{"params": {}, "grid": {}, **entry}) for entry in entries]
        return study.run(loaded, given, split, folder, progress=Silent())

    return run_with


def test_every_head_is_measured_on_the_encoder_of_its_own_task(work: Workshop) -> None:
    samples = work.samples["select"]
    result = merged_apart(work, "tall_mask", {"threshold": 0.4})
    found = measure_apart(work, result, samples)
    assert list(found) == list(work.recipe.tasks)
    for task, expert in work.experts.items():
        masked: StateDict = {}
        for name, base in work.base.items():
            own = expert.encoder[name] - base
            deltas = [one.encoder[name] - base for one in work.experts.values()]
            whole = torch.stack(deltas).double().sum(dim=0).float()
            masked[name] = base + whole * (own.abs() > 0.4 * (whole - own).abs())
        expected = measure(work, masked, work.expert_heads(), samples)[task]
        assert found[task] == pytest.approx(expected, rel=1e-4)


def test_the_best_candidate_on_select_is_the_reference(run: Run) -> None:
    found = run({"method": "tall_mask", "grid": {"threshold": [0.4, 50.0]}}, split="test")
    assert found["chosen"] == []
    (row,) = found["references"]
    # with a threshold of 50 hardly a weight differs from the base
    assert row["params"] == {"threshold": 0.4}
    drops = [one["merged"]["normalised_performance"] for one in found["candidates"]]
    assert drops[0] > drops[1]
    assert row["merged"]["normalised_performance"] != drops[0]  # of the other split
    assert row["passes"] == 3.0
    assert set(row["merged"]["metrics"]) == {"seg", "depth", "normals"}


def test_a_reference_is_measured_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run({"method": "emr"})
    monkeypatch.setattr("simo_bench.references.merged_apart", None)  # calling it would fail
    assert run({"method": "emr"})["references"] == first["references"]


def test_the_table_of_references_stands_apart(run: Run) -> None:
    found = run({"method": "emr", "name": "EMR"})
    lines = study.table(found).splitlines()
    assert lines[0].startswith("| several passes, to compare with |")
    (row,) = (line for line in lines if line.startswith("| `EMR` |"))
    stored = found["references"][0]["bytes"]
    assert f"| 3.00 | {stored / 1e6:.1f} MB |" in row


def test_a_row_shows_passes_and_megabytes_and_the_loss() -> None:
    row = {
        "name": "emr",
        "params": {"a": 1, "b": 2},
        "passes": 1.75,
        "bytes": 12_340_000,
        "merged": {"normalised_performance": 0.975},
    }
    assert table([row]).splitlines()[-1] == "| `emr` | a 1, b 2 | 1.75 | 12.3 MB | -2.50% |"


def test_every_several_pass_method_is_among_the_entries() -> None:
    entries = study.read_entries(ENTRIES)
    assert {entry.method for entry in entries} == set(SEVERAL)
    for entry in entries:
        for params in entry.candidates():
            SEVERAL[entry.method].check(list(params))


def test_wrong_parameters_are_refused_before_anything_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "measure_experts", None)  # calling it would fail
    with pytest.raises(RecipeError, match=r"merge\.threshold is -1; it must be at least 0"):
        run({"method": "tall_mask", "grid": {"threshold": [0.4, -1]}})
    with pytest.raises(UnknownNameError, match=r"parameter of merge\.method emr 'alpha'"):
        run({"method": "emr", "params": {"alpha": 1}})


def test_heads_of_a_reference_are_not_re_aligned(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("- {method: emr, realign: all}\n")
    with pytest.raises(RecipeError, match="emr: heads of a reference are not re-aligned"):
        study.read_entries(tmp_path / "m.yaml")
