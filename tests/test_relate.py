"""simo-relate: all tasks measured on the way from the base to one expert, kept, and drawn."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from simo_build.cli import relate_command
from simo_build.loading import load_recipe
from simo_build.plots import COLOURS, draw_relations
from simo_build.progress import Silent
from simo_build.relate import relate, table
from simo_build.workshop import measure, measure_experts
from simo_runtime.errors import RecipeError
from tests.commands import invoked, report_in
from tests.tiny import opened, write_recipe, write_workplace

LAMBDAS = [-0.5, 0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relate")
    write_workplace(folder)
    return folder


@pytest.fixture(scope="module")
def found(workplace: Path) -> dict[str, Any]:
    loaded = load_recipe(str(workplace / "tiny.yaml"))
    return relate(loaded, LAMBDAS, workplace / "kept", progress=Silent())


# What is measured


def test_the_experts_are_their_own_measure(found: dict[str, Any], workplace: Path) -> None:
    work = opened(workplace / "tiny.yaml")
    assert found["experts"] == measure_experts(work, work.samples["select"])
    for task in ("depth", "normals"):
        at_one = found["moved"][task]["performance"][task][LAMBDAS.index(1.0)]
        assert at_one == pytest.approx(1.0, abs=1e-5)


def test_at_zero_everyone_stands_on_the_base(found: dict[str, Any], workplace: Path) -> None:
    work = opened(workplace / "tiny.yaml")
    base = measure(work, work.base, work.expert_heads(), work.samples["select"])
    for moved in ("depth", "normals"):
        for task, values in found["moved"][moved]["metrics"].items():
            assert values[LAMBDAS.index(0.0)] == base[task]


def test_half_the_way_is_base_plus_half_the_difference(
    found: dict[str, Any], workplace: Path
) -> None:
    work = opened(workplace / "tiny.yaml")
    expert = work.experts["normals"].encoder
    half = {n: (0.5 * (b.double() + expert[n].double())).float() for n, b in work.base.items()}
    expected = measure(work, half, work.expert_heads(), work.samples["select"])
    for task, values in found["moved"]["normals"]["metrics"].items():
        assert values[LAMBDAS.index(0.5)] == pytest.approx(expected[task], rel=1e-4)


def test_performance_is_the_experts_error_over_that_measured(found: dict[str, Any]) -> None:
    curves = found["moved"]["depth"]  # both metrics are better when lower
    for task, values in curves["metrics"].items():
        expected = [found["experts"][task] / value for value in values]
        assert curves["performance"][task] == pytest.approx(expected)


def test_points_are_kept_and_the_base_is_measured_once(
    found: dict[str, Any], workplace: Path
) -> None:
    # the experts, the base, and three points of each of two tasks
    before = set((workplace / "kept").iterdir())
    assert len(before) == 8
    loaded = load_recipe(str(workplace / "tiny.yaml"))
    again = relate(loaded, [*LAMBDAS, 1.5], workplace / "kept", progress=Silent())
    assert len(set((workplace / "kept").iterdir()) - before) == 2
    assert (
        again["moved"]["depth"]["metrics"]["depth"][:4]
        == (found["moved"]["depth"]["metrics"]["depth"])
    )


# The command


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    return invoked(
        relate_command, "simo-relate", folder, monkeypatch, "--lambdas", "0,1,-0.5", *options
    )


def test_the_command_prints_writes_and_draws(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = command(workplace, monkeypatch, "--json", "a.json", "--plot", str(workplace / "a.png"))
    assert told.exit_code == 0, told.output
    assert "| moved | lambda | depth | normals |" in told.stdout
    assert "| depth | 1 | 100.0% |" in told.stdout
    report = report_in(workplace)
    assert report["lambdas"] == [-0.5, 0.0, 1.0]
    assert report["command"] == (
        "simo-relate --recipe tiny.yaml --lambdas 0,1,-0.5 --json a.json --plot a.png"
    )
    assert (workplace / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lambdas", "0;1"], "'0;1' must be numbers with commas between them"),
        (["--lambdas", ""], "'' must be numbers with commas between them"),
        (["--lambdas", "0,nan"], "must be finite numbers"),
        (["--lambdas", "0,1,0.0"], "0 stands twice"),
        (["--plot", "a.jpg"], "a.jpg must end in one of .png, .svg, .pdf"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    told = command(workplace, monkeypatch, *options)
    assert told.exit_code == 2
    assert message in told.output


def test_without_matplotlib_a_plot_says_what_to_install(workplace: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from simo_build.cli import relate_command; relate_command()"
    )
    given = ["--recipe", "there-is-none.yaml", "--plot", "a.png"]
    told = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "needs matplotlib: pip install 'simo-runtime[plot]'" in told.stderr


def test_a_recipe_without_accuracy_is_refused(workplace: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base="random(0)", merge={}, realign=[])
    with pytest.raises(RecipeError, match="it has no accuracy"):
        relate(load_recipe(str(recipe)), LAMBDAS, tmp_path, progress=Silent())


# The table and the plot

BY_HAND = {
    "lambdas": [0.0, 1.0],
    "metrics": {"seg": "mean_iou", "depth": "absolute_error"},
    "moved": {
        "seg": {"performance": {"seg": [0.5, 1.0], "depth": [0.75, 0.625]}},
        "depth": {"performance": {"seg": [0.5, 0.25], "depth": [0.75, 1.0]}},
    },
}


def test_the_table_has_a_line_a_point() -> None:
    assert table(BY_HAND).splitlines()[2:] == [
        "| seg | 0 | 50.0% | 75.0% |",
        "| seg | 1 | 100.0% | 62.5% |",
        "| depth | 0 | 50.0% | 75.0% |",
        "| depth | 1 | 25.0% | 100.0% |",
    ]


def curves(panel: Axes) -> dict[str, list[float]]:
    shown = (line for line in panel.lines if not str(line.get_label()).startswith("_"))
    return {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in shown}


def test_the_plot_has_a_panel_a_moved_task_and_a_curve_a_task() -> None:
    figure = draw_relations(BY_HAND)
    assert [panel.get_title() for panel in figure.axes] == [
        "towards the expert of seg",
        "towards the expert of depth",
    ]
    assert curves(figure.axes[0]) == {"seg": [50.0, 100.0], "depth": [75.0, 62.5]}
    assert curves(figure.axes[1]) == {"seg": [50.0, 25.0], "depth": [75.0, 100.0]}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "seg, mean IoU",
        "depth, absolute error",
    ]


def test_the_plot_marks_the_base_and_the_expert_where_they_are_in_sight() -> None:
    def marks(lambdas: list[float]) -> list[str]:
        return [
            text.get_text()
            for text in draw_relations({**BY_HAND, "lambdas": lambdas}).axes[0].texts
        ]

    assert marks([0.0, 1.0]) == ["base", "expert"]
    assert marks([0.5, 1.5]) == ["expert"]


def test_a_task_has_one_colour_in_all_panels() -> None:
    for panel in draw_relations(BY_HAND).axes:
        drawn = {line.get_label(): to_hex(line.get_color()).upper() for line in panel.lines}
        assert (drawn["seg"], drawn["depth"]) == COLOURS[:2]
