"""simo-infer: pictures in, predictions on disk.  Heavy imports wait until it runs."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simo_runtime.errors import BundleError, SimoError

if TYPE_CHECKING:
    from simo_runtime.backends import Joint
    from simo_runtime.pipeline import Outcome, Pipeline
    from simo_runtime.predictor import Predictor
    from simo_runtime.sinks import Sink
    from simo_runtime.sources import Source

BUNDLES = Path("bundles")
FEW = 20  # pictures, each of which is summed up in words
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the options ask for."""

    what: tuple[str, ...]
    bundle: Path | None
    tasks: str | None
    out: Path
    forms: tuple[str, ...]
    video: Path | None
    lines: str | None
    backend: str | None
    precision: str
    joint: str
    threads: int | None
    batch: int
    frames: tuple[int, int] | None
    self_test: bool

    def names(self) -> list[str] | None:
        """Give the names of the tasks, None for all."""
        return None if self.tasks is None else [name.strip() for name in self.tasks.split(",")]


def _frames(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Read WIDTHxHEIGHT as (height, width)."""
    if value is None:
        return None
    wide, _, high = value.partition("x")
    if not all(side.isascii() and side.isdigit() and 0 < len(side) < 7 for side in (wide, high)):
        raise click.BadParameter(f"{value!r}; it must be WIDTHxHEIGHT, as in 640x480")
    return int(high), int(wide)


def _forms(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(form.strip() for form in value.split(",") if form.strip()))


@click.command()
@click.argument("images", nargs=-1)
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
    "--write",
    "forms",
    default="npy,jpg",
    show_default=True,
    callback=_forms,
    help="What to write for each picture: npy (values), png (values in 8 or 16 bits, depth in mm), "
    "jpg (colours over the photo), colour (colours alone), overlay (one picture with legends).",
)
@click.option(
    "--video",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write overlays as a video.",
)
@click.option(
    "--json",
    "lines",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Also write statistics, a line of JSON for each picture; - for standard output.",
)
@click.option("--backend", help="What to run on.  [default: the first that can run here]")
@click.option("--precision", default="fp32", show_default=True, help="One that the bundle has.")
@click.option(
    "--joint",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Run all tasks in one graph; auto times it once on a machine.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all that are available]"
)
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1024),
    default=1,
    show_default=True,
    help="Pictures in one pass: more for throughput on a GPU, 1 for the shortest delay.",
)
@click.option(
    "--frames", callback=_frames, metavar="WxH", help="Size of raw RGB frames from standard input."
)
@click.option(
    "--self-test/--no-self-test",
    default=True,
    show_default=True,
    help="See once on a machine that the bundle says what it said when it was built.",
)
@click.option("--doctor", is_flag=True, help="Say what of this machine can be used, and stop.")
def main(images: tuple[str, ...], doctor: bool, **options: object) -> None:
    """Predict every task for IMAGES with one pass through the shared encoder.

    IMAGES are pictures, folders, patterns, videos, camera:0, rtsp://..., or - for raw RGB frames
    from standard input.

    Values are: classes uint8; depth float32 in metres; normals float32 unit vectors, x right,
    y down, z forward; other kinds float32.
    """
    wish = Wish(what=images, **options)  # type: ignore[arg-type]  # click has checked them
    try:
        if doctor:
            examine(wish)
            return
        if not images:
            raise click.UsageError("Missing argument 'IMAGES...'.")
        with _stoppable() as stops:
            code = _code(wish, stops)
    except BrokenPipeError:  # nobody reads on, as in `| head`: click ends without a word
        raise
    except ImportError as error:  # of OpenCV or numpy, which everything needs
        raise click.ClickException(f"{error}; simo-infer --doctor says what to install") from error
    except (SimoError, OSError) as error:
        raise click.ClickException(_told(error)) from error
    sys.exit(code)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at SIGTERM as at Ctrl-C, and note the signals that came.

    What somebody else has set up for a signal stays.
    """
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number, usual in USUAL.items()
        if signal.getsignal(number) == usual
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _code(wish: Wish, stops: Sequence[int]) -> int:
    """Run, and give the exit code; of a run that was stopped, that which shells give it."""
    try:
        code = run(wish)
    except (KeyboardInterrupt, ImportError) as error:
        # An import that is interrupted may end with an error of its own.
        if isinstance(error, ImportError) and not stops:
            raise
        click.echo("Stopped", err=True)
        code = None
    return code if code is not None else 128 + (stops[0] if stops else signal.SIGINT)


def _told(error: SimoError | OSError) -> str:
    """Say what is wrong; errors of standard output alone have no name of a file."""
    if isinstance(error, OSError):
        return f"{error.filename or 'standard output'}: {error.strerror or error}"
    return str(error)


def examine(wish: Wish) -> None:
    """Print what the doctor finds; with --bundle, also whether it opens."""
    from simo_runtime.doctor import examine, table

    click.echo(table(examine(wish.bundle)))


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


def run(wish: Wish) -> int | None:
    """Predict and write picture by picture; give the exit code, None if it was stopped."""
    if isinstance(sys.stdout, TextIOWrapper):  # it must take every file name, and JSON is UTF-8
        encoding = "utf-8" if wish.lines == "-" else None
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")
    # FFmpeg's own lines would stand between ours; what is wrong is said by the error.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from simo_runtime.sources import find

    bundle = wish.bundle or only_bundle()
    # Unbuffered: a thread that waits in a buffer of Python's would hold up the end of the process.
    stdin = FileIO(0, closefd=False) if "-" in wish.what else None
    source = find(wish.what, size=wish.frames, stdin=stdin)
    sinks = _sinks(wish, source)
    lanes = _lanes(wish, source)
    with _open(wish, bundle, source, lanes) as predict:
        if predict.bundle.manifest.random_weights:
            click.echo(f"Note: {bundle} has random weights, its predictions mean nothing", err=True)
        pipeline = _pipeline(wish, predict, sinks, lanes)
        return _watched(wish, pipeline, source, sinks)


def _open(wish: Wish, bundle: Path, source: "Source", lanes: int) -> "Predictor":
    from simo_runtime.predictor import Predictor

    # Timing two ways to run is not worth it for a picture or two.
    few = source.total is not None and source.total < FEW
    joint: Joint = False if few else "auto"
    return Predictor.open(
        bundle,
        backend=wish.backend,
        precision=wish.precision,
        joint=joint if wish.joint == "auto" else wish.joint == "yes",
        threads=wish.threads or (1 if lanes > 1 else None),
        self_test="once" if wish.self_test else False,
    )


def _lanes(wish: Wish, source: "Source") -> int:
    """Give the passes that run at the same time: on CPUs one each, if there is enough to do."""
    from simo_runtime.cpus import available_cpus

    cpus = available_cpus()
    many = not source.live and (source.total is None or source.total >= 2 * cpus)
    alone = wish.threads is None and wish.batch == 1
    return cpus if many and alone and wish.backend in (None, "onnxruntime-cpu") else 1


def _pipeline(wish: Wish, predict: "Predictor", sinks: Sequence["Sink"], lanes: int) -> "Pipeline":
    import cv2

    from simo_runtime.pipeline import Pipeline

    if lanes > 1:
        cv2.setNumThreads(1)  # every CPU has a picture of its own already
    reduced = not any(sink.draws for sink in sinks)
    names = wish.names()
    return Pipeline(
        predict, tasks=names, sinks=sinks, batch=wish.batch, lanes=lanes, reduced=reduced
    )


def _sinks(wish: Wish, source: "Source") -> list["Sink"]:
    from simo_runtime.sinks import Forms, Lines, Video

    sinks: list[Sink] = [Forms(wish.out, wish.forms)]
    if wish.video is not None:
        sinks.append(Video(wish.video, source.rate))
    if wish.lines is not None:
        sinks.append(Lines(sys.stdout if wish.lines == "-" else Path(wish.lines)))
    return sinks


def _watched(
    wish: Wish, pipeline: "Pipeline", source: "Source", sinks: Sequence["Sink"]
) -> int | None:
    """Run, tell how far it is, and keep what is done when somebody stops it."""
    from simo_runtime.progress import Progress

    progress = Progress(source.total, _stderr, terminal=sys.stderr.isatty(), few=FEW)
    stopped = False
    few = source.total is not None and source.total < FEW
    try:
        with closing(pipeline.run(source)) as outcomes:
            for outcome in outcomes:
                progress.one(outcome)
                if outcome.error is not None:
                    progress.say(f"Error: {outcome.error}")
                elif wish.lines != "-":
                    tell(outcome, wish, in_words=few)
    except KeyboardInterrupt:
        stopped = True
    finally:
        files, errors = _finish(sinks)
        for told in errors:
            progress.say(f"Error: {told}")
        for path in files:
            click.echo(f"{path}", err=wish.lines == "-")
    progress.end(interrupted=stopped)
    return None if stopped else 1 if progress.failed or errors else 0


def _finish(sinks: Sequence["Sink"]) -> tuple[list[Path], list[str]]:
    """Close every sink, also after one that cannot be; give the files and what went wrong."""
    files: list[Path] = []
    errors: list[str] = []
    for sink in sinks:
        try:
            files += sink.close()
        except (SimoError, OSError) as error:
            errors.append(_told(error))
    return files, errors


def tell(outcome: "Outcome", wish: Wish, *, in_words: bool) -> None:
    """Print what was predicted, and where it is (as a pattern that a shell expands)."""
    scene = outcome.scene or {}
    target = wish.out / outcome.frame.name
    names = [prediction.task.name for prediction in scene.values()]
    forms = ["colour.png" if form == "colour" else form for form in wish.forms if form != "overlay"]
    written = [f"{target}.{_either(names)}.{_either(forms)}"] if forms else []
    written += [f"{target}.overlay.png"] if "overlay" in wish.forms else []
    click.echo(f"{outcome.frame.origin} -> {' '.join(written) or 'done'}")
    for prediction in scene.values() if in_words else ():
        click.echo(f"  {prediction.task.name:<10}{prediction.summary()}")


def _stderr(text: str, end: bool) -> None:
    click.echo(text, err=True, nl=end)


def _either(names: Sequence[str]) -> str:
    return f"{{{','.join(names)}}}" if len(names) > 1 else names[0]
