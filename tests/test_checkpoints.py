"""Weights on disk: what is read comes back as it was, and what does not fit is refused."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from simo_build.base import load_base
from simo_build.checkpoints import (
    METADATA,
    Expert,
    description,
    read_expert,
    read_tensors,
    write_expert,
    write_tensors,
)
from simo_build.encoder import Encoder, randomise
from simo_build.loading import LoadedRecipe
from simo_build.recipe import Recipe
from simo_build.statedict import prefixed, state_hash
from simo_runtime.errors import CheckpointError

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
TIMM, DINO, REGISTERS = (
    "vit_tiny_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
)


def loaded(
    folder: Path,
    *,
    model: str = TIMM,
    base: str = "base.safetensors",
    size: tuple[int, int] = (32, 48),
    taps: tuple[int, ...] = (1, 3),
    labels: tuple[str, ...] = ("wall", "floor"),
    **options: object,
) -> LoadedRecipe:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "encoder": {"model": model, "options": {**SMALL, **options}, "taps": taps},
            "base": base,
            "image": {"size": size},
            "tasks": {"seg": {"kind": "segmentation", "labels": labels}},
        }
    )
    return LoadedRecipe(
        recipe=recipe, text="", folder=folder, shown="r.yaml", data=None, experts=folder
    )


def make_encoder(given: LoadedRecipe, *, seed: int = 0) -> Encoder:
    encoder = Encoder(given.recipe.encoder, given.recipe.image)
    randomise(encoder, seed)
    return encoder


def about(given: LoadedRecipe, base_hash: str = "abc") -> dict[str, Any]:
    return description(given.recipe, "seg", base_hash)


def head() -> dict[str, Tensor]:
    return {
        "project.weight": torch.arange(6.0).reshape(2, 3),
        "norm.num_batches_tracked": torch.tensor(4097),  # no float16
    }


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    given = loaded(tmp_path)
    path = tmp_path / "seg.safetensors"
    write_expert(path, encoder=make_encoder(given).weights(), head=head(), about=about(given))
    return path


def rewritten(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, dict(metadata))


def read(path: Path, **changes: Any) -> Expert:
    return read_expert(path, like=about(loaded(path.parent, **changes)))


# Experts


def test_an_expert_comes_back_bit_by_bit(expert_file: Path) -> None:
    expert = read(expert_file)
    weights = make_encoder(loaded(expert_file.parent)).weights()
    assert state_hash(expert.encoder) == state_hash(weights)
    assert state_hash(expert.head) == state_hash(head())


def test_an_expert_knows_its_task_and_its_file(expert_file: Path) -> None:
    expert = read(expert_file)
    assert (expert.task, expert.source) == ("seg", str(expert_file))


def test_an_expert_in_half_precision_is_read_as_the_nearest_float32(tmp_path: Path) -> None:
    given = loaded(tmp_path)
    weights = make_encoder(given).weights()
    path = tmp_path / "seg.safetensors"
    write_expert(path, encoder=weights, head=head(), about=about(given), half=True)
    expert = read(path)
    assert all(torch.equal(expert.encoder[n], t.half().float()) for n, t in weights.items())


def test_half_precision_halves_the_file(expert_file: Path) -> None:
    given = loaded(expert_file.parent)
    small = expert_file.with_name("small.safetensors")
    weights = make_encoder(given).weights()
    write_expert(small, encoder=weights, head=head(), about=about(given), half=True)
    assert small.stat().st_size < 0.6 * expert_file.stat().st_size


def test_half_precision_leaves_alone_what_it_would_overflow_and_what_counts(
    tmp_path: Path,
) -> None:
    given, path = loaded(tmp_path), tmp_path / "seg.safetensors"
    large = {**head(), "norm.running_var": torch.tensor([1.0, 1e5])}
    write_expert(path, encoder={}, head=large, about=about(given), half=True)
    assert state_hash(read(path).head) == state_hash(large)


def test_equal_experts_are_equal_files(expert_file: Path) -> None:
    given, other = loaded(expert_file.parent), expert_file.with_name("other.safetensors")
    write_expert(other, encoder=make_encoder(given).weights(), head=head(), about=about(given))
    assert other.read_bytes() == expert_file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": (32, 64)}, r"image\.size: \[32, 48\] here, \[32, 64\] in the recipe"),
        ({"taps": (2, 3)}, r"encoder\.taps: \[1, 3\] here, \[2, 3\] in the recipe"),
        ({"labels": ("wall", "bed")}, r"task\.labels: \['wall', 'floor'\] here, \['wall', 'bed'\]"),
        ({"depth": 4}, r"encoder\.options: .*'depth': 3.* here, .*'depth': 4.* in the recipe"),
    ],
)
def test_an_expert_of_another_recipe_is_refused_with_both_values(
    expert_file: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        read(expert_file, **changes)


def test_an_expert_of_another_base_is_refused_with_both_hashes(expert_file: Path) -> None:
    with pytest.raises(CheckpointError, match="base_hash: abc here, xyz in the recipe"):
        read_expert(expert_file, like=about(loaded(expert_file.parent), "xyz"))


def test_an_expert_with_a_setting_that_the_recipe_does_not_know_is_refused(
    expert_file: Path,
) -> None:
    tensors, metadata = read_tensors(expert_file)
    told = json.loads(metadata[METADATA])
    told["image"]["crop"] = 5
    rewritten(expert_file, tensors, {METADATA: json.dumps(told)})
    with pytest.raises(CheckpointError, match=r"image\.crop: 5 here, None in the recipe"):
        read(expert_file)


def test_more_about_an_expert_than_must_fit_is_welcome(expert_file: Path) -> None:
    tensors, metadata = read_tensors(expert_file)
    told = {**json.loads(metadata[METADATA]), "select": {"full": 0.5}}
    rewritten(expert_file, tensors, {METADATA: json.dumps(told)})
    assert read(expert_file).about["select"] == {"full": 0.5}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"other": "{}"},
        {METADATA: "not JSON"},
        {METADATA: "[]"},
        {METADATA: '"text"'},
        {METADATA: "null"},
        {METADATA: "{}"},
        {METADATA: '{"task": "seg"}'},
        {METADATA: '{"task": {"name": 5}}'},
        {METADATA: "[" * 100_000},
    ],
    ids=["none", "other", "text", "list", "string", "null", "empty", "task", "name", "deep"],
)
def test_a_file_whose_metadata_is_no_experts_is_refused(
    expert_file: Path, metadata: dict[str, str]
) -> None:
    rewritten(expert_file, read_tensors(expert_file)[0], metadata)
    with pytest.raises(CheckpointError, match="not an expert, its metadata has no `simo` entry"):
        read(expert_file)


def test_foreign_tensors_in_an_expert_are_named(expert_file: Path) -> None:
    tensors, metadata = read_tensors(expert_file)
    rewritten(expert_file, {**tensors, "decoder.w": torch.ones(1)}, metadata)
    with pytest.raises(CheckpointError, match=r"(?s)1 tensors are neither .*  decoder\.w"):
        read(expert_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_with_weights_that_are_not_finite_is_refused_by_tensor(
    expert_file: Path, value: float
) -> None:
    tensors, metadata = read_tensors(expert_file)
    tensors["encoder.norm.weight"][3] = value
    rewritten(expert_file, tensors, metadata)
    with pytest.raises(CheckpointError, match=r"(?s)not finite.*encoder\.norm\.weight"):
        read(expert_file)


# Files


@pytest.mark.parametrize("length", [0, 4, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(expert_file: Path, length: int) -> None:
    expert_file.write_bytes(expert_file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"seg\.safetensors: not a whole safetensors file"):
        read(expert_file)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("These are no weights.")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: there is no such file"):
        read_tensors(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_pickle_of_plain_tensors_is_read(tmp_path: Path, wrap: str | None, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({wrap: head()} if wrap else head(), path)
    assert state_hash(read_tensors(path)[0]) == state_hash(head())


class Malicious:
    """An object whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_a_command_is_refused_without_running_it(
    tmp_path: Path, how: str
) -> None:
    path, marker = tmp_path / "x.pt", tmp_path / "marker"
    content = {"w": torch.ones(1), "x": Malicious(f"touch {marker}")}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="nothing else is unpickled"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content", [5, [torch.ones(1)], {"w": torch.ones(1), "epoch": 3}, {1: torch.ones(1)}]
)
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_pickle_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(head(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"x\.pt: cannot be read as plain tensors"):
        read_tensors(path)


@pytest.mark.parametrize("text", ["Not weights.", "(lp0\n.", "\x80\x02]q\x00(K\x01K\x02e."])
def test_text_in_place_of_a_pickle_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.pt").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        read_tensors(tmp_path / "x.pt")


def test_a_write_leaves_one_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "x.safetensors", head(), {})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, head(), {})
    before = path.read_bytes()
    shared = torch.ones(4)
    with pytest.raises(RuntimeError):
        write_tensors(path, {"a": shared, "b": shared}, {})  # safetensors refuses to
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_write_that_cannot_be_renamed_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="directory"):
        write_tensors(tmp_path / "x.safetensors", head(), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "x.safetensors", {"w": whole.t()}, {})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")[0]["w"], whole.t())


# Bases


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


def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("simo_build.checkpoints.save_file", full)
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors: cannot be written, it needs .*No space"
    ):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == []
