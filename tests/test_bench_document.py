"""The document of a benchmark: what is found follows from the raw samples, by hand."""

import copy
import json
from typing import Any

import pytest

from simo_bench.document import SCHEMA, check, derive
from simo_bench.tables import table
from simo_runtime.errors import BackendError

EQUAL = {
    "task": "a",
    "measure": "cosine",
    "found": 1.0,
    "least": 0.9,
    "finite": True,
    "passed": True,
}


def arm(reason: str | None = None, equality: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"about": {}, "equality": [equality or EQUAL], "reason": reason}


def process(slower: float = 1.0) -> dict[str, Any]:
    """Encoder 10 ms, heads 1 and 2 ms, exactly: three models would take 11 + 12."""
    return {
        "ms": {"joint": [13.0 * slower] * 8, "sequential": [23.0 * slower] * 8},
        "others": 0.0,
        "throttled": [],
        "stopped_by": "rounds",
        "arms": {"joint": arm(), "sequential": arm()},
        "whole_ms": {"joint": [20.0] * 8, "sequential": [30.0] * 8},
        "count_ms": {"sequential": {"1": [11.0], "2": [23.0]}, "split": {"1": [11.0], "2": [13.0]}},
        "batch_ms": {"joint": {"1": [12.5], "4": [40.0]}, "sequential": {"1": [25.0], "4": [80.0]}},
        "joules": {},
        "stages_ms": {"encoder": [10.0] * 8, "head a": [1.0] * 8, "head b": [2.0] * 8},
    }


def graph(roofline: float) -> dict[str, float]:
    return {"roofline_ms": roofline}


def raw(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "who": "a test",
        "when": "2026-01-01",
        "command": "simo-bench bundle",
        "commit": None,
        "versions": {},
        "machine": {"cpu": "a CPU", "gpu": None, "governor": None},
        "bundle": {
            "name": "two", "tasks": ["a", "b"], "kinds": {}, "image_size": [4, 6],
            "random_weights": False, "gate": [],
        },
        "settings": {
            "backend": "onnxruntime-cpu", "arms": ["joint", "sequential"], "threads": 1,
            "precision": "fp32", "singles": "the experts' own bundles",
        },
        "limits": {
            "ideal": {"roofline": 2.0, "operations": 1.9, "memory": 1.8},
            "graphs": {"encoder": graph(10.0), "a": graph(1.0), "b": graph(2.0)},
        },
        "processes": [process(), process()],
        "memory": {"joint": {"resident": 100}, "sequential": {"resident": 170}},
        "disk": {"shared": 50, "singles": {"a": 45, "b": 46}},
        "steadier": [],
    }  # fmt: skip
    document |= changes
    return document


def test_ratios_shares_memory_and_disk_by_hand() -> None:
    found = derive(raw())
    (one,) = found["ratios"]
    assert (one["above"], one["below"], one["count"], one["processes"]) == (
        "sequential",
        "joint",
        16,
        2,
    )
    assert one["median"] == pytest.approx(23 / 13)
    assert one["low"] == one["high"] == pytest.approx(23 / 13)
    assert one["share"] == {
        "roofline": pytest.approx(23 / 13 / 2.0),
        "operations": pytest.approx(23 / 13 / 1.9),
    }
    assert found["memory"]["ratio"] == {"joint": 1.7}
    assert found["memory"]["share"] == {"joint": pytest.approx(1.7 / 1.8)}
    assert found["disk"] == {"shared": 50, "singles": 91, "ratio": 91 / 50}
    assert not found["unstable"]


def test_the_ideal_of_the_measured_parts_by_hand() -> None:
    # (10 + 1 + 10 + 2) over (10 + 1 + 2)
    assert derive(raw())["parts"] == {
        "encoder": 10.0,
        "heads": 3.0,
        "ideal": pytest.approx(23 / 13),
    }


def test_counts_and_throughput_by_hand() -> None:
    found = derive(raw())
    assert [row["ms"] for row in found["counts"]] == [
        {"split": 11.0, "sequential": 11.0},
        {"split": 13.0, "sequential": 23.0},
    ]
    assert [row["ideal"] for row in found["counts"]] == [1.0, pytest.approx(23 / 13)]
    # four images in 40 ms
    assert found["throughput"]["joint"]["4"]["images_per_second"] == pytest.approx(100.0)


def test_a_slow_process_does_not_change_the_ratio_but_is_said() -> None:
    found = derive(raw(processes=[process(), process(slower=1.5)]))
    assert found["ratios"][0]["median"] == pytest.approx(23 / 13)
    assert not found["ratios"][0]["unstable"]
    assert found["arms"]["joint"]["unstable"][-1] == "processes 50% apart, at most 10%"
    assert found["unstable"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("others", 0.4, "other programs used 40% of the CPUs"),
        ("throttled", ["power cap"], "the clock was throttled"),
    ],
)
def test_what_went_on_beside_makes_everything_unstable(key: str, value: object, said: str) -> None:
    document = raw()
    document["processes"][1][key] = value
    document["found"] = derive(document)
    assert all(said in one["unstable"][0] for one in document["found"]["ratios"])
    told = table(document)
    assert said in told
    assert told.count("UNSTABLE") == 2 + 1 + 1  # both arms, the ratio, the line of reasons


def test_an_arm_with_wrong_answers_has_no_latency_and_no_ratio() -> None:
    document = raw()
    wrong = {**EQUAL, "found": 0.5, "passed": False}
    one = document["processes"][1]
    one["arms"]["joint"] = arm("its outputs are not those of its reference", wrong)
    for key in ("ms", "whole_ms", "batch_ms"):
        del one[key]["joint"]
    document["found"] = derive(document)
    assert document["found"]["arms"]["joint"]["ms"] is None
    assert document["found"]["ratios"] == []
    assert "joint" not in document["found"]["throughput"]
    told = table(document)
    assert "no latency: its outputs are not those of its reference" in told
    assert "cosine 0.500000, at least 0.9 is needed" in told


def test_a_document_says_the_same_after_it_was_written() -> None:
    document = raw()
    document["found"] = derive(document)
    read = json.loads(json.dumps(document, sort_keys=True))
    check(read)
    assert table(read) == table(document)


def test_a_figure_that_is_not_its_samples_is_refused() -> None:
    document = json.loads(json.dumps({**raw(), "found": derive(raw())}))
    better = copy.deepcopy(document)
    better["found"]["ratios"][0]["median"] = 9.9
    with pytest.raises(BackendError, match="not what the raw samples say: ratios"):
        check(better)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "simo.bench/1"}, "'simo.bench/2' is read here"),
        ({"more": 1}, "keys are not those of simo.bench/2: more"),
    ],
)
def test_another_schema_and_other_keys_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        check({**raw(), "found": {}, **change})
