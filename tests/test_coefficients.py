"""simo-coefficients: what was learnt, by block and kind of layer, as a table and as a picture."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from matplotlib.colors import to_hex

from simo_build.build import realign
from simo_build.cli import coefficients_command
from simo_build.coefficients import by_tensor, coefficients, kind_of, table, total
from simo_build.learned import LEARNED
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.plots import COLOURS, coefficient_panels, draw_coefficients
from simo_build.progress import Silent
from simo_build.workshop import Stages
from simo_runtime.errors import RecipeError, SimoError
from tests.commands import invoked, report_in
from tests.tiny import opened, write_recipe, write_workplace

STEP: dict[str, Any] = {"step": "tint", "epochs": 2, "lr": 3e-2, "batch": 3}
HEAD = {"step": "head", "epochs": 1}
SHORT = {"epochs": 2, "batch": 2}
LAYERS = ["cls_token", "pos_embed", "patch_embed", "norms", "qkv", "proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("coefficients")).parent


def found(place: Path, out: Path, *steps: dict[str, Any], **merging: Any) -> dict[str, Any]:
    path = write_recipe(place, merge={"images": 6, **merging}, realign=list(steps))
    return coefficients(load_recipe(str(path)), out, progress=Silent())


def told(place: Path, out: Path) -> tuple[Any, Any]:
    """Give the logs of merging and of the first step, as they are kept."""
    work = opened(place / "tiny.yaml")
    work.stages = Stages(out, Silent())
    merged = merge(work)
    return merged.log, realign(work, merged).log["steps"] if work.recipe.realign else None


def row(report: dict[str, Any], block: int | None, layer: str) -> dict[str, Any]:
    (one,) = (r for r in report["rows"] if (r["block"], r["layer"]) == (block, layer))
    return dict(one)


# What is told


def test_a_row_is_the_mean_over_the_weights_of_a_layer(place: Path, tmp_path: Path) -> None:
    report = found(place, tmp_path, method="adamerging", params=SHORT)
    log = told(place, tmp_path)[0]["learned"]["learnt"]
    for task in ("depth", "normals"):
        weight, bias = (log[task][f"blocks.1.mlp.fc1.{part}"] for part in ("weight", "bias"))
        own = row(report, 1, "fc1")
        assert own["weights"] == 128 * 32 + 128
        assert own["coefficients"][task] == pytest.approx((32 * weight + bias) / 33)
    assert report["whole"]


def test_every_block_and_layer_has_its_row(place: Path, tmp_path: Path) -> None:
    report = found(place, tmp_path, method="adamerging", params=SHORT)
    inside = [(r["block"], r["layer"]) for r in report["rows"] if r["block"] is not None]
    assert inside == [(block, layer) for block in (0, 1) for layer in LAYERS[3:]]
    outside = {r["layer"] for r in report["rows"] if r["block"] is None}
    assert outside == {*LAYERS[:3], "norm"}
    work = opened(place / "tiny.yaml")
    assert sum(r["weights"] for r in report["rows"]) == sum(t.numel() for t in work.base.values())


def test_tint_adds_to_the_alpha_of_task_arithmetic(place: Path, tmp_path: Path) -> None:
    data = {"step": "tint", "epochs": 2, "lr": 3e-2, "batch": 3, "granularity": "task"}
    report = found(place, tmp_path, data, HEAD, data, params={"alpha": 0.5})
    steps = told(place, tmp_path)[1]
    for task in ("depth", "normals"):
        added = steps[0]["coefficients"][task]["all"] + steps[2]["coefficients"][task]["all"]
        expected = pytest.approx(0.5 + added)
        assert all(r["coefficients"][task] == expected for r in report["rows"])
    assert report["whole"]
    assert report["steps"] == ["tint", "head", "tint"]


def test_on_another_merge_tint_tells_what_it_has_added(place: Path, tmp_path: Path) -> None:
    report = found(place, tmp_path, {**STEP, "granularity": "layer"}, method="tsv_m")
    log = told(place, tmp_path)[1][0]["coefficients"]
    assert not report["whole"]
    assert row(report, 1, "qkv")["coefficients"]["depth"] == pytest.approx(log["depth"]["block 1"])
    outside = row(report, None, "cls_token")["coefficients"]["depth"]
    assert outside == pytest.approx(log["depth"]["before"])


@pytest.mark.parametrize("method", LEARNED)
def test_every_learned_method_can_be_shown(place: Path, tmp_path: Path, method: str) -> None:
    report = found(place, tmp_path, method=method, params=SHORT)
    values = [value for one in report["rows"] for value in one["coefficients"].values()]
    assert len(values) == 2 * 14
    assert all(-2 < value < 2 for value in values)
    assert draw_coefficients(report).axes


def test_numbers_of_parts_are_averaged() -> None:
    assert by_tensor({"cls_token": [0.25, 0.75]}, ["cls_token"]) == {"cls_token": 0.5}
    ranked = {"coefficients": {"norm.bias": 0.5}, "components": {"norm.bias": 3}}
    assert by_tensor(ranked, ["norm.bias"]) == {"norm.bias": 0.5}
    layers = {"before": 0.1, "block 3": 0.2, "after": 0.3}
    names = ["pos_embed", "blocks.3.attn.qkv.weight", "norm.weight"]
    assert list(by_tensor(layers, names).values()) == [0.1, 0.2, 0.3]


def test_coefficients_add_up() -> None:
    parts = [{"a": {"x": 0.5, "y": 0.25}}, {"a": {"x": -0.25, "y": 0.5}}]
    assert total(parts) == {"a": {"x": 0.25, "y": 0.75}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.3.attn.qkv.bias", "qkv"),
        ("blocks.3.attn.proj.weight", "proj"),
        ("blocks.11.mlp.fc2.weight", "fc2"),
        ("blocks.0.norm1.weight", "norms"),
        ("blocks.0.ls1.gamma", "norms"),
        ("patch_embed.proj.weight", "patch_embed"),
        ("cls_token", "cls_token"),
        ("norm.weight", "norm"),
    ],
)
def test_tensors_are_sorted_by_their_layers(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_where_no_expert_has_changed_anything_there_is_nothing_to_tell(tmp_path: Path) -> None:
    place = write_workplace(tmp_path, {"depth": 0.0, "normals": 0.0}).parent
    with pytest.raises(RecipeError, match="no expert differs from the base"):
        found(place, tmp_path / "kept", method="adamerging", params=SHORT)


@pytest.mark.parametrize(
    ("steps", "merging", "told"),
    [
        (
            [HEAD],
            {"params": {"alpha": 0.5}},
            r"task_arithmetic learns no coefficients, and `realign` has no step `tint`",
        ),
        ([], {"method": "tnt"}, "did you mean 'tint'"),
    ],
)
def test_a_recipe_that_learns_none_is_refused(
    place: Path, tmp_path: Path, steps: list[Any], merging: dict[str, Any], told: str
) -> None:
    with pytest.raises(SimoError, match=told):
        found(place, tmp_path, *steps, **merging)


# The table and the plot


def made(block: int | None, layer: str, a: float, b: float) -> dict[str, Any]:
    return {"block": block, "layer": layer, "coefficients": {"a": a, "b": b}}


BY_HAND = {
    "metrics": {"a": "mean_iou", "b": "absolute_error"},
    "whole": True,
    "rows": [
        made(None, "cls_token", 0.5, 0.25),
        made(0, "norms", 0.125, 0.25),
        made(0, "qkv", 0.375, 0.5),
        made(1, "norms", 0.25, 0.75),
        made(1, "qkv", 0.625, -0.125),
    ],
}


def test_the_table_has_a_line_a_block_and_layer() -> None:
    assert table(BY_HAND).splitlines() == [
        "| block | layer | a | b |",
        "| ---: | --- | ---: | ---: |",
        "|  | cls_token | 0.500 | 0.250 |",
        "| 0 | norms | 0.125 | 0.250 |",
        "| 0 | qkv | 0.375 | 0.500 |",
        "| 1 | norms | 0.250 | 0.750 |",
        "| 1 | qkv | 0.625 | -0.125 |",
    ]


def test_the_plot_has_a_panel_a_layer_and_a_curve_a_task() -> None:
    figure = draw_coefficients(BY_HAND)
    assert [axis.get_title() for axis in figure.axes] == ["qkv", "norms", "outside of the blocks"]
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(curves["a"].get_ydata()) == [0.375, 0.625]
    assert list(curves["b"].get_ydata()) == [0.5, -0.125]
    assert to_hex(curves["b"].get_color()).upper() == COLOURS[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert figure.get_supylabel() == "coefficient of the expert's delta"


def test_layers_that_share_their_coefficients_share_a_panel() -> None:
    shared = [made(block, layer, 0.5, block) for block in (0, 1) for layer in ("qkv", "fc1")]
    assert list(coefficient_panels(shared)) == ["all layers"]


# The command


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    return invoked(coefficients_command, "simo-coefficients", folder, monkeypatch, *options)


def test_the_command_prints_writes_and_draws(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(place, merge={"params": {"alpha": 0.5}}, realign=[STEP])
    for _ in range(2):  # the second time from what was kept
        done = command(place, monkeypatch, "--json", "a.json", "--plot", str(place / "a.svg"))
        assert done.exit_code == 0, done.output
    assert "| block | layer | depth | normals |" in done.stdout
    report = report_in(place)
    assert report["schema"] == "simo.coefficients/1"
    assert report["command"] == "simo-coefficients --recipe tiny.yaml --json a.json --plot a.svg"
    assert "<svg" in (place / "a.svg").read_text()
    assert len(list((place / "bundles" / ".stages").glob("realign-*"))) == 1
