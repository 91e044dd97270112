"""Recipes: what is read, and that every fault is named with its key and what is allowed."""

import copy
import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from simo_build.hashing import digest
from simo_build.loading import DATA_VARIABLE, LoadedRecipe, find_recipe, load_recipe
from simo_runtime.errors import RecipeError

SHIPPED = sorted(
    entry.name for entry in files("simo_build.recipes").iterdir() if entry.name.endswith(".yaml")
)
GOOD: dict[str, Any] = {
    "name": "tiny",
    "encoder": {"model": "vit_tiny_patch16_224"},
    "base": "base.safetensors",
    "image": {"size": [32, 48]},
    "tasks": {
        "seg": {"kind": "segmentation", "labels": ["wall", "floor"], "target": {"folder": "label"}},
        "depth": {"kind": "depth", "target": {"folder": "depth"}},
    },
    "data": {"root": "$DATA/rooms"},
    "merge": {"params": {"alpha": 0.3}},
}
DELETE = object()


def changed(**changes: object) -> dict[str, Any]:
    """Give the good recipe with some keys, written `a__b__c`, set or deleted."""
    content = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *steps, last = path.split("__")
        inner = content
        for step in steps:
            inner = inner.setdefault(step, {})
        if value is DELETE:
            del inner[last]
        else:
            inner[last] = value
    return content


def write(folder: Path, content: object, name: str = "r.yaml") -> Path:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)  # JSON is YAML
    path.write_text(text, encoding="utf-8")
    return path


Load = Callable[..., LoadedRecipe]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)

    def read(content: object, **given: Any) -> LoadedRecipe:
        return load_recipe(str(write(tmp_path, content)), **given)

    return read


# What ships, and how a recipe is found


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_can_be_read(name: str) -> None:
    assert load_recipe(name).recipe.name == name.removesuffix(".yaml")


@pytest.mark.parametrize("name", ["nyuv2", "nyuv2.yaml"])
def test_a_shipped_recipe_is_found_by_its_bare_name(name: str) -> None:
    assert find_recipe(name).parts[-3:] == ("simo_build", "recipes", "nyuv2.yaml")


def test_a_file_in_the_working_folder_wins_over_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD, "nyuv2.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("nyuv2.yaml").recipe.name == "tiny"


def test_a_missing_recipe_gives_the_closest_one_that_ships() -> None:
    with pytest.raises(RecipeError, match=r"nyuv3: there is no such.*did you mean 'nyuv2\.yaml'\?"):
        find_recipe("nyuv3")


def test_a_missing_file_in_another_folder_gives_the_closest_one_that_ships() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'nyuv2\.yaml'\?"):
        find_recipe("recipes/nyuv2x.yaml")


def test_only_recipes_are_found_among_what_ships() -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        find_recipe("__init__.py")


# Files that are no recipes


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "\tname: x", "name: 2024-13-45"])
def test_text_that_is_not_yaml_is_refused(load: Load, text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: not valid YAML"):
        load(text)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["", "just a sentence", "[1, 2]", "3"])
def test_a_file_without_keys_is_refused(load: Load, text: str) -> None:
    with pytest.raises(RecipeError, match="the file: must be keys with values"):
        load(text)


def test_nesting_without_end_is_refused(load: Load) -> None:
    with pytest.raises(RecipeError, match="not valid YAML: maximum recursion"):
        load("[" * sys.getrecursionlimit() + "]" * sys.getrecursionlimit())


def test_a_key_that_stands_twice_is_refused_with_its_line(load: Load) -> None:
    with pytest.raises(RecipeError, match=r"(?s)the key 'lr' stands twice.*line 2"):
        load("name: x\ntrain: {lr: 1, batch: 2, lr: 3}")


def test_a_list_as_a_key_is_refused(load: Load) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        load("{? [1] : a, ? [1] : b}")


def test_a_tag_that_claims_a_mapping_is_refused(load: Load) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        load("!!map [a, b]")


def test_a_tag_cannot_make_python_objects(load: Load, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with pytest.raises(RecipeError, match="not valid YAML"):
        load(f"name: !!python/object/apply:os.mkdir ['{marker}']")
    assert not marker.exists()


def test_mappings_can_be_merged_as_yaml_does(load: Load) -> None:
    text = json.dumps(changed(data=DELETE, tasks=DELETE))[:-1] + (
        ", tasks: {depth: &one {kind: depth, head: linear}, again: {<<: *one}}}"
    )
    assert load(text).recipe.tasks["again"].kind == "depth"


def test_a_number_with_an_exponent_needs_no_point(load: Load) -> None:
    text = json.dumps(changed(merge=DELETE))[:-1] + ", merge: {params: {alpha: 3e-1}}}"
    assert load(text).recipe.merge.params == {"alpha": 0.3}


# Keys and values


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__epoch": 3}, r"train\.epoch: unknown key \(there are: seed, batch"),
        ({"train__head__epoch": 3}, r"train\.head\.epoch: unknown key; did you mean 'epochs'\?"),
        ({"tasks__seg__lables": []}, r"tasks\.seg\.lables: unknown key; did you mean 'labels'\?"),
        ({"tasks__seg__target__folders": "x"}, r"tasks\.seg\.target\.folders: .* 'folder'\?"),
        ({"encoder__tap": [1]}, r"encoder\.tap: unknown key; did you mean 'taps'\?"),
        ({"mrege": {}}, r"mrege: unknown key; did you mean 'merge'\?"),
        ({"realign": [{"step": "head", "epoch": 1}]}, r"realign\.0\.epoch: .* 'epochs'\?"),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_the_closest_one(
    load: Load, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        load(changed(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": DELETE}, "name: Field required"),
        ({"name": "../x"}, "name: String should match"),
        ({"tasks": {}}, "tasks: there must be at least one"),
        ({"tasks": None}, "tasks: must be keys with values"),
        ({"encoder": "vit"}, "encoder: must be keys with values"),
        ({"tasks__depth__kind": "dept"}, r"tasks\.depth\.kind: .*; did you mean 'depth'\?"),
        ({"tasks__depth__metric": "mean_io"}, r"tasks\.depth: .*; did you mean 'mean_iou'\?"),
        ({"tasks__depth__metric": "mean_iou"}, "kind depth has absolute_error"),
        ({"tasks__depth__labels": ["a", "b"]}, "kind depth has no classes, so `labels` has no"),
        (
            {"tasks__depth__loss": "l1"},
            r"tasks\.depth: loss has no .* kind depth; it is of normals",
        ),
        ({"tasks__depth__loss": "l2"}, r"tasks\.depth\.loss: Input should be 'cosine' or 'l1'"),
        ({"tasks__depth__denominator": "valid"}, "it is of segmentation and parts, leave it out"),
        ({"tasks__seg__denominator": "none"}, r"tasks\.seg\.denominator: .* 'valid' or 'all'"),
        ({"tasks__seg__labels": []}, "kind segmentation needs `labels`, 2 to 255"),
        ({"tasks__seg__labels": ["one"]}, "kind segmentation needs `labels`, 2 to 255"),
        ({"tasks__seg__labels": [f"c{i}" for i in range(256)]}, "2 to 255"),
        ({"tasks__seg__labels": ["a", "b", "a"]}, r"tasks\.seg\.labels: 'a' stands twice"),
        ({"tasks__seg__labels": [True, False]}, r"tasks\.seg\.labels\.0: Input should be a valid"),
        ({"tasks__Seg": {"kind": "depth"}}, r"tasks\.Seg"),
        ({"data": DELETE, "merge": {"choose": {"alpha": [0.1]}}}, r"`merge\.choose` need `data`"),
        ({"data": DELETE, "realign": [{"step": "head"}]}, "`realign` and .* need `data`"),
        (
            {"realign": [{"step": "heads"}]},
            r"realign\.0\.step: there is no step 'heads'; did you mean 'head'",
        ),
        ({"merge__choose": {"alpha": [0.1]}}, "merge: alpha is in both `params` and `choose`"),
        ({"merge": {"choose": {"alpha": []}}}, "merge: `choose` needs at least one value"),
        ({"merge__lines": {"bta": 1}}, r"merge\.lines\.bta: unknown key; did you mean 'beta'\?"),
        ({"merge__lines": {"beta": "x"}}, r"merge\.lines\.beta"),
        ({"merge__lines": {"beta": 1, "alpha": "x"}}, r"lines\.alpha: must be a number, or b"),
        ({"merge__lines": {"alpha": 1}}, "merge: `lines` needs beta; give it, or candidates"),
        ({"merge__lines": {}}, "merge: `lines` needs beta; give it, or candidates"),
        ({"merge": {"method": "lines", "lines": {"beta": 1}}}, "merge: `lines` goes on top of"),
        ({"merge__choose": {"lines.beta": [1]}}, "merge: lines.beta is in `choose`, but there"),
        (
            {"merge__lines": {"beta": 1}, "merge__choose": {"lines.beta": [1]}},
            "merge: lines.beta is in both `lines` and `choose`",
        ),
        (
            {"merge__lines": {"beta": 1}, "merge__choose": {"lines.gamma": [1]}},
            "merge: lines.gamma: `lines` has alpha and beta",
        ),
        ({"encoder__taps": [3, 1]}, r"encoder\.taps: must be block numbers in ascending order"),
        ({"encoder__taps": [1, 1]}, r"encoder\.taps: must be block numbers in ascending order"),
        ({"encoder__taps": []}, r"encoder\.taps: must be block numbers in ascending order"),
        ({"encoder__taps": [0, 1]}, r"encoder\.taps\.0: Input should be greater than 0"),
        ({"image__size": [32]}, r"image\.size"),
        ({"image__size": [0, 48]}, r"image\.size\.0: Input should be greater than 0"),
        ({"image__fit": "crop"}, r"image\.fit: Input should be 'stretch' or 'letterbox'"),
        ({"image__mean": [123.7, 116.3, 103.5]}, r"image\.mean: must be on a scale of 0 to 1"),
        ({"image__std": [0.2, 0.2, 0]}, r"image\.std: must be greater than 0"),
        ({"train__joint": {"loss": "median"}}, r"train\.joint\.loss: .*'mean', 'sum' or 'experts'"),
        (
            {"train": {"augment_select": True, "flip": False}},
            "train: augment_select changes images by flip, scales and jitter; set one of these",
        ),
        ({"train__seed": -1}, r"train\.seed: Input should be greater than or equal to 0"),
        ({"train__head": {"epochs": 1, "lr": 2}}, r"train\.head\.lr: Input should be less than"),
        ({"base": "random(-1)"}, r"base: a random base is random\(seed\)"),
        ({"base": "random(99999999999999999999)"}, r"base: a random base is random\(seed\)"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(
    load: Load, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        load(changed(**changes))


def test_parameters_of_lines_stand_beside_those_of_the_method(load: Load) -> None:
    merging = {"params": {"alpha": 0.3}, "lines": {}, "choose": {"lines.beta": [0, 0.5]}}
    part = load(changed(merge=merging)).recipe.merge
    assert part.fixed() == {"alpha": 0.3, "lines.alpha": "balanced"}
    assert part.choose == {"lines.beta": (0.0, 0.5)}


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_numbers_must_be_finite(load: Load, number: str) -> None:
    text = json.dumps(changed())[:-1] + f", train: {{clip: {number}}}}}"
    with pytest.raises(RecipeError, match=r"train\.clip: Input should be a finite number"):
        load(text)


@pytest.mark.parametrize(
    "name", ["encoder", "manifest", "joint", "all", "image", "raw", "tap3", "tap12"]
)
def test_a_task_cannot_take_a_name_that_means_something_else(load: Load, name: str) -> None:
    with pytest.raises(RecipeError, match=f"tasks: {name} is a reserved name"):
        load(changed(**{f"tasks__{name}": GOOD["tasks"]["depth"]}))


def test_at_most_five_faults_are_listed(load: Load) -> None:
    with pytest.raises(RecipeError, match=r"(?s)\A[^\n]+:\n(  [^\n]+\n){5}  and 2 more\Z"):
        load(changed(**{f"x{number}": 1 for number in range(7)}))


def test_a_recipe_cannot_be_changed_after_reading(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(GOOD).recipe.name = "other"


# What a recipe means


@pytest.mark.parametrize(
    ("base", "seed"), [("random(7)", 7), ("random(0)", 0), ("base.safetensors", None)]
)
def test_a_base_is_random_with_a_seed_or_a_file(load: Load, base: str, seed: int | None) -> None:
    assert load(changed(base=base)).recipe.random_seed == seed


def test_a_task_has_the_channels_and_the_metric_of_its_kind(load: Load) -> None:
    specs = load(GOOD).recipe.specs()
    assert [(one.channels, one.metric) for one in specs.values()] == [
        (2, "mean_iou"),
        (1, "absolute_error"),
    ]


def test_a_relative_path_starts_at_the_recipe(load: Load, tmp_path: Path) -> None:
    assert load(GOOD).locate("weights/base.pth") == tmp_path / "weights/base.pth"


def test_an_absolute_path_stays(load: Load, tmp_path: Path) -> None:
    assert load(GOOD).locate(str(tmp_path / "base.pth")) == tmp_path / "base.pth"


@pytest.mark.parametrize(
    ("value", "inside"), [("$DATA/a/b.pth", "a/b.pth"), ("$DATA", "."), ("$DATA//a", "a")]
)
def test_data_stands_for_the_data_folder(
    load: Load, tmp_path: Path, value: str, inside: str
) -> None:
    assert load(GOOD, data=tmp_path / "d").locate(value) == tmp_path / "d" / inside


def test_the_data_folder_can_come_from_the_environment(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "d"))
    assert load(GOOD).locate("$DATA/a") == tmp_path / "d" / "a"


def test_a_given_data_folder_wins_over_the_environment(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, "elsewhere")
    assert load(GOOD, data=tmp_path).locate("$DATA/a") == tmp_path / "a"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_data_folder_the_message_says_how_to_give_one(
    load: Load, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv(DATA_VARIABLE, value)
    with pytest.raises(
        RecipeError, match=r"r\.yaml: \$DATA/a .*: give --data DIR or set SIMO_DATA"
    ):
        load(GOOD).locate("$DATA/a")


@pytest.mark.parametrize("value", ["$DATAX/a", "$DATA.old/a", "$HOME/a", "${DATA}/a"])
def test_nothing_but_data_stands_for_a_folder(load: Load, tmp_path: Path, value: str) -> None:
    with pytest.raises(RecipeError, match=r"stands for nothing; only \$DATA does"):
        load(GOOD, data=tmp_path).locate(value)


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_digest_changes_with_a_value() -> None:
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})
