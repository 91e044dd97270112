"""The merge stage of a build on the sample's experts: what it gives, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from simo_build.checkpoints import read_tensors
from simo_build.loading import load_recipe
from simo_build.merge import METHODS, Moved, balanced_alpha
from simo_build.merge.combined import apart
from simo_build.merging import Merger, check_recipe, merge
from simo_build.progress import Silent
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop
from simo_runtime.errors import CheckpointError, RecipeError, SimoError, UnknownNameError

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "rooms"
FC1, PATCH = "blocks.7.mlp.fc1.weight", "patch_embed.proj.weight"

Open = Callable[..., Workshop]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Open the sample's recipe, without data, with other merging or experts."""

    def open_with(merging: dict[str, Any], **experts: Path) -> Workshop:
        content = yaml.safe_load((SAMPLE / "rooms.yaml").read_text())
        for task, part in content["tasks"].items():
            part["expert"] = str(experts.get(task, SAMPLE / "experts" / f"{task}.safetensors"))
        changes = {"base": str(SAMPLE / "base.safetensors"), "merge": merging, "realign": []}
        recipe = {key: value for key, value in content.items() if key != "data"} | changes
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(recipe))
        loaded = load_recipe(str(path))
        check_recipe(loaded)
        return Workshop(loaded, Stages(tmp_path / ".stages", Silent()))

    return open_with


def sums(work: Workshop) -> StateDict:
    """The sum of the experts' deltas, in float64."""
    return {
        name: sum((one.encoder[name].double() - base.double()) for one in work.experts.values())
        for name, base in work.base.items()
    }


def test_the_merged_encoder_is_the_base_plus_the_methods_delta(opened: Open) -> None:
    work = opened({"params": {"alpha": 0.3}})
    merged = merge(work)
    assert merged.log == {"params": {"alpha": 0.3}}
    for name, total in sums(work).items():
        expected = (work.base[name].double() + 0.3 * total).float()
        assert_close(merged.tensors[name], expected, rtol=1e-6, atol=1e-6)


def test_lines_scale_the_delta_of_any_method_by_depth(opened: Open) -> None:
    # of eight blocks the last takes 0.6 + 0.5, the patch embedding 0.6, of 0.3 times the sum
    work = opened({"params": {"alpha": 0.3}, "lines": {"alpha": 0.6, "beta": 0.5}})
    merged = merge(work)
    assert merged.log["params"] == {"alpha": 0.3, "lines.beta": 0.5, "lines.alpha": 0.6}
    for name, scale in ((FC1, 1.1 * 0.3), (PATCH, 0.6 * 0.3)):
        expected = (work.base[name].double() + scale * sums(work)[name]).float()
        assert_close(merged.tensors[name], expected, rtol=1e-6, atol=1e-6)


def test_balanced_lines_undo_the_methods_own_scale_in_the_first_block(opened: Open) -> None:
    # alpha = |sum| / |0.3 * sum| / 3, so that the patch embedding takes a third of the sum
    work = opened({"params": {"alpha": 0.3}, "lines": {"beta": 0.0}})
    expected = (work.base[PATCH].double() + sums(work)[PATCH] / 3).float()
    assert_close(merge(work).tensors[PATCH], expected, rtol=1e-6, atol=1e-6)


def test_candidates_of_lines_reach_the_merger(opened: Open) -> None:
    work = opened({"method": "ties", "lines": {"beta": 0.2}})
    merger = Merger(work, METHODS["ties"])
    delta = METHODS["ties"](merger.deltas, density=0.5)
    alpha = balanced_alpha(merger.deltas, delta)
    merged = merger({"density": 0.5, "lines.beta": 0.2, "lines.alpha": "balanced"})
    assert_close(merged[FC1], work.base[FC1] + (alpha + 0.2) * delta[FC1])


def test_methods_of_matrices_alone_read_their_deltas_on_the_device(opened: Open) -> None:
    work = opened({"params": {"alpha": 0.3}})
    assert all(isinstance(one, Moved) for one in Merger(work, METHODS["iso_c"]).deltas)
    assert not any(isinstance(one, Moved) for one in Merger(work, METHODS["ties"]).deltas)


def test_parameters_of_lines_are_told_from_the_methods() -> None:
    own, lines = apart({"alpha": 0.3, "lines.beta": 0.5, "density": 0.2})
    assert (own, lines) == ({"alpha": 0.3, "density": 0.2}, {"beta": 0.5})


# What is refused, before any work: nothing is kept


def refused(work: Workshop, kind: type[SimoError], message: str) -> str:
    with pytest.raises(kind, match=message) as caught:
        merge(work)
    assert not list(work.stages.root.glob("*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("merging", "kind", "message"),
    [
        ({"method": "tie"}, UnknownNameError, r"merge\.method 'tie'; did you mean 'ties'\?"),
        (
            {"method": "ties", "params": {"densty": 0.2}},
            UnknownNameError,
            r"parameter of merge\.method ties 'densty'; did you mean 'density'\?",
        ),
        (
            {"method": "breadcrumbs", "choose": {"bta": [0.1]}},
            RecipeError,
            "`realign` and `merge.choose` need `data`",
        ),
        ({"method": "iso_c"}, RecipeError, "iso_c needs alpha"),
        (
            {"params": {"alpha": 1, "lines.beta": 1}},
            UnknownNameError,
            r"parameter of merge\.method task_arithmetic 'lines\.beta'",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_names_that_do_not_exist_are_refused_before_anything_is_read(
    opened: Open, merging: dict[str, Any], kind: type[SimoError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        opened(merging)


@pytest.mark.parametrize(
    ("merging", "message"),
    [
        ({"method": "ties", "params": {"density": 1.5}}, r"merge\.density is 1\.5"),
        ({"params": {"alpha": "big"}}, r"merge\.alpha is 'big'; it must be a number"),
        ({"params": {"alpha": {"blocks.9.*": 1}}}, r"merge\.alpha: 'blocks\.9\.\*' fits no tensor"),
        ({"params": {"alpha": 1}, "lines": {"beta": 1e7}}, r"merge\.lines\.beta is 10000000\.0"),
        (
            {"method": "consensus", "params": {"alpha": 1, "threshold": 0.4, "min_tasks": 4}},
            r"merge\.min_tasks is 4, but there are 3 tasks",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_parameter_out_of_range_is_refused_before_experts_are_read(
    opened: Open, merging: dict[str, Any], message: str
) -> None:
    work = opened(merging, seg=Path("there-is-no-such-expert.safetensors"))
    refused(work, RecipeError, message)


def test_every_candidate_is_checked_before_the_first_is_merged(opened: Open) -> None:
    work = opened({"params": {"alpha": 0.3}}, seg=Path("there-is-no-such-expert.safetensors"))
    merger = Merger(work, METHODS["dare"])
    with pytest.raises(RecipeError, match=r"merge\.drop is 1\.0; it must be at least 0 and below"):
        merger.rehearse([{"alpha": 0.3, "drop": 0.5}, {"alpha": 0.3, "drop": 1.0}])


def damaged(folder: Path, change: Callable[[StateDict, dict[str, str]], None]) -> Path:
    """Write the sample's segmentation expert with a change of its tensors or metadata."""
    tensors, metadata = read_tensors(SAMPLE / "experts" / "seg.safetensors")
    change(tensors, metadata)
    path = folder / "seg.safetensors"
    save_file(tensors, path, metadata)
    return path


def drop_a_block(tensors: StateDict, _: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("encoder.blocks.7.")]:
        del tensors[name]


def add_tensors(tensors: StateDict, _: dict[str, str]) -> None:
    tensors |= {f"encoder.blocks.8.extra{i}": torch.zeros(2) for i in range(7)}


def widen_a_block(tensors: StateDict, _: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("encoder.blocks.7.")]:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)


def spoil_weights(tensors: StateDict, _: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("encoder.blocks.7.")]:
        tensors[name] = spoilt(tensors[name])


def spoilt(tensor: Tensor) -> Tensor:
    broken = tensor.clone()
    broken.view(-1)[0] = torch.nan
    return broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_block, "12 encoder tensors do not fit"),
        (add_tensors, "7 encoder tensors do not fit"),
        (widen_a_block, "12 encoder tensors do not fit"),
        (spoil_weights, "12 tensors hold numbers that are not finite"),
    ],
)
def test_an_expert_that_does_not_fit_is_refused_with_five_offenders(
    opened: Open,
    tmp_path: Path,
    change: Callable[[StateDict, dict[str, str]], None],
    message: str,
) -> None:
    work = opened({"params": {"alpha": 0.3}}, seg=damaged(tmp_path, change))
    told = refused(work, CheckpointError, rf"seg\.safetensors: {message}")
    listed = [line for line in told.splitlines() if line.startswith("  ")]
    assert len(listed) == 6
    assert listed[-1].startswith("  and ")


def test_an_expert_of_another_base_is_refused(opened: Open, tmp_path: Path) -> None:
    def rename(_: StateDict, metadata: dict[str, str]) -> None:
        about = yaml.safe_load(metadata["simo"])
        metadata["simo"] = metadata["simo"].replace(about["base_hash"], "0" * 64)

    work = opened({"params": {"alpha": 0.3}}, seg=damaged(tmp_path, rename))
    refused(work, CheckpointError, "base_hash: 0{64} here, .* in the recipe")
