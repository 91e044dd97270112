"""simo-infer: photos in, predictions on disk.  Heavy imports wait until it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simo_runtime.errors import BundleError, ImageError, SimoError

if TYPE_CHECKING:
    from simo_runtime.predictor import Prediction

BUNDLES = Path("bundles")


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle to run; by default the one under ./bundles, if there is exactly one.",
)
@click.option("--tasks", help="Tasks to run, separated by commas; by default all of them.")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("predictions"),
    show_default=True,
    help="Folder to write to.",
)
@click.option(
    "--raw",
    type=click.Choice(["npy", "png"]),
    default="npy",
    show_default=True,
    help="Form of the raw values; png is 8-bit classes, 16-bit millimetres, 8-bit normals, ...",
)
def main(
    images: tuple[Path, ...], bundle: Path | None, tasks: str | None, out: Path, raw: str
) -> None:
    """Predict every task for IMAGES with one pass through the shared encoder.

    Writes <image>.<task>.npy (classes uint8; depth float32 in metres; normals float32 unit vectors,
    x right, y down, z forward; other kinds float32) and <image>.<task>.jpg, a coloured picture,
    for each task.
    """
    try:
        failed = run(images, bundle or only_bundle(), tasks=tasks, out=out, raw=raw)
    except SimoError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or out}: {error.strerror or error}") from error
    sys.exit(1 if failed else 0)


def only_bundle() -> Path:
    """Give the one bundle under ./bundles, or say what to do."""
    found = sorted(path.parent for path in BUNDLES.glob("[!.]*/manifest.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise BundleError(
            "there is no bundle under ./bundles: build one with simo-build, or give --bundle"
        )
    names = ", ".join(str(path) for path in found)
    raise BundleError(
        f"there are {len(found)} bundles under ./bundles: give --bundle, one of {names}"
    )


def run(images: Sequence[Path], bundle: Path, *, tasks: str | None, out: Path, raw: str) -> int:
    """Predict and write image by image; give the number of images that could not be read."""
    from simo_runtime.predictor import Predictor
    from simo_runtime.sinks import names_of, write

    stems = names_of(images)
    wanted = None if tasks is None else [name.strip() for name in tasks.split(",")]
    failed = 0
    with Predictor.open(bundle) as predict:
        if predict.bundle.manifest.random_weights:
            click.echo(f"Note: {bundle} has random weights, its predictions mean nothing", err=True)
        for task in wanted or []:
            predict.bundle.manifest.task(task)  # a wrong name stops before any work
        for image, stem in zip(images, stems, strict=True):
            try:
                predictions = predict(image, tasks=wanted)
            except ImageError as error:
                click.echo(f"Error: {error}", err=True)
                failed += 1
                continue
            for prediction in predictions.values():
                write(prediction, out, stem, raw=raw)
            tell(image, out / stem, list(predictions.values()), raw)
    return failed


def tell(image: Path, target: Path, predictions: Sequence["Prediction"], raw: str) -> None:
    """Print what was predicted, and where it is (as a pattern that a shell expands)."""
    names = ",".join(prediction.task.name for prediction in predictions)
    tasks = f"{{{names}}}" if len(predictions) > 1 else names
    click.echo(f"{image} -> {target}.{tasks}.{{{raw},jpg}}")
    for prediction in predictions:
        click.echo(f"  {prediction.task.name:<10}{prediction.summary()}")
