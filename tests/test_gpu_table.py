"""The table of what a GPU measured, its bars and faults, by hand."""

from pathlib import Path
from typing import Any

import pytest

from simo_bench.curve import recipe_of
from simo_bench.gpu.table import ENCODER_FLOP, HEAD_FLOP, SCHEMA, bars, faults, table
from simo_bench.readme import section
from simo_build.loading import load_recipe
from simo_build.size import sizes_of


def item(joint: float, sequential: float, concurrent: float) -> dict[str, Any]:
    ms = {"joint": joint, "sequential": sequential, "concurrent": concurrent}
    return {
        "tasks": 3,
        "batch": 1,
        "precision": "bf16",
        "commit": "c",
        "host_ms_with_copies": {"joint": [joint]},
        "found": {
            "ms": {name: {"p50": value} for name, value in ms.items()},
            "ratios": {name: {"median": ms[name] / joint} for name in ("sequential", "concurrent")},
            "unstable": {},
        },
    }


def document(**items: dict[str, Any]) -> dict[str, Any]:
    # 103.18 GFLOP at 206.36 TFLOP/s: 0.5 ms, so that 1 ms is twice that
    device = {"name": "G", "peaks": {"bf16": 206.36e12}, "bandwidth": 1e12, "commit": "c"}
    return {
        "steps": {},
        "machine": {"gpu": {"name": "G"}},
        "items": {"roofline": {"device": device}, **items},
    }


def test_bars_by_hand(tmp_path: Path) -> None:
    # three models in 2.85 ms, at once in 2.1, one pass in 1.0: 0.95 and 0.7 of 3
    timed = {
        "linear bf16 compile 3 tasks, batch 1": item(1.0, 2.85, 2.1),
        "linear bf16 aot 3 tasks, batch 1": item(1.25, 3.5, 3.5),
    }
    found = document(**{"passes-linear-bf16-compile": timed})
    told = "\n".join(bars(found, tmp_path))
    assert "compile 3 tasks, batch 1, sequential: 0.95 of 3.00, asked 0.93: met" in told
    assert "compile 3 tasks, batch 1, concurrent: 0.70 of 3.00, asked 0.8: NOT MET" in told
    assert "batch 1: 2.00 times the roofline, asked 3.0: met" in told
    assert "bf16, batch 16, against the roofline: not measured" in told
    assert "linear bf16 aot 3 tasks, batch 1: 0.80 times as fast as torch.compile" in told
    assert "no backend of the runtime was measured" in told


def test_shares_are_of_what_encoder_and_heads_allow() -> None:
    # DPT heads: three models need 3 x (103.18 + 35.58) = 416.28 GFLOP, one pass 103.18 + 106.74 =
    # 209.92; 1.98 times as much. At 206.36 TFLOP/s one pass takes 1.017 ms at least.
    timed = {"dpt_small bf16 eager 3 tasks, batch 1": item(2.035, 4.036, 2.035)}
    told = table(document(**{"passes-dpt_small-bf16-eager": timed}))
    (row,) = (line for line in told.splitlines() if line.startswith("dpt_small"))
    assert row.split()[-5:] == ["1.98", "(100%)", "1.00", "(50%)", "2.00"]


def test_the_page_of_benchmarks_shows_every_pass_and_every_bar() -> None:
    timed = {"linear bf16 compile 3 tasks, batch 1": item(1.0, 2.85, 2.1)}
    found = {**document(**{"passes-linear-bf16-compile": timed}), "schema": SCHEMA}
    page = section("gpu.json", found)
    assert "| linear bf16 compile 3 tasks, batch 1 | 1.000 | 2.850 | 2.100 | 2.85 (95%) " in page
    assert (
        "- linear bf16 compile 3 tasks, batch 1, concurrent: 0.70 of 3.00, asked 0.8: NOT" in page
    )
    assert "| hardware | G |" in page


@pytest.mark.parametrize("heads", HEAD_FLOP)
def test_operations_are_those_that_the_models_have(heads: str, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_of("vit_base", heads, len(HEAD_FLOP[heads]), tmp_path))).recipe
    sizes = sizes_of(recipe)
    assert 2 * sizes.encoder.macs == pytest.approx(ENCODER_FLOP, rel=1e-3)
    counted = [2 * head.macs for head in sizes.heads.values()]
    assert counted == pytest.approx(HEAD_FLOP[heads], rel=1e-3, abs=1e6)


def test_what_was_not_captured_or_is_of_another_commit_is_told() -> None:
    arms = {"joint": True, "singles": [True, False]}
    timed = {"a": {**item(1, 3, 3), "captured": arms, "why_not_captured": "a sync"}}
    told = faults(document(**{"toy-x": timed, "gates": {"b": {"passed": True, "commit": "d"}}}))
    assert told[0] == "NOT CAPTURED: toy-x: a: a sync"
    assert told[1].endswith("several commits: c, d")
    assert faults({**document(**{"toy-x": timed}), "machine": {}}) == []  # on a CPU there are none
