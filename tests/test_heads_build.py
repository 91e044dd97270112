"""DPT heads through the whole line: experts, re-alignment, bundle, runtime."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from simo_build import phases, train, workshop
from simo_build.build import build, realign
from simo_build.checkpoints import read_tensors, write_expert
from simo_build.devices import device
from simo_build.heads import HEADS, DptHead, DptSizes, Head
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.multitask import train_multitask
from simo_build.progress import Silent
from simo_build.stages import Result
from simo_build.train import train_expert
from simo_runtime.bundle import Bundle
from simo_runtime.errors import CheckpointError, RecipeError
from simo_runtime.predictor import Predictor
from tests.test_export import UNWANTED
from tests.test_train_resume import Killed, kill_at
from tests.tiny import SIZE, TASKS, opened, write_recipe, write_workplace

HEAD_OF = {"depth": "dpt", "normals": "dpt_small"}
FOUR: dict[str, Any] = {
    "encoder": {
        "model": "vit_tiny_patch16_224",
        "options": {"embed_dim": 16, "depth": 4, "num_heads": 2},
        "taps": [1, 2, 3, 4],
    },
    "image": {"size": [30, 45]},  # 2 x 3 patches, padded
    "merge": {"params": {"alpha": 0.5}},
}
STEPS: dict[str, dict[str, Any]] = {
    "head": {"step": "head", "epochs": 2, "lr": 3e-3, "batch": 3},
    "distill": {
        "step": "distill",
        "views": 1,
        "epochs": 4,
        "lr": 5e-5,
        "batch": 3,
        "by": "teachers",
    },
}


def tasks(**changes: Any) -> dict[str, Any]:
    return {
        task: {
            "kind": task,
            "head": HEAD_OF[task],
            "expert": f"{task}.safetensors",
            "target": {"folder": task},
            **changes,
        }
        for task in TASKS
    }


@pytest.fixture(scope="module", autouse=True)
def _narrow() -> Iterator[None]:
    """Let both heads be narrow, so that nothing takes long."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("dpt", "dpt_small"):
            sizes = DptSizes(channels=8, levels=(4, 4, 6, 8), project=name == "dpt")
            patch.setitem(HEADS, name, lambda spec, shape, sizes=sizes: DptHead(spec, shape, sizes))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpt")
    work = opened(write_workplace(folder, **FOUR, tasks=tasks()))
    generator = torch.Generator().manual_seed(5)
    for task, head in work.expert_heads().items():
        expert = work.experts[task]
        taps = work.features(expert.encoder, work.samples["realign"], task)
        awaken(head, taps, generator)
        path = folder / f"{task}.safetensors"
        write_expert(path, encoder=expert.encoder, head=head.state_dict(), about=expert.about)
    return folder


@torch.no_grad()
def awaken(head: Head, taps: list[Tensor], generator: torch.Generator) -> None:
    """Let a head that was never trained say something, its statistics those of its features."""
    for parameter in head.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    head.train()
    for _ in range(50):
        head([tap.to(device()) for tap in taps])


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    path = write_recipe(place, **FOUR, tasks=tasks(), realign=[STEPS["head"]])
    return build(load_recipe(str(path)), place / "bundle", progress=Silent())


def test_a_bundle_of_dpt_heads_agrees_with_pytorch(bundle: Bundle) -> None:
    for one in bundle.manifest.provenance["gate"]["found"]:  # or there would be no bundle
        assert one["cosine"] > 0.999999
        assert one["metric_onnx"] == pytest.approx(one["metric_torch"], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_no_graph_computes_sizes_or_carries_what_folds_away(bundle: Bundle, task: str) -> None:
    model = onnx.load(bundle.root / f"{task}.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert not UNWANTED & set(counts)
    assert counts["ConvTranspose"] == 2
    assert counts["Gelu"] == (4 if HEAD_OF[task] == "dpt" else 0)


def test_the_runtime_needs_nothing_new(bundle: Bundle) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    with Predictor.open(bundle) as predict:
        scene = predict(photo, colours="RGB")
    assert scene["depth"].values.shape == (50, 60)
    assert (scene["depth"].values > 0).any()
    assert scene["normals"].values.shape == (50, 60, 3)


def aligned(place: Path, out: Path, step: dict[str, Any]) -> tuple[workshop.Workshop, Result]:
    work = opened(write_recipe(place, **FOUR, tasks=tasks(), realign=[step]))
    work.stages = workshop.Stages(out, work.stages.progress)
    return work, realign(work, merge(work))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_trains_every_head(place: Path, tmp_path: Path, name: str) -> None:
    work, found = aligned(place, tmp_path, STEPS[name])
    log = found.log["steps"][0]
    for one in log["tasks"].values() if name == "head" else [log]:
        assert one["epoch"] > 0, "no epoch was better, so that nothing was kept"
    for task, expert in work.experts.items():
        for key, before in expert.head.items():
            assert not torch.equal(before, found.tensors[f"{task}.{key}"]), f"{task}.{key}"


@pytest.mark.parametrize("name", STEPS)
def test_the_same_step_gives_the_same_weights(place: Path, tmp_path: Path, name: str) -> None:
    one = aligned(place, tmp_path / "one", STEPS[name])[1]
    torch.rand(1)  # what is dropped may not hang on the global random state
    other = aligned(place, tmp_path / "other", STEPS[name])[1]
    assert one.log == other.log
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


def test_what_is_kept_measures_as_told(place: Path, tmp_path: Path) -> None:
    work, found = aligned(place, tmp_path, STEPS["head"])
    heads = workshop.split_heads(work, found.tensors)
    encoder = merge(work).tensors
    after = workshop.measure(work, encoder, heads, work.samples["select"])
    assert after == pytest.approx(found.log["metrics"])


def test_an_expert_with_a_dpt_head_is_trained_the_same_twice(place: Path, tmp_path: Path) -> None:
    phase = {"epochs": 1, "lr": 1e-3}
    train = {"batch": 2, "head": phase, "full": phase}
    written = []
    for name in ("one", "other"):
        path = write_recipe(place, **FOUR, tasks=tasks(expert=None), train=train)
        loaded = load_recipe(str(path), experts=tmp_path / name)
        written.append(train_expert(loaded, "normals", Silent()))
        torch.rand(1)
    one, other = (read_tensors(path)[0] for path in written)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert "head.trunk.smooth.weight" in one


@pytest.fixture
def from_scratch(place: Path) -> Path:
    """A recipe of one task without an expert; something is dropped at random in its head."""
    phase = {"epochs": 2, "lr": 1e-2}
    only = {"normals": tasks(expert=None)["normals"]}
    train = {"batch": 2, "head": phase, "full": phase}
    more = {"data": {"root": "data", "train": "realign"}, "train": train}
    return write_recipe(place, **FOUR, tasks=only, **more)


def test_what_is_dropped_goes_on_after_kills(from_scratch: Path, tmp_path: Path) -> None:
    written = []
    for name, kills in (("whole", ()), ("killed", (("take", 5), ("augmented", 5)))):
        loaded = load_recipe(str(from_scratch), experts=tmp_path / name)
        for function, call in kills:  # in the second epoch of either phase
            with kill_at(phases, function, call), pytest.raises(Killed):
                train_expert(loaded, "normals", Silent())
        written.append(train_expert(loaded, "normals", Silent()).read_bytes())
    assert written[0] == written[1]


def test_what_is_dropped_does_not_hang_on_what_was_trained_before(
    from_scratch: Path, tmp_path: Path
) -> None:
    loaded = load_recipe(str(from_scratch), experts=tmp_path)
    expert = read_tensors(train_expert(loaded, "normals", Silent()))[0]
    joint = read_tensors(train_multitask(loaded, "train", Silent()))[0]
    renamed = {name.replace("normals.", "head."): tensor for name, tensor in joint.items()}
    assert set(renamed) == set(expert)
    assert all(torch.equal(renamed[key], expert[key]) for key in expert)


def test_a_head_of_another_kind_is_refused_by_name(place: Path) -> None:
    work = opened(write_recipe(place, **FOUR, tasks=tasks(head="dpt_small")))
    with pytest.raises(CheckpointError, match="head: dpt here, dpt_small in the recipe"):
        _ = work.experts


def test_a_head_with_other_sizes_is_refused_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = DptSizes(channels=16, levels=(4, 4, 6, 8), project=True)
    monkeypatch.setitem(HEADS, "dpt", lambda spec, shape: DptHead(spec, shape, wide))
    work = opened(write_recipe(place, **FOUR, tasks=tasks()))
    with pytest.raises(CheckpointError, match=r"head tensors do not fit a dpt head(?s:.)*trunk"):
        _ = work.experts


def test_too_few_taps_are_told_before_an_image_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = {**FOUR["encoder"], "taps": [1, 4]}
    changes = {**FOUR, "encoder": encoder, "tasks": tasks(expert=None)}
    loaded = load_recipe(str(write_recipe(place, **changes)))
    monkeypatch.delattr(train, "load_split")  # so that reading would fail otherwise
    with pytest.raises(RecipeError, match=r"tasks\.depth\.head: .* exactly 4 taps"):
        train_expert(loaded, "depth", Silent())


def test_images_of_the_data_have_another_size(bundle: Bundle) -> None:
    assert bundle.manifest.image_size != SIZE  # so that padding is tried here
