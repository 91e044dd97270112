"""The steps of run_all.sh, in order of value, with what each needs."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES = 8  # of one step
SPARE = 60  # seconds of them in which no more items begin
BUILD = (
    *("click", "cv2", "ml_dtypes", "numpy", "onnx", "onnxruntime", "pydantic", "safetensors"),
    *("timm", "torch", "tqdm", "yaml"),
)
EXPORT = (*BUILD, "onnxscript")
PRECISIONS = ("bf16", "fp16", "fp32")
HEADS = ("linear", "dpt_small")
WAYS = ("compile", "eager", "aot")
# As simo_runtime.backends names them; one that cannot run is skipped, with what it lacks.
BACKENDS = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
TESTS = ("tests/test_merge_gpu.py", "tests/test_gpu.py")  # all others need more than is there
FIVE = "benchmarks/recipes/nyuv2-vit-tiny-five.yaml"
WORK = Path(tempfile.gettempdir()) / "simo-gpu"

# What the bars ask for, in order of value; items are told by their keys.
ONE, BARS = "3 tasks, batch 1$", "3 tasks, batch (1|16)$"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command in a process of its own. `needs` are modules, `data` whether it reads data."""

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    data: bool = False
    gpu: bool = False  # whether it means nothing without one
    items: bool = False  # whether it is made of items, and can be told how long to begin them
    backend: str | None = None  # of the runtime, that it runs on

    @property
    def file(self) -> str:
        """The name of its files, without their ending."""
        return file_of(self.name)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A row of the accuracy study: a command of ours, and what it is told."""

    name: str
    module: str
    more: tuple[str, ...] = ()
    recipe: str | None = None  # None: the one that the run was asked for
    plots: bool = False


# Of the list of rows: how much merging costs five tasks, and what wins it back.
FIVE_ROWS = (
    *("task arithmetic alone", "tsv_m alone", "tsv_m, heads, experts alone"),
    *("tsv_m, distilled",),
)
_METHODS = "benchmarks/recipes/methods"
STUDIES: Sequence[Study] = (
    Study(name="experts", module="train", more=("--task", "all")),
    Study(name="eval", module="eval", more=("--split", "test", "--controls")),
    Study(name="realignments", module="realignments", more=("--split", "test")),
    Study(name="methods", module="study", more=("--split", "test")),
    *(
        Study(
            name=f"methods-{kind}",
            module="study",
            more=("--split", "test", "--methods", f"{_METHODS}-{kind}.yaml"),
        )
        for kind in ("evidence", "learned", "several")
    ),
    Study(name="relations", module="relate", plots=True),
    Study(name="scaling", module="scaling", plots=True),
    Study(name="five-experts", module="train", more=("--task", "all"), recipe=FIVE),
    Study(
        name="five-realignments",
        module="realignments",
        more=("--split", "test", *(word for row in FIVE_ROWS for word in ("--only", row))),
        recipe=FIVE,
    ),
    Study(name="five-scaling", module="scaling", recipe=FIVE, plots=True),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where everything lies, and how large it is to be."""

    out: Path
    work: Path = WORK  # bundles and recipes that are made on the way; they need not come back
    tiny: bool = False  # small models, on a CPU
    smoke: bool = False  # only what shows in two minutes whether the rest will run
    data: Path | None = None
    experts: Path = Path("experts")
    recipe: str = "nyuv2-vit-tiny"

    def steps(self) -> list[Step]:
        """Give all steps in their order."""
        if self.smoke:
            return list(self._smoke())
        found = [*self._correctness()]
        if not self.tiny:
            found += self._bars()
        there = {step.name for step in found}
        rest = [*self._passes(), self._items("profile"), self._items("merging-times")]
        found += [step for step in rest if step.name not in there]
        return [*found, *self._backends(), *self._accuracy()]

    def _items(self, name: str, part: str = "", only: str = "") -> Step:
        """Give a step that is made of items, or a part of it, into the same file."""
        step = self._command(name, file_of(name), tiny=self.tiny, only=only)
        return Step(
            name=f"{name} {part}".strip(),
            command=step,
            needs=("click", "cv2", "numpy", "torch", "tqdm") if name == "roofline" else BUILD,
            items=True,
        )

    def _command(self, name: str, file: str, *, tiny: bool, only: str) -> tuple[str, ...]:
        return (
            *(sys.executable, "-m", "simo_bench.gpu.step", name),
            *("--out", str(self.out / f"{file}.json"), "--work", str(self.work)),
            *(("--items", only) if only else ()),
            *(("--tiny",) if tiny else ()),
        )

    def _tests(self) -> Step:
        report = self.out / "tests-gpu.xml"
        return Step(
            name="tests-gpu",
            command=(
                *(sys.executable, "-m", "pytest", *TESTS, "-m", "gpu", "-q", "-n0"),
                # a warning of a package in another version than ours is no failure
                *("-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"),
            ),
            needs=("pytest", "xdist", *BUILD),
            gpu=True,
        )

    def _smoke(self) -> Iterator[Step]:
        """Every way on a toy, and the first item of the question itself."""
        yield from (self._items("roofline"), self._tests(), self._items("merging-equal"))
        for way in WAYS:
            name = f"linear bf16 {way}"
            toy = self._command(f"passes {name}", file_of(f"toy {name}"), tiny=True, only="2 tasks")
            yield Step(name=f"toy {name}", command=toy, needs=BUILD, items=True)
        yield self._items("passes linear bf16 eager", "one", "" if self.tiny else ONE)

    def _correctness(self) -> Iterator[Step]:
        yield from (self._items("roofline"), self._tests())
        yield from (self._items("merging-equal"), self._items("gates"))

    def _bars(self) -> Iterator[Step]:
        """What the bars ask for, before anything else of the same step."""
        yield self._items("passes linear bf16 eager", "bars", BARS)
        yield self._items("passes linear bf16 eager")
        yield self._items("profile", "eager", "^eager")
        yield self._items("passes linear bf16 compile", "bars", BARS)
        yield self._items("profile", "compile", "^compile")
        yield self._items("merging-times", "cuda", "cuda$")
        yield self._items("passes linear bf16 aot", "bars", ONE)
        yield self._items("passes dpt_small bf16 eager", "bars", BARS)
        yield self._items("passes linear fp16 eager", "bars", BARS)
        yield self._items("passes linear fp32 eager", "bars", BARS)

    def _passes(self) -> Iterator[Step]:
        """The latency question in PyTorch, whole."""
        for heads in HEADS[:1] if self.tiny else HEADS:
            for precision in PRECISIONS:
                for way in ("eager",) if self.tiny else WAYS:
                    yield self._items(f"passes {heads} {precision} {way}")

    def _backends(self) -> Iterator[Step]:
        """The same with the runtime's own backends: the study over tasks, on each of them."""
        for backend in ("onnxruntime-cpu",) if self.tiny else BACKENDS:
            for heads in HEADS[:1] if self.tiny else HEADS:
                for precision in ("fp32",) if self.tiny else PRECISIONS:
                    yield self._backend(backend, heads, precision)

    def _backend(self, backend: str, heads: str, precision: str) -> Step:
        name = f"tasks {backend} {heads} {precision}"
        toy = ("--tasks", "1", "--rounds", "2", "--processes", "1", "--threads", "1")
        return Step(
            name=name,
            command=(
                *(sys.executable, "-m", "simo_bench.curve", "--heads", heads),
                *("--shapes", "toy" if self.tiny else "vit_base"),
                *("--backend", backend, "--precision", precision, "--work", str(self.work)),
                *("--json", str(self.out / f"{file_of(name)}.json")),
                *(toy if self.tiny else ("--batch", "4", "--batch", "16")),
            ),
            needs=EXPORT,
            gpu=backend != "onnxruntime-cpu",
            backend=backend,
        )

    def _accuracy(self) -> Iterator[Step]:
        """The accuracy study on real frames; each command goes on where it was stopped."""
        for study in STUDIES:
            if self.tiny and study.name != "eval":
                continue
            if study.name == "five-experts" and self.data:
                yield self._drawn(self.data / "nyuv2")
            yield self._study(study)

    def _drawn(self, folder: Path) -> Step:
        """Make the truths of the two further tasks from the images."""
        command = (*_call("drawn"), str(folder))
        return Step(name="five-drawn", command=command, needs=BUILD, data=True)

    def _study(self, study: Study) -> Step:
        data = ("--data", str(self.data)) if self.data else ()
        out = self.out / study.name
        return Step(
            name=study.name,
            command=(
                *(*_call(study.module), "--recipe", study.recipe or self.recipe, *data),
                *("--experts", str(self.experts), *study.more),
                *(("--json", f"{out}.json") if study.module != "train" else ()),
                *(("--plot", f"{out}.png") if study.plots else ()),
                *(("-o", str(self.work / "bundle")) if study.module == "eval" else ()),
            ),
            needs=(*EXPORT, "matplotlib") if study.plots else EXPORT,
            data=not self.tiny,
        )


def file_of(name: str) -> str:
    """Give the name of a step's files, without their ending."""
    return name.replace(" ", "-")


def _call(module: str) -> list[str]:
    """Give the command of a study, or of one of simo_build's commands, without installing it."""
    if module in ("train", "eval", "relate", "scaling"):
        code = f"from simo_build.cli import {module}_command as command; command()"
        return [sys.executable, "-c", code]
    return [sys.executable, "-m", f"simo_bench.{module}"]
