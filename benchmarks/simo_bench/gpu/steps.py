"""The steps of run_all.sh, in order of value, with what each needs."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES = 8  # of one step
SPARE = 60  # seconds of them in which no more items begin
BUILD = ("click", "pydantic", "yaml", "safetensors", "tqdm", "timm", "torch")
EXPORT = (*BUILD, "onnx", "onnxscript", "onnxruntime")
PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command in a process of its own. `needs` are modules, `data` whether it reads data."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    data: bool = False
    gpu: bool = False  # whether it means nothing without one

    @property
    def file(self) -> str:
        """The name of its files, without their ending."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where everything lies, and how large it is to be."""

    out: Path
    tiny: bool = False
    data: Path | None = None
    experts: Path = Path("experts")
    recipe: str = "nyuv2-vit-tiny"

    @property
    def work(self) -> Path:
        """The folder of bundles and recipes that are made on the way."""
        return self.out / "work"

    def steps(self) -> list[Step]:
        """Give all steps in their order."""
        parts = (self._correctness(), self._passes(), self._backends(), self._accuracy())
        found = [step for part in parts for step in part]
        return [*found, self._items("merging-times")]

    def _items(self, name: str, *, gpu: bool = False) -> Step:
        out = self.out / f"{name.replace(' ', '-')}.json"
        seconds = 60 * MINUTES - SPARE
        command = [
            *(sys.executable, "-m", "simo_bench.gpu.step", name, "--out", str(out)),
            *("--work", str(self.work), "--seconds", str(seconds)),
        ]
        return Step(
            name=name,
            command=(*command, *(["--tiny"] if self.tiny else [])),
            needs=("torch",) if name == "roofline" else BUILD,
            gpu=gpu,
        )

    def _correctness(self) -> Iterator[Step]:
        yield self._items("roofline")
        report = self.out / "tests-gpu.xml"
        tests = ("tests/test_merge_gpu.py", "tests/test_gpu.py") if self.tiny else ("tests",)
        yield Step(
            name="tests-gpu",
            command=(
                *(sys.executable, "-m", "pytest", *tests, "-m", "gpu", "-q", "-p"),
                *("no:cacheprovider", "-n0", f"--junitxml={report}"),
            ),
            needs=("pytest", "xdist", *BUILD),
            gpu=True,
        )
        yield self._items("merging-equal")
        yield self._items("gates")

    def _passes(self) -> Iterator[Step]:
        """The latency question in PyTorch: first what the bars ask for."""
        heads = ("linear",) if self.tiny else ("linear", "dpt_small")
        ways = ("eager",) if self.tiny else ("compile", "eager", "aot")
        for one in heads:
            for precision in PRECISIONS:
                for way in ways:
                    yield self._items(f"passes {one} {precision} {way}")
            if one == "linear":
                yield self._items("profile")

    def _backends(self) -> Iterator[Step]:
        """The same with the runtime's own backends: the study over tasks, on each of them."""
        names = ("onnxruntime-cpu",) if self.tiny else BACKENDS
        for backend in names:
            for heads in ("linear",) if self.tiny else ("linear", "dpt_small"):
                for precision in ("fp32",) if self.tiny else ("fp32", "fp16"):
                    yield self._backend(backend, heads, precision)

    def _backend(self, backend: str, heads: str, precision: str) -> Step:
        name = f"tasks {backend} {heads} {precision}"
        toy = ("--tasks", "1", "--rounds", "2", "--processes", "1", "--threads", "1")
        shape = "toy" if self.tiny else "vit_base"
        return Step(
            name=name,
            command=(
                *(sys.executable, "-m", "simo_bench.curve", "--shapes", shape, "--heads", heads),
                *("--backend", backend, "--precision", precision),
                *("--work", str(self.work / name.replace(" ", "-"))),
                *("--json", str(self.out / f"{name.replace(' ', '-')}.json")),
                *(toy if self.tiny else ()),
            ),
            needs=EXPORT,
            gpu=backend != "onnxruntime-cpu",
        )

    def _accuracy(self) -> Iterator[Step]:
        """The accuracy study on real frames; each command goes on where it was stopped."""
        data = ("--data", str(self.data)) if self.data else ()
        shared = ("--recipe", self.recipe, *data, "--experts", str(self.experts))
        for name, module, more in STUDIES[1:2] if self.tiny else STUDIES:
            command = [*_call(module), *shared, *more]
            if module != "train":
                command += ["--json", str(self.out / f"{name}.json")]
            if module in ("eval", "build"):
                command += ["-o", str(self.work / "bundle")]
            yield Step(name=name, command=tuple(command), needs=EXPORT, data=not self.tiny)


# As simo_runtime.backends names them; one that is not there fails, and says why.
BACKENDS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
STUDIES: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("experts", "train", ("--task", "all")),
    ("eval", "eval", ("--split", "test", "--controls")),
    ("realignments", "realignments", ("--split", "test")),
    ("methods", "study", ("--split", "test")),
    (
        "methods-evidence",
        "study",
        ("--split", "test", "--methods", "benchmarks/recipes/methods-evidence.yaml"),
    ),
    (
        "methods-learned",
        "study",
        ("--split", "test", "--methods", "benchmarks/recipes/methods-learned.yaml"),
    ),
    (
        "methods-several",
        "study",
        ("--split", "test", "--methods", "benchmarks/recipes/methods-several.yaml"),
    ),
    ("relations", "relate", ()),
)


def _call(module: str) -> list[str]:
    """Give the command of a study, or of one of simo_build's commands, without installing it."""
    if module in ("train", "eval", "relate"):
        code = f"from simo_build.cli import {module}_command as command; command()"
        return [sys.executable, "-c", code]
    return [sys.executable, "-m", f"simo_bench.{module}"]
