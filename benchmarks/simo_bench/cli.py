"""simo-bench: what does one pass gain, on this machine?  Heavy imports wait until it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simo_build.cli import polite

if TYPE_CHECKING:
    from simo_bench.devices import Device
    from simo_bench.latency import Options

LAYERS = 15  # that --limits shows


def _listed(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if value else ()


def _numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...]:
    found = _listed(context, parameter, value)
    if not all(one.isdigit() and int(one) for one in found):
        raise click.BadParameter(f"{value!r}; batch sizes are whole numbers, such as 1,2,4")
    return tuple(int(one) for one in found)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", help="By default the first that can run here.")
@click.option("--precision", default="fp32", show_default=True, help="One that the bundle has.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all that are available]"
)
@click.option("--tasks", callback=_listed, help="By default all of the bundle's.")
@click.option(
    "--arms",
    callback=_listed,
    help="What is timed, separated by commas: joint, split, sequential, concurrent (the default), "
    "torch_eager, torch_compile.",
)
@click.option("--rounds", type=click.IntRange(min=2), default=20, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="More rounds are timed until so many seconds are over, in each process.",
)
@click.option(
    "--longest",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds after which a process starts no more rounds.",
)
@click.option("--warm-up", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--batches",
    callback=_numbers,
    default="1,2,4",
    show_default=True,
    help="Batch sizes of the throughput; none with an empty text.",
)
@click.option("--memory/--no-memory", default=True, help="Measure memory, one process an arm.")
@click.option(
    "--photo",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The photo of the stages.  [default: one is drawn, 1280 x 960]",
)
@click.option("--who", default="the project", show_default=True, help="Who measures; kept in JSON.")
@click.option("--limits", is_flag=True, help="Count operations and bytes; time nothing.")
@click.option("--layers", is_flag=True, help=f"With --limits: every layer, not only {LAYERS}.")
@click.option(
    "--device",
    help="The device of the limits: here (measured), a100, h100, h200, l4, rtx4090, t4.  "
    "[default: here]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write everything, raw samples too, to this file.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a page with plots to this file.",
)
@polite
def main(
    bundle: Path,
    limits: bool,
    layers: bool,
    device: str | None,
    json_file: Path | None,
    html_file: Path | None,
    **chosen: Any,
) -> None:
    """Time one pass of BUNDLE with all its heads against one model per task.

    The models of single tasks are those that simo-build --with-experts has written beside the
    bundle, or copies of its parts. All arms run in one process in random order, and again in fresh
    processes; an arm whose outputs are wrong gets no time. It takes some minutes.
    """
    from simo_bench.devices import device_for
    from simo_runtime.cpus import available_cpus

    threads = chosen["threads"] or available_cpus()
    if limits:
        found = device_for(device, chosen["backend"], threads=threads)
        click.echo(_limits(bundle, chosen["precision"], found, layers))
        return
    from simo_bench.latency import bench
    from simo_bench.tables import table
    from simo_build.origin import command_of, write_json

    named = device_for(device, chosen["backend"], threads=threads) if device else None
    options = _options(chosen, named)
    if html_file is not None:
        from simo_bench.webpage import write_page  # a missing matplotlib is told before the work
    document = bench(bundle, options, command=command_of("simo-bench"), tell=_progress)
    _progress("")
    click.echo(table(document))
    if json_file is not None:
        write_json(document, json_file)
    if html_file is not None:
        write_page([document], html_file)


def _options(chosen: dict[str, Any], device: "Device | None") -> "Options":
    from simo_bench.latency import Options
    from simo_bench.setup import USUAL

    arms = chosen.pop("arms") or USUAL
    return Options(**chosen, arms=arms, device=device)


def _limits(bundle: Path, precision: str, device: "Device", layers: bool) -> str:
    from simo_bench.limits import counted, limits_table
    from simo_runtime.bundle import Bundle

    counts = counted(Bundle.open(bundle), precision=precision)
    return limits_table(counts, device, layers=None if layers else LAYERS)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{line}", err=True, nl=False)
    elif line:
        click.echo(line, err=True)
