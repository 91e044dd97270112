"""How the experts of a recipe were trained: what `simo-train` came to, epoch by epoch.

    python -m simo_bench.trained --recipe nyuv2-vit-tiny --data DATA --json FILE --plot PICTURE

Everything is read from the experts' own files: every phase's metric on `select` before it and after
each of its epochs, which epoch stayed, images and steps. Nothing is trained or measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from simo_build.checkpoints import Expert
from simo_build.cli import (
    STAGES,
    data_option,
    experts_option,
    finish,
    json_option,
    polite,
    recipe_option,
)
from simo_build.cli.options import plot_option
from simo_build.costs import counted, of_expert
from simo_build.evaluate import shown, titled
from simo_build.loading import load_recipe
from simo_build.progress import Bars
from simo_build.report import described
from simo_build.stages import Stages
from simo_build.workshop import Workshop
from simo_runtime.errors import CheckpointError

SCHEMA = "simo.trained/1"
# In the order of training, and how a picture calls them.
PHASES = {"head": "the head alone", "full": "encoder and head"}
Row = dict[str, Any]


def row_of(expert: Expert, metric: str) -> Row:
    """Describe how one expert was trained; CheckpointError if its file does not say it."""
    phases = expert.about.get("select") or {}
    if missing := [name for name in PHASES if name not in phases]:
        raise CheckpointError(
            f"{expert.source}: does not say how it was trained: its record of `select` has no "
            f"{missing[0]!r}; the experts that simo-train writes do"
        )
    return {
        "task": expert.task,
        "metric": metric,
        "phases": {name: phases[name] for name in PHASES},
        **of_expert(expert).plain(),
    }


def run(work: Workshop) -> dict[str, Any]:
    """Read how all experts were trained; give the whole document."""
    metrics = {task: spec.metric for task, spec in work.recipe.specs().items()}
    rows = [row_of(expert, metrics[task]) for task, expert in work.experts.items()]
    settings = work.recipe.train.model_dump(mode="json")
    return {
        **described(work, SCHEMA, "python -m simo_bench.trained"),
        "settings": settings,
        "rows": rows,
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay out what every phase came to, in Markdown."""
    lines = [
        "| expert, on `select` | new head | head trained | all trained | best epochs | images "
        "| steps |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: |",
    ]
    for row in found["rows"]:
        phases, metric = row["phases"], row["metric"]
        values = [phases["head"]["history"][0], *(phases[name]["metric"] for name in PHASES)]
        best = [f"{phases[name]['epoch']} of {len(phases[name]['history']) - 1}" for name in PHASES]
        cells = [
            f"{row['task']}, {titled(metric)}",
            *(shown(value, metric) for value in values),
            ", ".join(best),
            counted(row["images"]),
            f"{row['steps']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@recipe_option
@json_option("the record, with hashes and versions")
@plot_option("the metric of every epoch, one panel for each expert")
@data_option
@experts_option
@polite
def main(
    recipe: str, json_file: Path | None, plot_file: Path | None, data: Path | None, experts: Path
) -> None:
    """Show how the experts of a recipe were trained."""
    loaded = load_recipe(recipe, data=data, experts=experts)
    found = run(Workshop(loaded, Stages(STAGES, Bars())))
    finish(found, table(found), json_file)
    if plot_file is not None:
        from simo_bench.epochs import draw  # matplotlib is not in every install
        from simo_build.plots import save

        save(draw(found), plot_file)


if __name__ == "__main__":
    main()
