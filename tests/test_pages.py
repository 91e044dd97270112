"""The numbers of docs/merging.md are those of benchmarks/results."""

import pytest

from simo_bench.pages import PAGE, RESULTS, STUDIES, _lines, chosen, drop, filled, read
from simo_bench.study import METHODS_FILE, read_entries
from simo_build.learned import LEARNED
from simo_build.merge import METHODS
from simo_runtime.errors import DataError


def test_the_page_is_as_the_results_have_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run python -m simo_bench.pages"


def test_filling_twice_changes_nothing() -> None:
    once = filled(PAGE.read_text(encoding="utf-8"))
    assert filled(once) == once


def test_every_method_has_a_row_and_a_measured_result() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {row["name"]: row for row in chosen()}
    for name in (*METHODS, *LEARNED):
        line = next(one for one in page.split("\n") if one.startswith(f"| `{name}` | ["))
        assert line.endswith(f"| {drop(rows[name], 'merged')} | {drop(rows[name], 'realigned')} |")


def test_every_data_free_method_is_in_the_list() -> None:
    listed = {entry.method for entry in read_entries(METHODS_FILE)}
    assert listed == {name for name, one in METHODS.items() if not one.needs}


def test_all_studies_have_the_same_experts_and_splits() -> None:
    found = [read(name) for name in (*STUDIES, "nyuv2-methods-several.json")]
    assert len({str(one["inputs"]["experts"]) for one in found}) == 1
    assert {(one["split"], one["images"], one["recipe"]) for one in found} == {
        ("test", 106, "nyuv2-vit-tiny")
    }


def test_a_method_without_a_result_is_told() -> None:
    head = "| method | merged | re-aligned |"
    with pytest.raises(DataError, match="has nothing_like_it"):
        [*_lines([head, "| --- | --- | --- |", "| `nothing_like_it` | | |"], {})]


def test_results_tell_no_path_of_a_machine() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert '"/' not in text, path
        assert "/tmp/" not in text, path
