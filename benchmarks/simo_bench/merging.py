"""How long merging takes at ViT-B shapes, against a limit and against mergekit.

    python -m simo_bench.merging --mergekit BIN --json FILE

Base and three experts with random weights are written to a temporary folder. Every round runs, in
random order and each in a fresh process: reading the inputs and writing the output once (the
limit), our merge stage, `simo-merge` as a whole, and mergekit-pytorch as a whole. Every arm ends
with its file on the disk (fsync); the page cache is warm. `--mergekit` is the program
mergekit-pytorch of an environment of its own (`pip install mergekit`); without it our arms run.
"""

import itertools
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors.torch import load_file

from simo_build.checkpoints import description, write_expert, write_tensors
from simo_build.cli import polite
from simo_build.encoder import Encoder, randomise
from simo_build.loading import load_recipe
from simo_build.merge import METHODS
from simo_build.merge.ranked import whole_vector_bounds
from simo_build.origin import command_of, origin, write_json
from simo_build.progress import Bars
from simo_build.statedict import state_hash

SCHEMA = "simo.merging/1"
TASKS = ("a", "b", "c")
CHUNK = 1 << 20  # bytes read or written at once by the limit
OURS = {"task_arithmetic": {"alpha": 0.3}, "ties": {"density": 0.2, "alpha": 1.0}}
THEIRS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"weight": 0.3},
    "ties": {"weight": 1.0, "density": 0.2},
}
# Methods that need a number, for --methods; the others are run as they are.
NEEDED: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"alpha": 0.3},
    "awd": {"alpha": 0.3},
    "consensus": {"alpha": 0.3, "threshold": 0.4},
    "dare": {"alpha": 0.3, "drop": 0.5},
    "dare_ties": {"drop": 0.5},
    "della": {"density": 0.5},
    "lines": {"beta": 0.5},
    "iso_c": {"alpha": 1.0},
    "iso_cts": {"alpha": 1.0},
}
FOR_A_GPU = ("wudi", "doge")  # hundreds of gradient steps a matrix

STAGE = """
import sys, time
from pathlib import Path
from simo_build.loading import load_recipe
from simo_build.streamed import open_inputs, write_merged
loaded = load_recipe(sys.argv[1])
began = time.perf_counter()
inputs = open_inputs(loaded)
assert inputs is not None and write_merged(loaded, inputs, Path(sys.argv[2]))
print(time.perf_counter() - began)
"""


def make_inputs(folder: Path) -> int:
    """Write base, experts and recipes at the shapes of DINOv2-base; give the weights' number."""
    loaded = load_recipe(str(write_recipe(folder, "task_arithmetic", OURS["task_arithmetic"])))
    encoder = Encoder(loaded.recipe.encoder, loaded.recipe.image)
    randomise(encoder, 0)
    base = {name: tensor.detach().clone() for name, tensor in encoder.weights().items()}
    base_hash = state_hash(base)
    write_tensors(folder / "base.safetensors", base, {})
    for seed, task in enumerate(TASKS, start=1):
        draw = torch.Generator().manual_seed(seed)
        tuned = {n: t + 0.002 * torch.randn(t.shape, generator=draw) for n, t in base.items()}
        about = description(loaded.recipe, task, base_hash)
        write_expert(folder / f"{task}.safetensors", encoder=tuned, head={}, about=about)
        write_tensors(folder / f"plain-{task}.safetensors", tuned, {"format": "pt"})
    return sum(tensor.numel() for tensor in base.values())


def write_recipe(folder: Path, method: str, params: Mapping[str, Any]) -> Path:
    """Write our recipe for one method."""
    recipe = {
        "name": "vit-base",
        "encoder": {"model": "vit_base_patch14_dinov2", "taps": [3, 6, 9, 12]},
        "base": "base.safetensors",
        "image": {"size": [280, 378]},
        "tasks": {task: {"kind": "depth", "expert": f"{task}.safetensors"} for task in TASKS},
        "merge": {"method": method, "params": dict(params)},
    }
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def write_config(folder: Path, method: str) -> Path:
    """Write mergekit's configuration for the same merge."""
    config = {
        "merge_method": method,
        "base_model": str(folder / "base.safetensors"),
        "models": [
            {"model": str(folder / f"plain-{task}.safetensors"), "parameters": THEIRS[method]}
            for task in TASKS
        ],
        "parameters": {"normalize": method == "ties"},
        "dtype": "float32",
    }
    path = folder / f"mergekit-{method}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def limit(folder: Path) -> float:
    """Read the inputs and write as many bytes as the output has, once; give the seconds."""
    sources = [folder / "base.safetensors", *(folder / f"{task}.safetensors" for task in TASKS)]
    buffer, target = bytearray(CHUNK), folder / "limit.bin"
    began = time.perf_counter()
    for source in sources:
        with source.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as file:
        for start in range(0, sources[0].stat().st_size, CHUNK):
            file.write(memoryview(buffer)[: sources[0].stat().st_size - start])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


class Ran:
    """A finished process: what it printed, its seconds from start to file, its private memory."""

    def __init__(self, command: Sequence[str], output: Path | None = None) -> None:
        self.peak, began = 0, time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        watch = threading.Thread(target=self._watch, args=(process,))
        watch.start()
        out, err = process.communicate()
        if output is not None:
            for path in [output] if output.is_file() else output.glob("*.safetensors"):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        self.seconds = time.perf_counter() - began
        watch.join()
        if process.returncode:
            raise click.ClickException(f"{shlex.join(command)}: {err.decode()[-2000:]}")
        self.out = out.decode()

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Follow the memory that is the process's own: mapped files do not count."""
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
            except OSError:  # the process ended in between
                return
            self.peak = max(self.peak, int(found.group(1)) * 1024 if found else 0)
            time.sleep(0.01)


def stage(folder: Path, recipe: Path) -> dict[str, float]:
    """Run our merge stage in a fresh process; imports are not counted."""
    ran = Ran([sys.executable, "-c", STAGE, str(recipe), str(folder / "stage.safetensors")])
    return {"seconds": float(ran.out), "private_bytes": ran.peak}


def arms(folder: Path, method: str, mergekit: str | None) -> dict[str, Callable[[], Any]]:
    """Give what is run in every round of a method."""
    recipe, ours = write_recipe(folder, method, OURS[method]), folder / "ours.safetensors"
    program = (sys.executable, "-c", "from simo_build.cli import merge_command as m; m()")
    found: dict[str, Callable[[], Any]] = {
        "limit": lambda: {"seconds": limit(folder)},
        "stage": lambda: stage(folder, recipe),
        "command": lambda: _told(Ran([*program, "--recipe", str(recipe), "-o", str(ours)], ours)),
    }
    if mergekit is not None:
        config, theirs = write_config(folder, method), folder / "theirs"
        found["mergekit"] = lambda: _told(
            Ran([mergekit, "--quiet", str(config), str(theirs)], theirs)
        )
    return found


def _told(ran: Ran) -> dict[str, float]:
    return {"seconds": ran.seconds, "private_bytes": ran.peak}


def compare(folder: Path, method: str, mergekit: str | None, rounds: int) -> dict[str, Any]:
    """Run all arms of a method in every round, in random order."""
    found, draw = arms(folder, method, mergekit), random.Random(0)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in found}
    for _ in Bars().track(range(rounds + 1), method, total=rounds + 1):  # the first one warms up
        for name in draw.sample(sorted(found), len(found)):
            samples[name].append(found[name]())
    kept = {name: rows[1:] for name, rows in samples.items()}
    pairs = [("stage", "limit"), ("mergekit", "command")]
    return {
        "method": method,
        "samples": kept,
        "ratios": {f"{a} / {b}": ratio(kept[a], kept[b]) for a, b in pairs if a in kept},
        "difference": difference(folder) if mergekit else None,
    }


def ratio(above: Sequence[Mapping[str, float]], below: Sequence[Mapping[str, float]]) -> Any:
    """Give the ratio of the medians, and the ratios of the rounds from least to most."""
    seconds = [[row["seconds"] for row in rows] for rows in (above, below)]
    paired = sorted(a / b for a, b in zip(*seconds, strict=True))
    medians = [statistics.median(one) for one in seconds]
    return {"of_medians": medians[0] / medians[1], "paired": paired}


def difference(folder: Path) -> float:
    """Give the largest difference of a weight between mergekit's file and ours."""
    ours = load_file(folder / "ours.safetensors")
    files = [load_file(path) for path in (folder / "theirs").glob("*.safetensors")]
    theirs = dict(itertools.chain.from_iterable(one.items() for one in files))
    return max(float((ours[f"encoder.{n}"] - t).abs().max()) for n, t in theirs.items())


def thresholds(folder: Path, density: float) -> dict[str, list[float]]:
    """Give the magnitudes at which whole-vector ties trims each task: streamed, and by a sort."""
    base = load_file(folder / "base.safetensors")
    tuned = [load_file(folder / f"plain-{task}.safetensors") for task in TASKS]
    deltas = [{name: one[name] - base[name] for name in base} for one in tuned]
    streamed = whole_vector_bounds(deltas, dict.fromkeys(base, density))
    by_sort = []
    for delta in deltas:
        whole = torch.cat([delta[name].abs().flatten() for name in base]).sort().values
        by_sort.append(float(whole[len(whole) - round(density * len(whole))]))
    return {"streamed": streamed.tolist(), "sorted": by_sort}


def every_method(folder: Path) -> dict[str, dict[str, float]]:
    """Run every data-free method that is not for a GPU once; give seconds and private memory."""
    found = {}
    names = [n for n, one in METHODS.items() if not one.needs and n not in FOR_A_GPU]
    for name in Bars().track(sorted(names), "methods", total=len(names)):
        found[name] = stage(folder, write_recipe(folder, name, NEEDED.get(name, {})))
    return found


def table(found: Mapping[str, Any]) -> str:
    """Lay the result out in Markdown."""
    lines = ["| method | arm | seconds (median, least to most) | private memory |"]
    lines += ["| --- | --- | ---: | ---: |"]
    for one in found["compared"]:
        for arm, rows in one["samples"].items():
            times = sorted(row["seconds"] for row in rows)
            memory = max((row.get("private_bytes", 0) for row in rows), default=0)
            lines.append(
                f"| {one['method']} | {arm} | {statistics.median(times):.2f} "
                f"({times[0]:.2f} to {times[-1]:.2f}) | {memory / 1e6:.0f} MB |"
            )
        for name, value in one["ratios"].items():
            ends = value["paired"][0], value["paired"][-1]
            lines.append(
                f"| {one['method']} | **{name}** | {value['of_medians']:.2f} "
                f"({ends[0]:.2f} to {ends[1]:.2f}) | |"
            )
    for name, row in found["methods"].items():
        memory = row["private_bytes"] / 1e6
        lines.append(f"| {name} | stage | {row['seconds']:.1f} | {memory:.0f} MB |")
    return "\n".join(lines)


@click.command()
@click.option("--mergekit", type=click.Path(exists=True, dir_okay=False), help="mergekit-pytorch")
@click.option("--rounds", type=click.IntRange(min=0), default=7, show_default=True)
@click.option("--methods/--no-methods", default=True, help="Also run every other method once.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@polite
def main(mergekit: str | None, rounds: int, methods: bool, json_file: Path | None) -> None:
    """Time merging at ViT-B shapes: base and three experts in float32."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = make_inputs(folder)
        about = origin(command_of("python -m simo_bench.merging"))
        about["versions"]["mergekit"] = mergekit and mergekit_version(mergekit)
        found = {
            "schema": SCHEMA,
            **about,
            "weights": weights,
            "thresholds": thresholds(folder, OURS["ties"]["density"]),
            "compared": [compare(folder, one, mergekit, rounds) for one in OURS if rounds],
            "methods": every_method(folder) if methods else {},
            "threads": torch.get_num_threads(),
        }
    click.echo(table(found))
    if json_file is not None:
        write_json(found, json_file)


def mergekit_version(program: str) -> str:
    """Ask mergekit's own environment."""
    code = "from importlib.metadata import version as v; print(v('mergekit'), 'torch', v('torch'))"
    python = Path(program).with_name("python")
    told = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()


if __name__ == "__main__":
    main()
