"""simo-export: a finished model of one's own into a bundle, or a bundle into a Triton repository.

Heavy imports wait until it runs; a repository needs no PyTorch.
"""

from pathlib import Path

import click
from click.core import ParameterSource

from simo_build.cli import data_option, in_one_process, polite
from simo_runtime.errors import ExportError

ALONE = ("out", "data")  # options of a model file; all others are of --triton


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the bundle.  [default: bundles/<name in the file>]",
)
@data_option
@click.option(
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the bundle SOURCE into this repository of NVIDIA's Triton server.",
)
@click.option(
    "--name", default="simo", show_default=True, help="What its models' names start with."
)
@click.option("--precision", default="fp32", show_default=True, help="One that the bundle has.")
@click.option(
    "--form",
    type=click.Choice(["onnx", "plan"]),
    default="onnx",
    show_default=True,
    help="plan: this machine's engines, from simo-engines.",
)
@click.option(
    "--gpu", type=click.IntRange(min=0), default=0, show_default=True, help="The one GPU."
)
@click.option("--cpu", is_flag=True, help="Serve on the processor.")
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--max-batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--tensorrt", help="The plans' version, where this machine has several.")
@click.option(
    "--engines",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of all engines.  [default: in your cache]",
)
@polite
@in_one_process
def export_command(
    source: Path,
    out: Path | None,
    data: Path | None,
    triton: Path | None,
    name: str,
    precision: str,
    form: str,
    gpu: int,
    cpu: bool,
    instances: int,
    max_batch: int,
    tensorrt: str | None,
    engines: Path | None,
) -> None:
    """Export SOURCE: a model file with your own encoder and heads becomes a bundle.

    With --triton, SOURCE is a bundle, and becomes models of a Triton repository. Prints the
    bundle's path, or the models'.
    """
    refuse_idle(triton is not None)
    if triton is None:
        from simo_build.own.export import export_own
        from simo_build.progress import Bars

        click.echo(export_own(source, out, data=data, progress=Bars()).root)
        return
    from simo_export.triton import TritonOptions, write_repository
    from simo_runtime.bundle import Bundle

    options = TritonOptions(
        name=name,
        precision=precision,
        form="plan" if form == "plan" else "onnx",
        gpu=None if cpu else gpu,
        instances=instances,
        max_batch=max_batch,
        tensorrt=tensorrt,
        engines=engines,
    )
    for folder in write_repository(Bundle.open(source), triton, options):
        click.echo(folder)


def refuse_idle(triton: bool) -> None:
    """Refuse an option that has no effect."""
    context = click.get_current_context()
    given = [
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    for name in given:
        if name not in ("source", "triton") and (name in ALONE) == triton:
            needed = "without --triton" if name in ALONE else "with --triton"
            raise ExportError(f"--{name.replace('_', '-')} has an effect only {needed}")
    if "gpu" in given and "cpu" in given:
        raise ExportError("give --gpu or --cpu, not both")
