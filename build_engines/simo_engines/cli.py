"""simo-engines: TensorRT engines of a bundle, on the machine that will run them.

Heavy imports wait until it runs. PyTorch is not needed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simo_runtime.errors import BackendError, SimoError

if TYPE_CHECKING:
    from simo_engines.engine import Telling
    from simo_runtime.bundle import Bundle
    from simo_runtime.engines import BatchRange, EngineOptions

HARDWARE = ("this", "same_compute_capability", "ampere_plus")
PHOTOS = {".jpg", ".jpeg", ".png", ".webp"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", help="Precisions, separated by commas.  [default: all in the bundle]")
@click.option(
    "--graphs", help="encoder, joint and tasks, separated by commas.  [default: all there are]"
)
@click.option(
    "--batches",
    default="1:1:8",
    show_default=True,
    metavar="SMALLEST:TUNED:LARGEST",
    help="The batch sizes that engines take, and the one that they are tuned for.",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="MIB",
    help="Scratch memory that kernels may take.",
)
@click.option("--tf32", is_flag=True, help="Multiply float32 with 10 bits: faster, less exact.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Newer TensorRT may run the engines too; they are slower and hold code for the processor.",
)
@click.option(
    "--hardware",
    type=click.Choice(HARDWARE),
    default="this",
    show_default=True,
    help="Which other GPUs may run the engines.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder of photos for the gate, at most 16 are used.  [default: made-up images]",
)
@click.option(
    "--engines",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of all engines; only you may own it.  [default: in your cache]",
)
def main(
    bundle: Path,
    precision: str | None,
    graphs: str | None,
    batches: str,
    workspace: int,
    tf32: bool,
    version_compatible: bool,
    hardware: Any,
    images: Path | None,
    root: Path | None,
) -> None:
    """Build the TensorRT engines of BUNDLE, check them on the GPU, and keep them.

    Engines are found again by a key of graph, weights, TensorRT, GPU, driver and these options.
    Each must give what its graph gives on the CPU, or it is not kept. Prints a line an engine.
    """
    try:
        from simo_runtime.bundle import Bundle
        from simo_runtime.engines import EngineOptions

        options = EngineOptions(
            batches=parse_batches(batches),
            workspace_mib=workspace,
            tf32=tf32,
            version_compatible=version_compatible,
            hardware=hardware,
        )
        opened = Bundle.open(bundle)
        wanted = list(choose(opened, precision, graphs))
        for line in build(opened, wanted, options=options, images=images, root=root):
            click.echo(line)
    except SimoError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error


def parse_batches(text: str) -> "BatchRange":
    """Read SMALLEST:TUNED:LARGEST."""
    from simo_runtime.engines import BatchRange

    try:
        smallest, tuned, largest = (int(part) for part in text.split(":"))
    except ValueError as error:
        raise BackendError(
            f"--batches is {text!r}; it must be three numbers, smallest:tuned:largest"
        ) from error
    return BatchRange(smallest=smallest, tuned=tuned, largest=largest)


def choose(
    bundle: "Bundle", precision: str | None, graphs: str | None
) -> Iterator[tuple[str, str]]:
    """Give precision and name of every graph that is wanted; UnknownNameError for one not there."""
    for kind in _named(precision) or list(bundle.manifest.graphs):
        for name in _named(graphs) or list(bundle.manifest.graph_files(kind).named()):
            bundle.graph(name, kind)
            yield kind, name


def _named(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def build(
    bundle: "Bundle",
    wanted: list[tuple[str, str]],
    *,
    options: "EngineOptions",
    images: Path | None = None,
    root: Path | None = None,
) -> Iterator[str]:
    """Build engine after engine; give a line for each."""
    from simo_engines.engine import find_engine
    from simo_engines.gate import Reference, pixels_for

    reference = Reference(bundle, pixels_for(bundle, photos_in(images) if images else []))
    for precision, name in wanted:
        found = find_engine(
            bundle,
            name,
            reference,
            options=options,
            precision=precision,
            root=root,
            telling=telling(),
        )
        yield f"{name} {precision}: {found.path}"


def photos_in(folder: Path) -> list[Path]:
    """List the photos of a folder, at most 16."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTOS)
    if not found:
        raise BackendError(f"{folder}: there is no photo in it ({', '.join(sorted(PHOTOS))})")
    return found[:16]


def telling() -> "Telling":
    """Tell on stderr: lines, and on a terminal how far a phase is."""
    from simo_engines.engine import Telling

    def say(line: str) -> None:
        click.echo(line, err=True)

    def steps(phase: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K  {phase[:60]} {done}/{total}", err=True, nl=done >= total)

    return Telling(say, steps)


if __name__ == "__main__":
    main()
