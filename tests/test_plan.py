"""simo-build --dry-run: what would be done, and what stands in the way of it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner

from simo_build.build import build
from simo_build.cli import build_command
from simo_build.loading import load_recipe
from simo_build.plan import Plan, memory, plan
from simo_build.plan.words import size
from simo_build.progress import Silent
from simo_build.size import sizes_of
from simo_runtime.errors import RecipeError
from tests.tiny import MERGE, write_recipe, write_workplace


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_workplace(tmp_path).parent


def planned(place: Path, **changes: Any) -> Plan:
    recipe = load_recipe(str(write_recipe(place, **changes)), experts=place / "experts")
    return plan(recipe, place / "bundles" / "tiny")


def text(found: Plan) -> str:
    return "\n".join(found.lines)


def test_a_plan_says_what_every_stage_reads(place: Path) -> None:
    found = planned(place)
    assert not found.faults
    told = text(found)
    assert "image     32 x 48 pixels: 2 x 3 patches" in told
    assert "  realign realign: 6 images, labels of depth, normals" in told
    assert "  test    test: not read by a build (2 images)" in told
    assert "1 merge   task_arithmetic, 2 candidates of alpha, chosen by 3 images of select" in told
    # 6 images and their mirror images are one batch of 16
    assert "head: 2 heads, each 1 step in 1 epoch on 6 images of realign and their mirror" in told
    assert "3 export  4 graphs in fp32" in told
    assert "kept" not in told
    assert not (place / "bundles").exists()


def test_a_plan_has_no_curves(place: Path) -> None:
    options = ["--recipe", str(place / "tiny.yaml"), "--dry-run", "--tensorboard", str(place)]
    told = CliRunner().invoke(build_command, options)
    assert told.exit_code == 2
    assert "with --dry-run nothing does" in told.output


def test_a_plan_counts_as_the_build_does(place: Path) -> None:
    # by hand: D = 32, MLP 128, patches of 16 x 16 x 3, 6 patches and CLS, 2 blocks
    sizes = sizes_of(load_recipe(str(place / "tiny.yaml")).recipe)
    block = 4 * 32 * 32 + 2 * 32 * 128
    embedding = 768 * 32
    biases = (3 * 32 + 32 + 128 + 32) + 4 * 32  # of linear layers, and two norms
    outside = 32 + 32 + 7 * 32 + 2 * 32  # of patches, CLS, positions and the last norm
    assert sizes.encoder.parameters == embedding + 2 * (block + biases) + outside
    attention = 2 * 7 * 7 * 32
    assert sizes.encoder.macs == 6 * embedding + 2 * (7 * block + attention)
    assert sizes.heads["depth"].parameters == 2 * 2 * 32 + 1
    assert sizes.heads["depth"].macs == 6 * 2 * 2 * 32
    assert (sizes.tokens, sizes.width) == (7, 32)
    assert sizes.coarse == {"depth": 6, "normals": 3 * 6}


def test_stages_of_an_earlier_build_are_kept(place: Path) -> None:
    export = {"images": 1}
    loaded = load_recipe(str(write_recipe(place, export=export)))
    build(loaded, place / "bundles" / "tiny", progress=Silent())
    told = text(planned(place, export=export))
    assert "by 3 images of select with labels [kept from an earlier build]" in told
    assert "2 realign 1 step [kept from an earlier build]" in told
    assert "compared with PyTorch on 1 image of select [is there]" in told
    longer = [{"step": "head", "epochs": 2, "lr": 1e-3}]
    told = text(planned(place, export=export, realign=longer))
    assert told.count("[kept from an earlier build]") == 1
    assert "[a bundle is there, and would be replaced]" in told


@pytest.mark.parametrize("skip", [False, True])
def test_a_plan_takes_an_unreadable_image_as_a_build_does(place: Path, skip: bool) -> None:
    data = yaml.safe_load((place / "tiny.yaml").read_text())["data"]
    first = json.loads((place / "data" / "meta.json").read_text())["splits"]["realign"][0]
    images = sorted((place / "data" / "rgb").iterdir())
    images[first].write_text("text")
    found = planned(place, data={**data, "skip_unreadable": skip})
    assert [images[first].name in fault for fault in found.faults] == ([] if skip else [True])
    for image in images:
        image.write_text("text")
    assert len(planned(place, data={**data, "skip_unreadable": True}).faults) == 2  # of two splits


@pytest.mark.parametrize(
    ("realign", "told"),
    [
        ([], "2 realign nothing: heads stay as they are, and lose what merging cost; `realign: ["),
        (
            [{"step": "calibrate", "images": 4}],
            "calibrate: the encoder, on 4 images of realign, without labels",
        ),
        (
            [{"step": "calibrate", "images": 4, "choose": {"rho": [1, 2]}}],
            "calibrate: the encoder, chosen by 3 images of select with labels, on 4 images of",
        ),
        (
            [{"step": "calibrate", "images": 4, "choose": {"rho": [1]}, "by": "teachers"}],
            "calibrate: the encoder, chosen by 3 images of select without labels, on 4 images",
        ),
        (
            [{"step": "head", "flip": False, "batch": 4, "epochs": 3}],
            "head: 2 heads, each 6 steps in 3 epochs on 6 images of realign, with labels; the best "
            "epoch by 3 images of select, with labels",
        ),
        (
            [{"step": "distill", "views": 1, "batch": 4, "epochs": 2, "by": "teachers"}],
            "distill: the encoder and 2 heads, 6 steps in 2 epochs on 6 images of realign and "
            "their mirror images, without labels; the best epoch by 3 images of select, without",
        ),
        (
            [{"step": "representation", "heads": "none", "batch": 4, "epochs": 1}],
            "representation: the encoder, 3 steps in 1 epoch on 6 images of realign",
        ),
    ],
)
def test_a_step_says_what_it_learns_from(place: Path, realign: Any, told: str) -> None:
    assert told in text(planned(place, realign=realign))


@pytest.mark.parametrize(
    ("merge", "told"),
    [
        ({"method": "tsv_m"}, "tsv_m, no choice"),
        (
            {"choose": {"alpha": [0.5, 1]}, "by": "cosine", "images": 4},
            "2 candidates of alpha, chosen by cosine on 4 images of realign without labels",
        ),
        (
            {"method": "regmean", "images": 4},
            "gathers grams of every expert on 4 images of realign without labels",
        ),
        (
            {"method": "fisher_labelled", "images": 4},
            "gathers fisher_labels of every expert on 4 images of realign with labels",
        ),
        (
            {"method": "adamerging", "images": 4, "params": {"epochs": 3, "loss": "labels"}},
            # one of four images is held out
            "learns  3 steps on 4 images of realign with labels",
        ),
    ],
)
def test_a_merge_says_what_it_looks_at(place: Path, merge: Any, told: str) -> None:
    found = planned(place, merge=merge)
    assert told in text(found)
    assert not found.faults


def test_further_images_are_counted_and_need_no_truths(place: Path) -> None:
    for path in (place / "data" / "depth").glob("*.png"):
        if path.stem in further(place):
            path.unlink()
    step = {"step": "distill", "batch": 4, "epochs": 3, "views": 2, "scales": [1.0, 1.2]}
    step |= {"flip": False, "unlabelled": True}
    found = planned(place, data={"root": "data", "unlabelled": "train"}, realign=[step])
    assert not found.faults
    told = text(found)
    assert "  unlabelled train: 2 images, no labels" in told
    assert "12 steps in 3 epochs on 6 images of realign, without labels, 2 views" in told
    assert "2 images of unlabelled; the best epoch" in told


def further(place: Path) -> list[str]:
    splits = json.loads((place / "data" / "meta.json").read_text())["splits"]
    return [f"{number:04d}" for number in splits["train"]]


def test_a_merge_that_asks_for_more_images_than_there_are_is_a_fault(place: Path) -> None:
    found = planned(place, merge={"method": "regmean", "images": 7})
    assert found.faults == ["merge.images is 7, but the split for re-alignment has 6 images"]


def test_a_missing_expert_comes_with_its_command(place: Path) -> None:
    (place / "depth.safetensors").unlink()
    found = planned(place)
    assert f"missing; simo-train --recipe {place / 'tiny.yaml'} --task depth" in text(found)
    assert "expert    normals: " in text(found)
    assert len(found.faults) == 1
    assert "the expert of depth is missing" in found.faults[0]


def test_a_missing_expert_that_may_be_trained_is_no_fault(place: Path) -> None:
    (place / "depth.safetensors").unlink()
    train = {"head": {"epochs": 2, "lr": 1e-3}, "full": {"epochs": 3, "lr": 1e-3}, "batch": 1}
    found = planned(place, train_missing=True, train=train)
    assert not found.faults
    told = "it would be trained on 2 images with labels, in 4 steps of the head and 6 of all"
    assert told in text(found)
    assert not (place / "depth.safetensors").exists()


def test_without_weights_and_data_the_rest_is_planned(place: Path) -> None:
    (place / "base.safetensors").unlink()
    shutil.rmtree(place / "data")
    found = planned(place)
    told = text(found)
    assert "base      base.safetensors: cannot be used, see below" in told
    assert "  realign realign: unknown" in told
    assert "an unknown number of steps in 1 epoch on the images of realign" in told
    assert "million multiply-adds" in told
    assert [fault.partition(": ")[2].partition(" (")[0] for fault in found.faults] == [
        "there is no such file",
        "there is no such folder",
    ]


def test_a_data_folder_that_is_not_named_is_a_fault(place: Path) -> None:
    found = planned(place, data={"root": "$DATA/x"})
    assert len(found.faults) == 1
    assert "give --data DIR or set SIMO_DATA" in found.faults[0]
    assert "expert    depth: " in text(found)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: (data / "depth" / "0004.png").unlink(), "have no truth of depth"),
        (lambda data: (data / "rgb" / "0002.png").write_text("x"), "not a JPEG, PNG"),
        (
            lambda data: shutil.copy(data / "rgb" / "0002.png", data / "depth" / "0002.png"),
            r"depth is uint16",
        ),
    ],
)
def test_what_would_fail_early_is_a_fault(place: Path, damage: Any, told: str) -> None:
    damage(place / "data")
    found = planned(place)
    assert len(found.faults) == 1
    assert told in found.faults[0]
    assert "  realign realign: cannot be read, see below" in text(found)


def test_an_empty_split_is_a_fault(place: Path) -> None:
    meta = place / "data" / "meta.json"
    meta.write_text(json.dumps({"splits": {"realign": [], "select": [1]}}))
    found = planned(place)
    assert [fault.partition(": ")[2] for fault in found.faults] == ["the split 'realign' is empty"]


def test_a_folder_with_something_else_in_it_is_a_fault(place: Path) -> None:
    (place / "bundles" / "tiny").mkdir(parents=True)
    (place / "bundles" / "tiny" / "thesis.txt").write_text("years of work")
    found = planned(place)
    assert len(found.faults) == 1
    assert "there is something else here" in found.faults[0]


def test_an_expert_that_does_not_fit_is_a_fault(place: Path) -> None:
    shutil.copy(place / "normals.safetensors", place / "depth.safetensors")
    found = planned(place)
    assert len(found.faults) == 1
    assert "the expert does not fit the recipe" in found.faults[0]


class Usage(NamedTuple):
    free: int


def test_a_disk_without_room_is_a_fault(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simo_build.plan.memory.LIMIT", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10))
    found = planned(place)
    assert "disk      " in text(found)
    assert len(found.faults) == 1
    assert found.faults[0].startswith(tempfile.gettempdir())
    assert "set TMPDIR to a folder with more" in found.faults[0]


def test_what_experts_say_takes_room(place: Path) -> None:
    # 6 images, two views, mirrored; 3 of select; 7 tokens of 32 numbers, 2 taps, 2 tasks
    step: dict[str, object] = {"step": "distill", "views": 2, "scales": [1, 1.2]}
    labels = text(planned(place, realign=[{**step, "labels": True, "outputs": 0}]))
    assert "the experts'" not in labels
    answers = text(planned(place, realign=[{**step, "by": "teachers"}]))
    assert f"{size(4 * (2 * 2 * 6 + 3) * (6 + 18))} of the experts' answers" in answers
    assert "the experts' features" not in answers
    features = text(planned(place, realign=[{**step, "features": 1}]))
    assert f"{size(2 * (2 * 2 * 6) * 2 * 2 * 7 * 32)} of the experts' features" in features


def test_arrays_lie_in_files_once_those_before_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "LIMIT", 100)
    found = [memory._past_the_limit(every) for every in ([60, 40], [60, 41, 40], [101])]
    assert found == [0, 41, 101]


def test_random_weights_need_nothing(place: Path) -> None:
    content = {
        "base": "random(0)",
        "merge": {"params": {"alpha": 1}},
        "realign": [],
        "data": None,
        "tasks": {"depth": {"kind": "depth"}},
    }
    found = planned(place, **content)
    assert not found.faults
    assert "base      random(0): random weights, to measure speed" in text(found)


def test_a_recipe_that_cannot_be_is_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="task_arithmetic needs alpha"):
        planned(place, merge={})
    encoder = {"model": "vit_tiny_patch16_224", "taps": [13]}
    with pytest.raises(RecipeError, match=r"encoder\.taps: 13 is past the last block"):
        planned(place, encoder=encoder, merge=MERGE)


def test_the_command_prints_the_plan_and_exits_with_1_if_something_is_missing(place: Path) -> None:
    arguments = ["--recipe", str(place / "tiny.yaml"), "--dry-run", "-o", str(place / "out")]
    told = CliRunner().invoke(build_command, arguments)
    assert told.exit_code == 0
    assert told.stdout.startswith("recipe    tiny")
    assert told.stderr == ""
    (place / "base.safetensors").unlink()
    told = CliRunner().invoke(build_command, arguments)
    assert told.exit_code == 1
    assert told.stdout.startswith("recipe    tiny")
    assert "base.safetensors: there is no such file" in told.stderr
    assert not (place / "out").exists()
