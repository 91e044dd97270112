"""Experts of another image size: the difference from their base comes to the recipe's grid."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from simo_build.base import load_base
from simo_build.checkpoints import Expert, description, write_expert, write_tensors
from simo_build.encoder import Encoder, randomise
from simo_build.experts import fitting_expert
from simo_build.loading import LoadedRecipe
from simo_build.progress import Silent
from simo_build.recipe import Recipe
from simo_build.stages import Stages
from simo_build.statedict import StateDict
from simo_build.workshop import Workshop
from simo_runtime.errors import CheckpointError

HERE, THERE = (32, 48), (64, 48)  # pixels: grids of 2 x 3 and 4 x 3 patches


def loaded(folder: Path, size: tuple[int, int], **image: object) -> LoadedRecipe:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "encoder": {
                "model": "vit_tiny_patch16_224",
                "options": {"embed_dim": 32, "depth": 2, "num_heads": 2},
                "taps": (2,),
            },
            "base": "base.safetensors",
            "image": {"size": size, **image},
            "tasks": {"depth": {"kind": "depth", "expert": "expert.safetensors"}},
        }
    )
    return LoadedRecipe(
        recipe=recipe, text="", folder=folder, shown="r.yaml", data=None, experts=folder
    )


Change = Callable[[StateDict], StateDict]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a base of timm's own size, 224 x 224."""
    recipe = loaded(tmp_path, (224, 224)).recipe
    encoder = Encoder(recipe.encoder, recipe.image)
    randomise(encoder, 0)
    write_tensors(tmp_path / "base.safetensors", encoder.weights(), {})
    return tmp_path


def base_at(folder: Path, size: tuple[int, int]) -> tuple[Encoder, StateDict, str]:
    made = loaded(folder, size)
    encoder = Encoder(made.recipe.encoder, made.recipe.image)
    found = load_base(made, encoder)
    return encoder, {name: tensor.clone() for name, tensor in encoder.weights().items()}, found


def expert_at(
    folder: Path,
    size: tuple[int, int],
    change: Change,
    *,
    base_hash: str = "",
    head: StateDict | None = None,
    **image: object,
) -> Path:
    """Write an expert that was made for some image size, by a change of the base at that size."""
    _, base, found = base_at(folder, size)
    about = description(loaded(folder, size, **image).recipe, "depth", base_hash or found)
    path = folder / "expert.safetensors"
    write_expert(path, encoder=change(base), head=head or {}, about=about)
    return path


def read(path: Path) -> Expert:
    folder = path.parent
    encoder, base, found = base_at(folder, HERE)
    given = loaded(folder, HERE)
    return fitting_expert(path, given, "depth", encoder=encoder, base=base, base_hash=found)


def move(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda tensor: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)


def everything(base: StateDict) -> StateDict:
    return {name: move(1)(tensor) for name, tensor in base.items()}


def all_but_positions(base: StateDict) -> StateDict:
    return {**everything(base), "pos_embed": base["pos_embed"]}


def test_an_expert_of_the_recipes_size_stays_as_it_is(folder: Path) -> None:
    tuned = everything(base_at(folder, HERE)[1])
    found = read(expert_at(folder, HERE, everything)).encoder
    assert all(torch.equal(found[name], tensor) for name, tensor in tuned.items())


def test_the_difference_of_positions_is_resampled(folder: Path) -> None:
    base_there, base_here = base_at(folder, THERE)[1], base_at(folder, HERE)[1]
    tuned = everything(base_there)
    found = read(expert_at(folder, THERE, everything)).encoder
    moved = resample_abs_pos_embed(
        tuned["pos_embed"] - base_there["pos_embed"], new_size=[2, 3], old_size=[4, 3]
    )
    assert torch.equal(found["pos_embed"], base_here["pos_embed"] + moved)
    rest = [name for name in tuned if name != "pos_embed"]
    assert all(torch.equal(found[name], tuned[name]) for name in rest)


def test_positions_that_training_did_not_move_are_the_bases(folder: Path) -> None:
    found = read(expert_at(folder, THERE, all_but_positions)).encoder
    assert torch.equal(found["pos_embed"], base_at(folder, HERE)[1]["pos_embed"])


class Told(Silent):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_workshop_says_what_it_resampled(folder: Path) -> None:
    told = Told()
    work = Workshop(loaded(folder, HERE), Stages(folder / ".stages", told))
    head = work.heads()["depth"].state_dict()
    expert_at(folder, THERE, all_but_positions, head=head)
    expert = work.experts["depth"]
    assert torch.equal(expert.encoder["pos_embed"], work.base["pos_embed"])
    assert told.lines == [
        "expert depth: made for 64 x 48 pixels, its position embedding is resampled to those of "
        "32 x 48"
    ]


def test_another_size_on_the_same_grid_needs_no_resampling(folder: Path) -> None:
    # 30 x 47 pixels are padded to 32 x 48
    tuned = everything(base_at(folder, (30, 47))[1])
    found = read(expert_at(folder, (30, 47), everything)).encoder
    assert torch.equal(found["pos_embed"], tuned["pos_embed"])


def test_another_base_is_refused_at_another_size_too(folder: Path) -> None:
    path = expert_at(folder, THERE, everything, base_hash="0" * 64)
    with pytest.raises(CheckpointError, match=r"base_hash: 0{64} here, "):
        read(path)


def test_other_colours_are_refused_at_another_size_too(folder: Path) -> None:
    path = expert_at(folder, THERE, everything, mean=(0.4, 0.4, 0.4))
    with pytest.raises(CheckpointError, match=r"image\.mean: .* in the recipe") as caught:
        read(path)
    assert "image.size" not in str(caught.value)


def test_positions_of_a_grid_that_the_file_does_not_tell_are_refused(folder: Path) -> None:
    def cut(base: StateDict) -> StateDict:
        return {**base, "pos_embed": base["pos_embed"][:, :-1]}

    with pytest.raises(CheckpointError, match="1 encoder tensors do not fit"):
        read(expert_at(folder, THERE, cut))


def test_a_base_that_cannot_come_to_the_experts_size_is_told(folder: Path) -> None:
    # 2 x 3 patches: known for the recipe's grid only
    encoder, base, found = base_at(folder, HERE)
    path = expert_at(folder, THERE, everything)
    write_tensors(folder / "base.safetensors", base, {})
    with pytest.raises(
        CheckpointError, match=r"made for images of \(64, 48\).*does not fit the exp"
    ):
        fitting_expert(
            path, loaded(folder, HERE), "depth", encoder=encoder, base=base, base_hash=found
        )


@pytest.mark.parametrize("size", [(0, 48), (-16, 16)])
def test_a_size_that_cannot_be_is_refused(folder: Path, size: tuple[int, int]) -> None:
    _, base, found = base_at(folder, HERE)
    about = description(loaded(folder, HERE).recipe, "depth", found)
    about["image"]["size"] = list(size)
    path = folder / "expert.safetensors"
    write_expert(path, encoder=base, head={}, about=about)
    with pytest.raises(CheckpointError, match="its image's size cannot be"):
        read(path)
