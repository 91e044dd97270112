"""Pictures of the latency reports in benchmarks/results, for docs/images.

python -m simo_bench.pictures            # draw them anew
"""

from pathlib import Path

import click

from simo_bench import curve
from simo_bench.check import COMMITTED, read
from simo_bench.drawing import stages_figure, throughput_figure
from simo_build.cli import polite
from simo_build.plots import save

FOLDER = COMMITTED.parents[1] / "docs" / "images"
REPORTS = ("latency-vit-tiny", "latency-vit-base")


def draw(folder: Path) -> list[Path]:
    """Draw stages and throughput of every report, and the curves; give the files."""
    made = []
    for name in REPORTS:
        document = read(COMMITTED / f"{name}.json")
        for what, figure in (("stages", stages_figure), ("throughput", throughput_figure)):
            made.append(folder / f"{name}-{what}.png")
            save(figure(document), made[-1])
    made.append(folder / "tasks.png")
    curve.draw(read(COMMITTED / "latency-tasks.json"), made[-1])
    return made


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    help="Where they go.  [default: docs/images]",
)
@polite
def main(out: Path) -> None:
    """Draw the pictures of the latency reports."""
    for path in draw(out):
        click.echo(path)


if __name__ == "__main__":
    main()
