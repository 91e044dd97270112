"""What a CPU can show of a GPU's items: their gates, their order, and when a step ends."""

import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from simo_bench.gpu import correctness, merged, passes
from simo_bench.gpu.float32 import exact, tf32
from simo_bench.gpu.ledger import Ledger
from simo_bench.gpu.models import Models
from simo_bench.gpu.passes import agreement, cosines, items, spoilt

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models("toy", "linear", 2, tmp_path_factory.mktemp("models"), CPU)


# Gates.


def test_classes_have_a_limit_of_their_own() -> None:
    values, classes = torch.ones(1000), torch.zeros(1000, dtype=torch.uint8)
    moved = classes.clone()
    moved[:5] = 1
    told = agreement(("depth", "seg"), [values, moved], [values, classes], "fp16")
    assert told == {
        "gate": {"depth": pytest.approx(1.0), "seg": pytest.approx(0.995)},
        "passed": True,
    }
    moved[:20] = 1
    told = agreement(("depth", "seg"), [values, moved], [values, classes], "fp16")
    assert not told["passed"]
    assert told["reason"] == "not as in float32: seg: 0.98000, allowed 0.99"


def test_an_item_that_is_wrong_has_a_reason_and_no_latency(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.LEAST, "fp32", (1.1, 1.1))
    item = passes.one_item(models, 2, 1, "fp32", "eager", tmp_path, rounds=1)
    assert not item["passed"]
    assert "seg" in item["reason"]
    assert "device_ms" not in item


def test_an_item_that_is_right_has_times_with_copies_too(models: Models, tmp_path: Path) -> None:
    item = passes.one_item(models, 2, 1, "fp32", "eager", tmp_path, rounds=2)
    assert item["passed"]
    assert set(item["captured"]) == {"joint", "seg", "depth"}
    for name in ("joint", "sequential", "concurrent"):
        assert len(item["host_ms"][name]) == len(item["host_ms_with_copies"][name]) == 2


def test_merging_that_differs_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert correctness.merged_both("task_arithmetic")["passed"]
    monkeypatch.setattr(correctness, "TOLERANCE", -1.0)
    found = correctness.merged_both("task_arithmetic")
    assert not found["passed"]
    assert "blocks.0.attn.qkv.weight: 0" in found["reason"]


def test_float32_is_exact_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tf32(True)
        exact()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32


# Order, and when to stop.


def test_what_the_bars_need_comes_first() -> None:
    found = list(items(tiny=False))
    assert found[:8] == [(3, 1), (3, 16), (1, 1), (2, 1), (6, 1), (4, 1), (5, 1), (3, 4)]
    assert len(found) == len(set(found)) == 18


def test_an_item_begins_if_there_is_as_much_time_as_the_last_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]

    def made(seconds: float) -> dict[str, float]:
        now[0] += seconds
        return {"seconds": seconds}

    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("simo_bench.gpu.ledger.time", clock)
    ledger = Ledger(tmp_path / "l.json", 30, began=1000.0)
    for key, seconds in {"a": 10.0, "b": 11.0, "c": 1.0}.items():
        ledger.item(key, partial(made, seconds))
    assert list(ledger.items) == ["a", "b"]  # 9 seconds are left, and the last one took 11
    assert ledger.late
    again = Ledger(tmp_path / "l.json", 30, began=now[0])  # what is there takes no time
    for key in "abc":
        again.item(key, partial(made, 1.0))
    assert list(again.items) == ["a", "b", "c"]
    assert not again.late


@pytest.mark.parametrize("kind", ["passes", "merged", "gates", "merging"])
def test_a_step_leaves_everything_after_its_time(kind: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.json", seconds=-1)
    if kind == "passes":
        passes.measure(
            ledger, heads="linear", precision="fp32", way="eager", work=tmp_path, tiny=True
        )
    elif kind == "merged":
        merged.measure(ledger, work=tmp_path, tiny=True)
    elif kind == "gates":
        correctness.gates(ledger, work=tmp_path, tiny=True)
    else:
        correctness.merging(ledger)
    assert ledger.items == {}
    assert ledger.late


def test_after_a_capture_that_failed_the_rest_is_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "one_item", lambda *_, **__: {"passed": True})
    monkeypatch.setattr(passes, "spoilt", lambda item, where: True)
    for count in (1, 2):  # what is there is not made again, and spoils nothing
        ledger = Ledger(tmp_path / "l.json", 60)
        passes.measure(
            ledger, heads="linear", precision="fp32", way="eager", work=tmp_path, tiny=True
        )
        assert len(ledger.items) == count
        assert ledger.late


def test_a_process_is_spoilt_by_a_failed_capture_or_when_memory_cannot_be_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert not spoilt({"captured": {"joint": True, "seg": True}}, GPU)
    assert not spoilt({"failed": "out of memory"}, GPU)
    assert spoilt({"captured": {"joint": True, "seg": False}}, GPU)
    assert not spoilt({"captured": {"joint": False}}, CPU)

    def fails() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    assert spoilt({"captured": {"joint": True}}, GPU)


def test_a_cosine_that_is_no_number_is_none() -> None:
    bad = torch.tensor([float("nan"), 1.0])
    assert cosines([bad], [torch.ones(2)]) == [0.0]
    assert cosines([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == [0.5]
