"""`simo-build --add-task`: one more head for a finished bundle, whose encoder stays as it is.

The head learns on the features that the bundle's own encoder graph gives, so that neither base nor
experts are needed, and what it learnt on is what it will be given. No file of the encoder and of
the other heads changes by a byte: new are the head's graphs, rewritten are the joint graphs (which
take their weights from the same files), the golden outputs and the manifest.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from simo_build.build import first, versions
from simo_build.checkpoints import METADATA, claim, finite, read_tensors
from simo_build.data import Samples, load_split, mirrored
from simo_build.encoder import Encoder
from simo_build.evaluate import measure_head
from simo_build.export import FinishedHead
from simo_build.features import BATCH, take
from simo_build.fit import Goal, Outcome, fit_together
from simo_build.gated import RAW, Arm, Reference, compare
from simo_build.hashing import digest
from simo_build.heads import FeatureShape, Head, make_head
from simo_build.loading import LoadedRecipe
from simo_build.losses import TORCH_KINDS
from simo_build.progress import Progress
from simo_build.realign.bench import seeded
from simo_build.room import room_for
from simo_build.statedict import misfits, state_hash
from simo_build.steps import HeadStep
from simo_build.train import feature_shape
from simo_export.bundle import write_bundle
from simo_export.check import Graph
from simo_export.gate import faults
from simo_export.graph import export_graph, save_graph, save_joint, without_output
from simo_export.precision import HALVES, to_half
from simo_runtime.bundle import REPORTS, Bundle
from simo_runtime.errors import CheckpointError, ExportError, RecipeError, listing, unknown
from simo_runtime.golden import GOLDEN
from simo_runtime.graphs import ENCODER, IMAGE, JOINT, GraphFiles, stem
from simo_runtime.metrics import metric_named
from simo_runtime.tasks import TaskSpec


class FrozenEncoder(nn.Module):
    """A bundle's encoder in ONNX Runtime: uint8 (B, H, W, 3) -> the taps, as PyTorch has them."""

    def __init__(self, bundle: Bundle, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self._graph = Graph(bundle.graph(ENCODER))

    def forward(self, pixels_BHW3: Tensor) -> list[Tensor]:
        found = self._graph({IMAGE: pixels_BHW3.numpy()})
        return [torch.from_numpy(found[name]) for name in self._graph.outputs]


@dataclass(frozen=True)
class Addition:
    """What a task is added to, and from what."""

    loaded: LoadedRecipe
    bundle: Bundle
    spec: TaskSpec
    encoder: FrozenEncoder
    shape: FeatureShape
    step: HeadStep
    progress: Progress

    @property
    def task(self) -> str:
        """The task's name."""
        return self.spec.name

    def samples(self, role: str) -> Samples:
        """Read a split with the truths of this task alone."""
        return load_split(self.loaded, role, tasks=[self.task], progress=self.progress)


def add_task(loaded: LoadedRecipe, task: str, out: Path, *, progress: Progress) -> Bundle:
    """Add a task of a recipe to the bundle at `out`; it stays as it was unless all goes well.

    The head starts from the task's `expert` if the recipe names one, else from random weights, and
    is trained as the recipe's first `head` step says.
    """
    adding = opened(loaded, task, out, progress)
    head = begin(adding)
    outcome = train(adding, head)
    return write(adding, head.eval(), outcome)


def opened(loaded: LoadedRecipe, task: str, out: Path, progress: Progress) -> Addition:
    """Open the bundle and hold the recipe to it, before any work."""
    recipe, bundle = loaded.recipe, Bundle.open(out)
    if task not in recipe.tasks:
        raise unknown("task", task, recipe.tasks)
    if task in {one.name for one in bundle.manifest.tasks}:
        raise RecipeError(f"{out}: the bundle has a task {task!r} already")
    if recipe.data is None:
        raise RecipeError(f"{loaded.shown}: a new head learns from `data`, which is missing")
    model = Encoder(recipe.encoder, recipe.image)
    shape = feature_shape(model)
    encoder = FrozenEncoder(bundle, shape.prefix)
    if wrong := misfit(loaded, bundle, encoder, shape):
        raise RecipeError(
            f"{loaded.shown}: the bundle {out} was not built with this encoder and image\n"
            f"{listing(wrong)}"
        )
    heads = [step for step in recipe.realign if isinstance(step, HeadStep)]
    return Addition(
        loaded=loaded,
        bundle=bundle,
        spec=recipe.specs()[task],
        encoder=encoder,
        shape=shape,
        step=heads[0] if heads else HeadStep(step="head"),
        progress=progress,
    )


def misfit(
    loaded: LoadedRecipe, bundle: Bundle, encoder: FrozenEncoder, shape: FeatureShape
) -> list[str]:
    """List where recipe and bundle differ: the image, the taps, their shapes."""
    image, manifest = loaded.recipe.image, bundle.manifest
    pairs = {
        "image.size": (image.size, manifest.image_size),
        "image.fit": (image.fit, manifest.fit),
        "image.mean": (image.mean, manifest.mean),
        "image.std": (image.std, manifest.std),
        "encoder.taps": (
            tuple(f"tap{number}" for number in loaded.recipe.encoder.taps),
            manifest.features,
        ),
    }
    wrong = [f"{key}: {one} here, {two} there" for key, (one, two) in pairs.items() if one != two]
    if wrong:
        return wrong
    pixels = torch.zeros(1, *manifest.image_size, 3, dtype=torch.uint8)
    high, wide = shape.geometry.grid
    tokens = (shape.prefix + high * wide, shape.width)
    return [
        f"encoder: tokens and width {tokens} here, {tuple(tap.shape[1:])} there"
        for tap in encoder(pixels)[:1]
        if tuple(tap.shape[1:]) != tokens
    ]


def begin(adding: Addition) -> Head:
    """Make the head, with its expert's weights if there is one."""
    part = adding.loaded.recipe.tasks[adding.task]
    head = make_head(part.head, adding.spec, adding.shape, seed=adding.step.seed)
    if part.expert is None:
        return head
    path = adding.loaded.locate(part.expert)
    tensors, metadata = read_tensors(path)
    if METADATA in metadata:
        tensors = claim(tensors, source=path)["head."]
    state = finite(tensors, source=path)
    if found := list(misfits(state, head.state_dict())):
        raise CheckpointError(
            f"{path}: {len(found)} head tensors do not fit a {part.head} head\n{listing(found)}"
        )
    head.load_state_dict(state)
    return head


def train(adding: Addition, head: Head) -> Outcome:
    """Train the head on the encoder's features of `realign`; its best epoch on `select` stays."""
    step, spec, kind = adding.step, adding.spec, TORCH_KINDS[adding.spec.kind]
    samples, select = adding.samples("realign"), adding.samples("select")
    samples = mirrored(samples, {adding.task: spec.kind}) if step.flip else samples
    truth = torch.from_numpy(samples.truths[adding.task])
    learnt, judged = features(adding, samples, "realign"), features(adding, select, "select")
    where = torch.device("cpu")

    def loss_of(batch: tuple[list[Tensor], Tensor]) -> Tensor:
        taps, index = batch
        return kind.loss(head(taps), truth[index])

    goal = Goal(
        module=head,
        loss_of=loss_of,
        measure=lambda: measure_head(head, spec, features=judged, samples=select),
        metric=spec.metric,
        better=metric_named(spec.metric).better,
        label=f"re-align {adding.task}",
    )
    (outcome,) = fit_together(
        [goal],
        schedule=step,
        limits=step,
        images=len(samples),
        generator=seeded(step.seed),
        batch_of=lambda index: (take(learnt, index, where), index),
        label=f"re-align {adding.task}",
        progress=adding.progress,
    )
    return outcome


@torch.inference_mode()
def features(adding: Addition, samples: Samples, label: str) -> list[Tensor]:
    """Give the taps of every image of a split: one (n, S, D) float32 tensor a tap."""
    whole: list[Tensor] = []
    starts = range(0, len(samples), BATCH)
    tracked = adding.progress.track(starts, f"features of {label}", total=len(starts))
    for start in tracked:
        taps = adding.encoder(torch.from_numpy(samples.images[start : start + BATCH]))
        if not whole:
            shapes = [(len(samples), *tap.shape[1:]) for tap in taps]
            whole = [torch.from_numpy(room_for(shape, np.float32)) for shape in shapes]
        for store, tap in zip(whole, taps, strict=True):
            store[start : start + len(tap)] = tap
    return whole


def write(adding: Addition, head: Head, outcome: Outcome) -> Bundle:
    """Write the bundle anew, with everything that was in it; it appears whole or not at all."""
    old = adding.bundle
    exported = export_head(adding, head)
    found = check(adding, head, exported)
    manifest = old.manifest
    added = {
        "task": adding.task,
        "recipe": adding.loaded.text,
        "weights": state_hash(head.state_dict()),
        "step": adding.step.model_dump(mode="json"),
        "outcome": vars(outcome),
        "versions": versions(),
        "gate": found,
    }
    before = {key: value for key, value in manifest.provenance.items() if key != "key"}
    additions = [*before.pop("added", []), added]
    key = digest({"before": manifest.provenance.get("key"), "added": added})
    graphs = {kind: with_head(files, adding.task, kind) for kind, files in manifest.graphs.items()}
    joints = {files.joint for files in manifest.graphs.values()}
    untouched = set(manifest.files) - joints - {GOLDEN}

    def fill(folder: Path) -> None:
        for name in sorted(untouched):
            shutil.copyfile(old.root / name, folder / name)
        for kind in graphs:
            save(adding, folder, kind, exported)
            join(folder, graphs[kind], kind)

    reports = {name: old.root / name for name in REPORTS if (old.root / name).is_file()}
    kept = {name: path.read_bytes() for name, path in reports.items()}
    bundle = write_bundle(
        old.root,
        replace(
            manifest,
            tasks=(*manifest.tasks, adding.spec),
            graphs=graphs,
            files={},
            provenance={**before, "added": additions, "key": key},
        ),
        fill,
    )
    for name, content in kept.items():  # they tell of the build, which is still true
        (bundle.root / name).write_bytes(content)
    return bundle


def with_head(files: GraphFiles, task: str, precision: str) -> GraphFiles:
    """Give the graphs of a precision with one more head; int8 has the heads of float32."""
    name = stem(task, "fp32" if precision == "int8" else precision)
    return replace(
        files,
        heads={**files.heads, task: f"{name}.onnx"},
        joint=files.joint or f"{stem(JOINT, precision)}.onnx",
    )


@torch.inference_mode()
def export_head(adding: Addition, head: Head) -> onnx.ModelProto:
    """Fold the head and export it in float32; it still has its raw output."""
    size = adding.bundle.manifest.image_size
    taps = adding.encoder(torch.zeros(2, *size, 3, dtype=torch.uint8))
    module = FinishedHead(head.folded(), TORCH_KINDS[adding.spec.kind].finish)
    return export_graph(
        module, taps, inputs=adding.bundle.manifest.features, outputs=[RAW, adding.task]
    )


def save(adding: Addition, folder: Path, precision: str, exported: onnx.ModelProto) -> None:
    """Write the head's graph of a precision; int8 has that of float32."""
    if precision == "int8":
        return
    head = exported
    if precision in HALVES:
        head = to_half(exported, precision, features=False, rounded=False)
    save_graph(without_output(head, RAW), folder, stem(adding.task, precision))


def join(folder: Path, files: GraphFiles, precision: str) -> None:
    """Write the joint graph of saved ones anew; its weights stay in their files."""
    encoder = onnx.load(folder / files.encoder, load_external_data=False)
    heads = {
        task: onnx.load(folder / file, load_external_data=False)
        for task, file in files.heads.items()
    }
    save_joint(encoder, heads, folder, stem(JOINT, precision))


def check(adding: Addition, head: Head, exported: onnx.ModelProto) -> list[dict[str, Any]]:
    """Hold the head to PyTorch in every precision of the bundle, behind that one's encoder.

    A precision that fails is an error: the bundle cannot have it for some tasks and not for others.
    """
    recipe = adding.loaded.recipe
    reference = Reference(
        encoder=adding.encoder,
        folded=adding.encoder,
        heads={adding.task: head},
        specs={adding.task: adding.spec},
        samples=first(adding.samples("select"), recipe),
    )
    rows, wrong = [], []
    for precision in adding.bundle.manifest.graphs:
        tasks, _ = compare(arm_of(adding, precision, exported), reference)
        limits = recipe.export.limits(precision)
        for one in tasks:
            rows.append({"precision": precision, **vars(one)})
            wrong += [f"{precision} {fault}" for fault in faults(one, limits)]
    if wrong:
        raise ExportError(f"the exported head differs from PyTorch\n{listing(wrong, limit=9)}")
    return rows


def arm_of(adding: Addition, precision: str, exported: onnx.ModelProto) -> Arm:
    """Give the graphs of a precision as a CPU can run them."""
    encoder, head, how = onnx.load(adding.bundle.graph(ENCODER)), exported, "ONNX Runtime, CPU"
    if precision in HALVES:
        encoder = to_half(encoder, precision, features=True, rounded=True)
        head = to_half(exported, precision, features=False, rounded=True)
        how = f"{how}, every number rounded to {precision}"
    elif precision != "fp32":
        encoder = onnx.load(adding.bundle.graph(ENCODER, precision))
    return Arm(encoder=encoder, heads={adding.task: head}, how=how)
