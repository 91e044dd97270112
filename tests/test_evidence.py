"""Methods that look at images, in a build: gathered once, kept, told in the log, refused early."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.testing import assert_close

from simo_build.cli import merge_command
from simo_build.evidence import KINDS, Gathered, statistics
from simo_build.merge import METHODS
from simo_build.merge.registry import EVIDENCE
from simo_build.merging import Merger, merge
from simo_build.statedict import subtract
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError
from tests.merging import PARAMS
from tests.tiny import TASKS, opened, write_recipe, write_workplace

IMAGES = 4
NEEDY = [name for name, method in METHODS.items() if method.needs]
SHARED = [name for name in NEEDY if not METHODS[name].walks]  # all candidates use the same


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_workplace(folder)
    return folder


def work_with(place: Path, method: str = "regmean", **merging: Any) -> Workshop:
    """Open the tiny recipe with a method; its stages are those of all the tests here."""
    return opened(write_recipe(place, merge={"method": method, "images": IMAGES, **merging}))


def kept(work: Workshop, name: str) -> list[Path]:
    return sorted(work.stages.root.glob(f"{name}-*"))


def test_every_kind_that_a_method_may_need_can_be_gathered() -> None:
    assert {kind for kind in EVIDENCE if kind} == set(KINDS)


@pytest.mark.parametrize("method", SHARED)
def test_a_merge_is_the_method_on_what_was_gathered(place: Path, method: str) -> None:
    work = work_with(place, method, params=PARAMS.get(method, {}))
    merged = merge(work)
    evidence = Gathered(work, METHODS[method].needs).read()
    deltas = [subtract(one.encoder, work.base) for one in work.experts.values()]
    for name, delta in METHODS[method](deltas, evidence, **PARAMS.get(method, {})).items():
        assert_close(merged.tensors[name], work.base[name] + delta)


@pytest.mark.parametrize("method", NEEDY)
def test_the_log_says_how_many_images_and_labels_were_looked_at(place: Path, method: str) -> None:
    merged = merge(work_with(place, method, params=PARAMS.get(method, {})))
    labels = IMAGES if KINDS[METHODS[method].needs].labels else 0
    assert merged.log["evidence"] == {"images": IMAGES, "labels": labels}


@pytest.mark.parametrize("method", SHARED)
def test_candidates_share_what_was_gathered(
    place: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_with(place, method, choose={"alpha": [0.5, 0.7]})
    gathered = []
    kind = METHODS[method].needs
    original = KINDS[kind].gather

    def counted(work: Workshop, task: str, samples: Any) -> Any:
        gathered.append(task)
        return original(work, task, samples)

    monkeypatch.setitem(KINDS, kind, type(KINDS[kind])(counted, KINDS[kind].labels))
    for path in work.stages.root.glob("*"):
        path.unlink()
    log = merge(work).log
    assert [row["params"]["alpha"] for row in log["tried"]] == [0.5, 0.7]
    assert sorted(gathered) == sorted(TASKS)


def test_evidence_is_kept_by_expert_and_number_of_images(place: Path) -> None:
    for path in (place / ".stages").glob("*"):
        path.unlink()
    Gathered(work_with(place), "grams").read()
    work = work_with(place, images=3)
    assert [len(kept(work, f"grams-{task}")) for task in TASKS] == [1, 1]
    Gathered(work, "grams").read()
    assert [len(kept(work, f"grams-{task}")) for task in TASKS] == [2, 2]
    Gathered(work_with(place, params={"off_diagonal": 0.5}), "grams").read()
    assert [len(kept(work, f"grams-{task}")) for task in TASKS] == [2, 2]


def test_evidence_is_that_of_the_task_it_stands_for(place: Path) -> None:
    work = work_with(place)
    first, second = Gathered(work, "grams").read()
    patch, deep = "patch_embed.proj.weight", "blocks.1.mlp.fc2.weight"
    assert torch.equal(first[patch], second[patch])  # the same images
    assert not torch.equal(first[deep], second[deep])
    turned = opened(
        write_recipe(place, tasks=TASKS[::-1], merge={"method": "regmean", "images": IMAGES})
    )
    assert torch.equal(Gathered(turned, "grams").read()[1][deep], first[deep])


def test_more_images_than_there_are_is_refused_before_experts_are_read(place: Path) -> None:
    work = work_with(place, images=7)
    merger = Merger(work, METHODS["regmean"])
    with pytest.raises(RecipeError, match=r"merge\.images is 7, but the split .* has 6 images"):
        merger.rehearse([{}])
    assert "experts" not in vars(work)


@pytest.mark.parametrize("method", NEEDY)
def test_a_recipe_without_data_is_refused(place: Path, method: str) -> None:
    recipe = write_recipe(
        place, data=None, realign=[], merge={"method": method, "params": PARAMS.get(method, {})}
    )
    with pytest.raises(RecipeError, match=f"merge.method {method} looks at images, so it needs"):
        opened(recipe)


def test_statistics_are_those_of_the_weights_given(place: Path) -> None:
    work = work_with(place)
    samples = work.unlabelled(IMAGES)
    for weights in (work.base, work.experts[TASKS[0]].encoder):
        found = statistics(work, weights, samples, "a test")
        taps = work.features(weights, samples, "a test")  # after both of the two blocks
        for mean, tap in zip(found.means, taps, strict=True):
            assert_close(mean, tap.double().flatten(0, 1).mean(dim=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["regmean", "fisher", "regmean_plusplus"])
def test_simo_merge_writes_what_a_build_merges(place: Path, tmp_path: Path, method: str) -> None:
    work, out = work_with(place, method), tmp_path / "merged.safetensors"
    told = CliRunner().invoke(merge_command, ["--recipe", str(place / "tiny.yaml"), "-o", str(out)])
    assert told.exit_code == 0, told.output
    expected = merge(work).tensors
    assert load_file(out).keys() == {f"encoder.{name}" for name in expected}
    for name, tensor in load_file(out).items():
        assert torch.equal(tensor, expected[name.removeprefix("encoder.")])
