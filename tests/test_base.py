"""The base: weights as their authors publish them are taken, and what does not fit is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from simo_build.base import load_base
from simo_build.checkpoints import METADATA, read_tensors
from simo_build.encoder import Encoder, randomise
from simo_build.loading import LoadedRecipe
from simo_build.statedict import prefixed, state_hash
from simo_runtime.errors import CheckpointError
from tests.weights import DINO, REGISTERS, loaded, make_encoder, read, rewritten, written


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    return written(tmp_path)


def plain(given: LoadedRecipe, *, grid: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Give all the weights of a recipe's model as its authors publish them, on a grid of theirs."""
    encoder = given.recipe.encoder
    options = encoder.options | {}
    whole = encoder.model_copy(update={"taps": (int(options["depth"]),)})
    made = Encoder(whole, given.recipe.image)
    randomise(made, seed)
    state = {name: tensor.clone() for name, tensor in made.weights().items()}
    prefix = state["pos_embed"].shape[1] - made.geometry.grid[0] * made.geometry.grid[1]
    generator = torch.Generator().manual_seed(seed)
    state["pos_embed"] = torch.randn(1, prefix + grid[0] * grid[1], 32, generator=generator)
    return state


def dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's tensors to what DINOv2's own files hold."""
    renamed = {**state, "mask_token": torch.zeros(1, 32)}
    if "reg_token" in state:
        renamed["register_tokens"] = renamed.pop("reg_token")
        cls_place = torch.full((1, 1, 32), 0.25)
        renamed["pos_embed"] = torch.cat((cls_place, state["pos_embed"]), dim=1)
    return renamed


def load(given: LoadedRecipe, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    torch.save(dict(state), given.folder / "base.pth")
    encoder = make_encoder(given, seed=99)
    load_base(given, encoder)
    return encoder.weights()


def test_a_timm_file_is_taken_without_its_classifier(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = plain(given, grid=(2, 3))
    classifier = {"head.weight": torch.ones(10, 32), "head.bias": torch.ones(10)}
    assert state_hash(load(given, state | classifier)) == state_hash(state)


def test_the_hash_of_a_base_is_that_of_its_weights(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    torch.save(plain(given, grid=(14, 14)), tmp_path / "base.pth")
    encoder = make_encoder(given)
    assert load_base(given, encoder) == state_hash(encoder.weights())


@pytest.mark.parametrize("grid", [(14, 14), (4, 4)])
def test_the_position_embedding_is_resampled_from_a_square_grid(
    tmp_path: Path, grid: tuple[int, int]
) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = plain(given, grid=grid)
    expected = resample_abs_pos_embed(state["pos_embed"], new_size=[2, 3], old_size=list(grid))
    assert torch.equal(load(given, state)["pos_embed"], expected)


def test_a_grid_of_as_many_patches_but_another_shape_is_resampled(tmp_path: Path) -> None:
    """196 patches are timm's own 14 x 14 here, not the recipe's 7 x 28."""
    given = loaded(tmp_path, base="base.pth", size=(112, 448))
    state = plain(given, grid=(14, 14))
    assert not torch.equal(load(given, state)["pos_embed"], state["pos_embed"])


def test_a_dinov2_file_of_518_pixels_is_taken(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth", model=DINO, size=(28, 42))
    state = plain(given, grid=(37, 37))
    assert "blocks.0.ls1.gamma" in state
    expected = resample_abs_pos_embed(state["pos_embed"], new_size=[2, 3], old_size=[37, 37])
    assert state_hash(load(given, dinov2(state))) == state_hash({**state, "pos_embed": expected})


def test_a_dinov2_file_with_registers_is_taken(tmp_path: Path) -> None:
    """timm adds the position of CLS to CLS itself, and gives registers none."""
    given = loaded(tmp_path, base="base.pth", model=REGISTERS, size=(28, 42))
    state = plain(given, grid=(37, 37))
    found = load(given, dinov2(state))
    expected = resample_abs_pos_embed(
        state["pos_embed"], new_size=[2, 3], old_size=[37, 37], num_prefix_tokens=0
    )
    assert torch.equal(found["pos_embed"], expected)
    assert torch.equal(found["cls_token"], state["cls_token"] + 0.25)
    assert torch.equal(found["reg_token"], state["reg_token"])


def test_blocks_after_the_last_tap_are_not_needed(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth", taps=(1, 2))
    state = plain(given, grid=(2, 3))
    assert set(state) - set(load(given, state)) == {n for n in state if n.startswith("blocks.2.")}


def test_a_file_of_ours_is_a_base(expert_file: Path) -> None:
    given = loaded(expert_file.parent, base=expert_file.name)
    encoder = make_encoder(given, seed=99)
    load_base(given, encoder)
    assert state_hash(encoder.weights()) == state_hash(read(expert_file).encoder)


def test_a_file_of_ours_on_another_oblong_grid_is_resampled(expert_file: Path) -> None:
    given = loaded(expert_file.parent, base=expert_file.name, size=(48, 32))  # 2 x 3 to 3 x 2
    encoder = make_encoder(given, seed=99)
    load_base(given, encoder)
    old = read(expert_file).encoder["pos_embed"]
    expected = resample_abs_pos_embed(old, new_size=[3, 2], old_size=[2, 3])
    assert torch.equal(encoder.weights()["pos_embed"], expected)


def test_a_file_of_ours_that_does_not_tell_its_image_is_no_base(expert_file: Path) -> None:
    tensors, metadata = read_tensors(expert_file)
    told = json.loads(metadata[METADATA])
    del told["image"]
    rewritten(expert_file, tensors, {METADATA: json.dumps(told)})
    given = loaded(expert_file.parent, base=expert_file.name)
    with pytest.raises(CheckpointError, match="does not say its image's size"):
        load_base(given, make_encoder(given))


def test_half_precision_weights_are_a_base_in_float32(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    half = {name: tensor.half() for name, tensor in plain(given, grid=(2, 3)).items()}
    assert {tensor.dtype for tensor in load(given, half).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"embed_dim": 64}, r"\d\d tensors do not fit .*blocks\.0\.attn.*  and \d\d more\Z"),
        ({"depth": 4}, r"12 tensors do not fit .*blocks\.3\..* no such tensor.*  and 7 more\Z"),
        ({"depth": 2}, r"12 tensors do not fit .*blocks\.2\..*: missing, .*  and 7 more\Z"),
        ({"patch_size": 8}, r"its patches are \(8, 8\) pixels, those of .* are \(16, 16\)"),
        ({"model": REGISTERS, "patch_size": 16}, r"tensors do not fit .*ls1\.gamma"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_a_short_list(
    tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = make_encoder(
        loaded(
            tmp_path, taps=(2,) if other.get("depth") == 2 else (1, other.get("depth", 3)), **other
        )
    ).weights()
    with pytest.raises(CheckpointError, match=f"(?s){told}"):
        load(given, state)


def test_a_position_embedding_of_an_unknown_grid_is_refused(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = plain(given, grid=(1, 7))
    with pytest.raises(CheckpointError, match=r"pos_embed: \(1, 8, 32\) here, \(1, 7, 32\) in the"):
        load(given, state)


@pytest.mark.parametrize("name", ["extra.weight", "blocks.7.norm1.weight", "blocks.0.attn.extra"])
def test_a_tensor_that_the_model_does_not_have_is_refused_by_name(
    tmp_path: Path, name: str
) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = {**plain(given, grid=(2, 3)), name: torch.ones(3)}
    with pytest.raises(CheckpointError, match=rf"{name}: \(3,\), the model has no such tensor"):
        load(given, state)


def test_weights_that_are_no_vit_are_refused(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    with pytest.raises(CheckpointError, match=r"(?s)not a ViT of timm or DINOv2.*conv1\.weight"):
        load(given, {"conv1.weight": torch.ones(1)})


def test_a_base_that_is_not_finite_is_refused_by_tensor(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = plain(given, grid=(2, 3))
    state["cls_token"][0, 0, 5] = float("nan")
    with pytest.raises(CheckpointError, match=r"(?s)not finite.*cls_token"):
        load(given, state)


def test_a_random_base_needs_no_file(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="random(7)")
    encoder = make_encoder(given, seed=99)
    assert load_base(given, encoder) == state_hash(make_encoder(given, seed=7).weights())


def test_a_tensor_under_a_prefix_of_another_tool_is_refused(tmp_path: Path) -> None:
    given = loaded(tmp_path, base="base.pth")
    state = prefixed(plain(given, grid=(2, 3)), "module.")
    with pytest.raises(CheckpointError, match=r"(?s)not a ViT of timm or DINOv2.*module\."):
        load(given, state)
