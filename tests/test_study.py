"""A study of learned methods: its list, and what its rows tell."""

from pathlib import Path

import pytest

from simo_bench.study import Entry, read_entries, run
from simo_build.learned import LEARNED
from simo_build.loading import load_recipe
from simo_build.losses import TORCH_KINDS
from simo_build.progress import Silent
from tests.merging import SHAPES
from tests.tiny import write_recipe, write_workplace

LIST = Path(__file__).resolve().parents[1] / "benchmarks" / "recipes" / "methods-learned.yaml"
TEACHINGS = {name: kind.teaching for name, kind in TORCH_KINDS.items()}


@pytest.mark.parametrize("entry", read_entries(LIST), ids=lambda entry: entry.name or entry.method)
def test_every_entry_of_the_list_can_be_learnt(entry: Entry) -> None:
    for params in entry.candidates():
        LEARNED[entry.method].rehearse(SHAPES, TEACHINGS, **params)


def test_every_learned_method_is_in_the_list() -> None:
    assert {entry.method for entry in read_entries(LIST)} == set(LEARNED)


def test_a_row_tells_how_many_images_and_labels_were_used(tmp_path: Path) -> None:
    write_workplace(tmp_path)
    path = write_recipe(tmp_path, merge={"params": {"alpha": 0.3}, "images": 5})
    entries = [
        Entry(method=method, params=params, grid={})
        for method, params in (
            ("average", {}),
            ("adamerging", {"epochs": 1}),
            ("supermerge", {"epochs": 1}),
        )
    ]
    found = run(load_recipe(str(path)), entries, "select", tmp_path / "out", progress=Silent())
    average, adamerging, supermerge = (row["learned"] for row in found["chosen"])
    assert average is None
    assert (adamerging["images"], adamerging["labels"]) == (5, 0)
    assert (supermerge["images"], supermerge["labels"]) == (5, 5)
    assert found["candidates"][1]["learned"] == adamerging
    # these experts do not tell
    assert found["experts_took"] == {"images": {}, "labels": {}, "steps": None, "seconds": {}}
