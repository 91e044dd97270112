"""A bundle in several precisions: which get in, which are left out, and what is said of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from simo_build import export
from simo_build.encoder import Encoder, randomise
from simo_build.export import export_bundle, judged, noise
from simo_build.exporting import DEFAULTS, ExportPart
from simo_build.gated import Found
from simo_build.heads import make_head
from simo_build.recipe import Recipe
from simo_build.train import feature_shape
from simo_export.layers import Rise
from simo_runtime.bundle import Bundle
from tests.test_export import RECIPE


def build(out: Path, say: Any = None, **changes: Any) -> Bundle:
    """Build a tiny bundle of two tasks, in the precisions that are asked for."""
    content = RECIPE.model_dump(mode="json", exclude_unset=True)
    content["tasks"] = {task: content["tasks"][task] for task in ("seg", "depth")}
    recipe = Recipe.model_validate({**content, "export": changes})
    encoder = Encoder(recipe.encoder, recipe.image)
    randomise(encoder, 0)
    shape = feature_shape(encoder)
    return export_bundle(
        out,
        encoder=encoder,
        heads={t: make_head("linear", s, shape, seed=0) for t, s in recipe.specs().items()},
        recipe=recipe,
        samples=noise(recipe),
        provenance={},
        say=say or (lambda line: None),
    )


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("every") / "bundle"
    precisions = ["int8", "bf16", "fp16", "fp32"]  # the order does not matter
    gate = {"bf16": {"cosine": 1.0, "frobenius": 1e-12}, "int8": {"argmax": 0.5}}
    return build(out, lines.append, precisions=precisions, gate=gate), lines


def test_what_passes_is_in_the_bundle_and_what_fails_is_not(
    every: tuple[Bundle, list[str]],
) -> None:
    bundle, _ = every
    assert list(bundle.manifest.graphs) == ["fp16", "fp32", "int8"]
    assert not [name for name in bundle.manifest.files if "bf16" in name]
    assert bundle.graph("joint", "fp16").name == "joint.fp16.onnx"
    assert bundle.graph("seg", "int8") == bundle.graph("seg")  # int8 has the heads of fp32


def test_a_precision_that_is_left_out_is_told_with_the_layer_to_blame(
    every: tuple[Bundle, list[str]],
) -> None:
    bundle, lines = every
    told = "\n".join(lines)
    assert "bf16 is left out" in told
    assert "the difference rises most at " in told
    found = bundle.manifest.provenance["gate"]
    assert set(found["left_out"]) == {"bf16"}
    assert found["left_out"]["bf16"][0].startswith("the difference rises most at ")


def test_what_was_found_is_told_and_recorded_for_every_precision(
    every: tuple[Bundle, list[str]],
) -> None:
    bundle, lines = every
    found = bundle.manifest.provenance["gate"]
    rows = [(one["precision"], one["task"]) for one in found["found"]]
    precisions = ("fp32", "fp16", "bf16", "int8")
    assert rows == [(p, task) for p in precisions for task in ("seg", "depth")]
    assert {one["task"] for one in found["features"]} == {"tap1", "tap2"}
    assert "rounded to fp16" in found["how"]["fp16"]
    for precision, task in rows:
        assert any(f"{precision} {task}: cosine" in line for line in lines)


def test_the_limits_are_strict_and_a_recipe_may_change_one() -> None:
    part = ExportPart.model_validate({"gate": {"int8": {"metric_change": 0.01}}})
    assert part.limits("int8") == replace(DEFAULTS["int8"], metric_change=0.01)
    assert part.limits("fp32") == DEFAULTS["fp32"]
    strict = {"fp32": 0.001, "fp16": 0.005, "bf16": 0.005, "int8": 0.02, "fp8": 0.02}
    assert {name: one.metric_change for name, one in DEFAULTS.items()} == strict


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": ["fp16"]},
        {"precisions": ["fp32", "fp32"]},
        {"precisions": ["fp32", "fp61"]},
        {"precisions": []},
        {"images": 0},
        {"gate": {"fp32": {"cosin": 0.9}}},
        {"gate": {"fp32": {"cosine": 1.1}}},
        {"gate": {"fp61": {}}},
        {"imagess": 3},
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ExportPart"):
        ExportPart.model_validate(wrong)


class Blocks:
    """As much of a reference as the search for layers needs: an encoder of some blocks."""

    def __init__(self, count: int) -> None:
        self.folded = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4 * count)))  # 4 a block


@pytest.mark.parametrize(
    ("blocks", "fails", "kept"),
    [
        (12, 0, ()),  # it passes as it is
        (12, 2, ("layer0", "layer1")),  # with two layers in floats it passes
        (12, 99, ("layer0", "layer1", "layer2")),  # a quarter as many layers as blocks, no more
        (3, 99, ()),
    ],
)
def test_int8_is_tried_again_without_the_layer_to_blame(
    monkeypatch: pytest.MonkeyPatch, blocks: int, fails: int, kept: tuple[str, ...]
) -> None:
    asked: list[tuple[str, ...]] = []

    def typed(*given: Any) -> tuple[str, str]:
        asked.append(given[-1])
        return "graphs", "arm"

    def judge(precision: str, *_: object) -> Found:
        number = len(asked) - 1
        faults, worst = (), None
        if number < fails:
            faults, worst = ("too far",), Rise(f"layer{number}", 0.0, 1.0)
        return Found(precision=precision, how="", tasks=(), taps=(), faults=faults, worst=worst)

    monkeypatch.setattr(export, "typed", typed)
    monkeypatch.setattr(export, "judge", judge)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    reference: Any = Blocks(blocks)
    graphs: Any = None
    _, _, found = judged(graphs, "int8", Path(), images, reference, DEFAULTS["int8"])
    assert found.kept == kept
    assert asked == [kept[:count] for count in range(len(kept) + 1)]
    assert bool(found.faults) == (fails > len(kept))
