"""Items of a step: which are made, kept, and tried again."""

import json
import re
from pathlib import Path

from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.steps import BARS, ONE


def test_items_are_kept_and_failures_tried_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "l.json", []

    def fails() -> dict[str, int]:
        calls.append("fails")
        raise RuntimeError("CUDA out of memory")

    def item(ledger: Ledger, key: str, made: dict[str, object]) -> object:
        return (ledger.item(key, lambda: made) or {}).get("n")

    first = Ledger(path, 60)
    assert item(first, "a", {"n": 1}) == 1
    assert first.item("b", fails) is None
    item(first, "c", {"n": 1, "passed": False})
    item(first, "d", {"n": 1, "reason": "a cosine of 0.5; no latency"})
    assert first.faults == {
        "b": "RuntimeError: CUDA out of memory",
        "c": "not passed",
        "d": "a cosine of 0.5; no latency",
    }
    second = Ledger(path, 60)
    assert [item(second, key, {"n": 2, "passed": True}) for key in "abcd"] == [1, 2, 2, 2]
    assert not second.faults
    assert calls == ["fails"]


def test_a_file_of_items_tells_where_they_come_from(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.json", 60)
    ledger.item("a", lambda: {"n": 1})
    found = json.loads((tmp_path / "l.json").read_text())
    assert {"command", "commit", "versions", "machine"} <= set(found)
    assert found["items"]["a"] == {"n": 1, "commit": found["commit"]}


def test_only_items_that_are_asked_for_are_made(tmp_path: Path) -> None:
    keys = [f"linear bf16 eager {tasks} tasks, batch {batch}" for tasks, batch in
            ((3, 1), (3, 16), (3, 4), (13, 1), (1, 16))]  # fmt: skip
    asked = [[key for key in keys if re.search(only, key)] for only in (ONE, BARS)]
    assert [len(one) for one in asked] == [2, 3]  # there are never 13 tasks
    ledger = Ledger(tmp_path / "l.json", 60, BARS)
    for key in keys:
        ledger.item(key, lambda: {"passed": False})
    assert list(ledger.items) == list(ledger.faults) == asked[1]
    assert not ledger.late


def test_without_time_nothing_more_is_begun(tmp_path: Path) -> None:
    late = Ledger(tmp_path / "l.json", seconds=-1)
    assert late.item("a", lambda: {"n": 1}) is None
    assert late.late
    assert late.items == {}
