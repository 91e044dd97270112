"""Joint training: one encoder and all heads from the base, on one split, with experts or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

from simo_build import data, multitask
from simo_build.checkpoints import read_tensors
from simo_build.cli import train_command
from simo_build.hashing import digest
from simo_build.loading import LoadedRecipe, load_recipe
from simo_build.multitask import open_training, read_multitask, train_multitask
from simo_build.progress import Silent
from simo_build.statedict import StateDict
from simo_build.train import expert_key, train_expert
from simo_build.workshop import measure
from simo_runtime.errors import CheckpointError, RecipeError, TrainError, UnknownNameError
from tests.tiny import SPLITS, TASKS, opened, write_recipe, write_workplace

TRAIN: dict[str, Any] = {
    "batch": 2,
    "head": {"epochs": 2, "lr": 1e-2},
    "full": {"epochs": 2, "lr": 1e-3},
}
WITHOUT_EXPERTS: dict[str, Any] = {
    task: {"kind": task, "target": {"folder": task}} for task in TASKS
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a base and two experts, which no test changes."""
    folder = tmp_path_factory.mktemp("multitask")
    write_workplace(folder)
    return folder


def loaded(
    place: Path, experts: Path, train: dict[str, Any], parts: dict[str, Any] | None = None
) -> LoadedRecipe:
    """Load a recipe with some keys of `train`, and with other tasks if they are given."""
    path = write_recipe(place, train={**TRAIN, **train})
    if parts is not None:
        content = {**yaml.safe_load(path.read_text()), "tasks": parts}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_recipe(str(path), experts=experts)


def about(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_tensors(path)[1]["simo"])
    return found


@pytest.fixture
def trained(place: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train on a split with some keys of `train`, and give the file."""

    def train(role: str = "train", **keys: Any) -> Path:
        return train_multitask(loaded(place, tmp_path, keys), role, Silent())

    return train


# What it learns


def test_it_needs_no_experts_and_moves_the_whole_encoder(place: Path, tmp_path: Path) -> None:
    path = train_multitask(loaded(place, tmp_path, {}, WITHOUT_EXPERTS), "realign", Silent())
    work = opened(place / "tiny.yaml")
    encoder, heads = read_multitask(work, path)
    assert about(path)["select"]["full"]["epoch"] > 0
    still = [name for name, tensor in encoder.items() if torch.equal(tensor, work.base[name])]
    assert sorted(still) == ["norm.bias", "norm.weight"]  # no tap is after the final norm
    assert tuple(heads) == TASKS


def test_the_metrics_it_tells_are_those_of_the_weights_in_the_file(
    place: Path, trained: Callable[..., Path]
) -> None:
    path = trained("realign")
    work = opened(place / "tiny.yaml")
    encoder, heads = read_multitask(work, path)
    found = measure(work, encoder, heads, work.samples["select"])
    assert found == pytest.approx(about(path)["select"]["metrics"], rel=1e-6)


def test_the_heads_first_learn_what_the_experts_heads_do(place: Path, tmp_path: Path) -> None:
    told = loaded(place, tmp_path, {}, WITHOUT_EXPERTS)
    joint = about(train_multitask(told, "train", Silent()))["select"]["heads"]
    for task in TASKS:
        assert joint[task] == about(train_expert(told, task, Silent()))["select"]["head"]


def test_one_task_alone_is_trained_as_its_expert_is(place: Path, tmp_path: Path) -> None:
    keys = {"flip": True, "scales": [1.0, 1.5], "jitter": {"brightness": 0.2}, "precision": "bf16"}
    tasks = {"depth": WITHOUT_EXPERTS["depth"]}
    told = loaded(place, tmp_path, keys, tasks)
    joint = read_tensors(train_multitask(told, "train", Silent()))[0]
    expert = read_tensors(train_expert(told, "depth", Silent()))[0]
    renamed = {name.replace("depth.", "head."): tensor for name, tensor in joint.items()}
    assert_same(renamed, expert)


def assert_same(one: StateDict, other: StateDict) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_loss_is_the_unweighted_mean_of_the_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = loaded(place, tmp_path, {"flip": False}, WITHOUT_EXPERTS)
    training = open_training(told, "train", Silent())
    mean = first_loss(training, monkeypatch)
    monkeypatch.setattr(multitask.JointTraining, "units", {"depth": 4.0, "normals": 0.5})
    weighted = first_loss(training, monkeypatch)
    # mean = (d + n) / 2 and weighted = (d / 4 + 2 n) / 2: both losses, and they are real ones
    normals = (weighted - mean / 4) / 0.875
    depth = 2 * mean - normals
    assert normals == pytest.approx(1.0, abs=0.3)  # 1 - cosine of directions that know nothing
    assert depth == pytest.approx(1.3, abs=0.5)  # metres: the head's first metric is 1.31


def test_the_loss_can_be_the_sum_of_the_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, total = (
        first_loss(
            open_training(
                loaded(place, tmp_path, {"flip": False, "joint": {"loss": loss}}, WITHOUT_EXPERTS),
                "train",
                Silent(),
            ),
            monkeypatch,
        )
        for loss in ("mean", "sum")
    )
    assert total == pytest.approx(2 * mean, rel=1e-6)  # two tasks


def first_loss(training: multitask.JointTraining, monkeypatch: pytest.MonkeyPatch) -> float:
    seen: list[float] = []
    backward = Tensor.backward

    def spied(loss: Tensor, *args: Any, **more: Any) -> None:
        seen.append(loss.item())
        backward(loss, *args, **more)

    assert training.heads.log  # they are trained before
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", spied)
        training.train(training.phase)
    return seen[0]


def test_losses_are_divided_by_the_experts_own(place: Path, tmp_path: Path) -> None:
    training = open_training(
        loaded(place, tmp_path, {"joint": {"loss": "experts"}}), "train", Silent()
    )
    units = training.units
    assert units is not None
    assert set(units) == set(TASKS)
    # a depth expert's loss on select is nearly its metric: the images are equally large
    assert units["depth"] == pytest.approx(training.bench.experts["depth"], rel=1e-3)


def test_epochs_are_compared_with_the_base_or_with_the_experts(
    place: Path, trained: Callable[..., Path]
) -> None:
    base = about(trained())["select"]
    experts = about(trained(joint={"by": "experts"}))["select"]
    assert base["full"]["history"][0] == pytest.approx(1.0, abs=1e-6)
    assert experts["full"]["history"][0] != pytest.approx(1.0, abs=1e-3)
    assert base["heads"] == experts["heads"]


def test_a_metric_of_nothing_cannot_be_compared_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = open_training(loaded(place, tmp_path, {}), "train", Silent())
    training.heads.log["depth"]["metric"] = 0.0  # type: ignore[index]  # a Mapping in name only
    with pytest.raises(TrainError, match=r"joint: depth is 0.0 on select.*joint.by: experts"):
        training.train(training.phase)


# What it says of itself


@pytest.mark.parametrize("role", ["train", "realign"])
def test_the_file_says_what_was_looked_at(trained: Callable[..., Path], role: str) -> None:
    found = about(trained(role, joint={"epochs": 3}))
    images = SPLITS[role]
    assert (found["learned_from"], found["images"], found["labels"]) == (role, images, images)
    assert (found["select_images"], found["select_labels"]) == (SPLITS["select"],) * 2
    assert found["steps"] == {"heads": dict.fromkeys(TASKS, images), "all": 3 * images // 2}
    assert len(found["select"]["full"]["history"]) == 4


def test_only_its_splits_are_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = data.load_split

    def spied(told: LoadedRecipe, split: str, **more: Any) -> data.Samples:
        read.append(split)
        return load(told, split, **more)

    monkeypatch.setattr("simo_build.workshop.load_split", spied)
    train_multitask(loaded(place, tmp_path, {}, WITHOUT_EXPERTS), "realign", Silent())
    assert sorted(read) == ["realign", "select"]


# What is kept, and under which name


def test_a_model_that_is_there_is_kept(trained: Callable[..., Path]) -> None:
    path = trained()
    before = path.stat().st_mtime_ns
    assert trained() == path
    assert path.stat().st_mtime_ns == before


def test_the_same_settings_give_the_same_bytes(place: Path, tmp_path: Path) -> None:
    one, other = (
        train_multitask(loaded(place, tmp_path / name, {}), "train", Silent()) for name in "ab"
    )
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "keys",
    [
        {"joint": {"lr": 2e-3}},
        {"joint": {"loss": "experts"}},
        {"joint": {"by": "experts"}},
        {"flip": False},
        {"precision": "bf16"},
        {"head": {"epochs": 1, "lr": 1e-2}},
    ],
)
def test_whatever_changes_the_weights_changes_the_name(
    place: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    assert name_of(place, tmp_path, keys) != name_of(place, tmp_path, {})


def name_of(place: Path, folder: Path, keys: dict[str, Any]) -> str:
    training = open_training(loaded(place, folder, keys), "train", Silent())
    return training.path_of(training.phase).name


def test_experts_that_are_not_looked_at_do_not_matter(place: Path, tmp_path: Path) -> None:
    assert name_of(place, tmp_path, {}) == name_of(place, tmp_path, {"joint": {"epochs": 2}})
    with_experts = open_training(loaded(place, tmp_path, {}), "train", Silent())
    without = open_training(loaded(place, tmp_path, {}, WITHOUT_EXPERTS), "train", Silent())
    phase = with_experts.phase
    assert with_experts.key(phase) == without.key(phase)
    assert with_experts.key(phase) != open_training(
        loaded(place, tmp_path, {}), "realign", Silent()
    ).key(phase)


def test_experts_do_not_depend_on_how_joint_training_goes(place: Path, tmp_path: Path) -> None:
    plain = expert_key(loaded(place, tmp_path, {}), "depth", "0")
    joint = {"epochs": 7, "lr": 1e-6, "loss": "experts", "by": "experts"}
    assert expert_key(loaded(place, tmp_path, {"joint": joint}), "depth", "0") == plain


def test_an_experts_name_is_made_from_what_the_recipe_gives(place: Path, tmp_path: Path) -> None:
    tasks = {**WITHOUT_EXPERTS, "depth": {**WITHOUT_EXPERTS["depth"], "train": {"head": {}}}}
    recipe = loaded(place, tmp_path, {"joint": {"lr": 1e-6}}, tasks).recipe
    for task in TASKS:  # files that are there must keep their names
        hashed = recipe.training(task).model_dump(mode="json", exclude_defaults=True)
        assert hashed == TRAIN


def test_an_expert_depends_on_its_own_tasks_changes_alone(place: Path, tmp_path: Path) -> None:
    plain = loaded(place, tmp_path, {})
    tasks = yaml.safe_load((place / "tiny.yaml").read_text())["tasks"]
    tasks["depth"]["train"] = {"full": {"lr": 3e-5}}
    changed = loaded(place, tmp_path, {}, tasks)
    assert changed.recipe.training("depth").full.lr == 3e-5
    assert changed.recipe.training("depth").full.epochs == 2
    assert expert_key(changed, "depth", "0") != expert_key(plain, "depth", "0")
    assert expert_key(changed, "normals", "0") == expert_key(plain, "normals", "0")
    same = loaded(place, tmp_path, {"full": {"epochs": 2, "lr": 3e-5}})
    assert expert_key(changed, "depth", "0") == expert_key(same, "depth", "0")


def test_a_file_depends_on_a_loss_that_is_not_the_usual_one(place: Path, tmp_path: Path) -> None:
    tasks = yaml.safe_load(write_recipe(place).read_text())["tasks"]

    def keys(loss: str | None) -> list[object]:
        own = {"loss": loss} if loss else {}
        told = loaded(place, tmp_path, {}, {**tasks, "normals": {**tasks["normals"], **own}})
        training = open_training(told, "train", Silent())
        experts = [expert_key(told, task, "0") for task in TASKS]
        return [*experts, training.key(training.phase), digest(training.work.inputs())]

    usual, same, other = keys(None), keys("cosine"), keys("l1")
    assert usual == same
    assert usual[0] == other[0]  # of depth
    assert not set(usual[1:]) & set(other[1:])


def test_every_training_has_the_loss_of_its_task(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with the cosine the first loss of both tasks is another one
    tasks = {**WITHOUT_EXPERTS, "normals": {**WITHOUT_EXPERTS["normals"], "loss": "l1"}}
    found = [
        first_loss(
            open_training(loaded(place, tmp_path, {"flip": False}, one), "train", Silent()),
            monkeypatch,
        )
        for one in (WITHOUT_EXPERTS, tasks)
    ]
    assert found[0] != pytest.approx(found[1], rel=0.05)


def test_float16_is_stored_when_the_recipe_says_so(trained: Callable[..., Path]) -> None:
    tensors = read_tensors(trained(store="fp16"))[0]
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert kinds == {torch.float16}


def test_bf16_is_used_in_the_forward_pass(trained: Callable[..., Path]) -> None:
    full, mixed = read_tensors(trained())[0], read_tensors(trained(precision="bf16"))[0]
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(full[name], mixed[name])
    assert torch.allclose(full[name], mixed[name], atol=1e-2)
    assert mixed[name].dtype == torch.float32


# What is refused


def test_a_model_of_another_recipe_is_refused(place: Path, trained: Callable[..., Path]) -> None:
    path = trained()
    work = opened(write_recipe(place, image={"size": [30, 47]}, realign=[]))  # the same patches
    with pytest.raises(CheckpointError, match=r"image.size: \[32, 48\] here, \[30, 47\]"):
        read_multitask(work, path)


def test_an_expert_is_not_a_joint_model(place: Path) -> None:
    work = opened(write_recipe(place))
    with pytest.raises(CheckpointError, match=r"format: simo.expert/1 here, simo.joint/1"):
        read_multitask(work, place / "depth.safetensors")


def test_a_joint_model_is_not_an_expert(place: Path, trained: Callable[..., Path]) -> None:
    path = trained()
    tasks = {"depth": {**WITHOUT_EXPERTS["depth"], "expert": str(path)}}
    loaded(place, path.parent, {}, tasks)
    with pytest.raises(CheckpointError, match=r"format: simo.joint/1 here, simo.expert/1"):
        _ = opened(place / "tiny.yaml").experts


def test_another_split_is_an_error(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there are: realign, train"):
        train_multitask(loaded(place, tmp_path, {}), "test", Silent())


def test_no_data_is_an_error(place: Path) -> None:
    bare = {"data": None, "realign": [], "merge": {"params": {"alpha": 0.5}}}
    with pytest.raises(RecipeError, match="training needs `data`"):
        train_multitask(load_recipe(str(write_recipe(place, **bare))), "train", Silent())


# The command


def test_the_command_trains_on_the_split_it_is_told(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(place, train=TRAIN)
    options = ["--recipe", str(recipe), "--experts", str(tmp_path), "--task"]
    files = []
    for more in ([], ["--on", "realign"]):
        told = CliRunner().invoke(train_command, [*options, "joint", *more])
        assert told.exit_code == 0, told.output
        files.append(Path(told.stdout.strip()))
    assert [about(file)["learned_from"] for file in files] == ["train", "realign"]
    told = CliRunner().invoke(train_command, [*options, "depth", "--on", "realign"])
    assert told.exit_code == 2
    assert "--on goes with --task joint" in told.output
