"""The `folder` format: what its files mean, and that a fault names its file."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_build.data import Samples, fingerprint, load_split, open_dataset
from simo_build.formats.folder import DECODERS, FolderDataset
from simo_build.loading import LoadedRecipe
from simo_build.progress import Silent
from simo_build.recipe import Recipe, TaskPart, TrainPart
from simo_build.sample import fit_truth
from simo_build.sources import UNTARGETED, Target
from simo_runtime.errors import DataError, UnknownNameError
from simo_runtime.metrics import IGNORE
from simo_runtime.placement import Placement, fill_colour
from simo_runtime.tasks import KINDS

Array = NDArray[Any]
SEG = TaskPart(kind="segmentation", labels=("wall", "floor", "bed"), target=Target(folder="label"))
MAPPED = SEG.model_copy(update={"target": Target(folder="label", map="to3")})
DEPTH = TaskPart(kind="depth", target=Target(folder="depth"))
NORMALS = TaskPart(kind="normals", target=Target(folder="normal"))
SIZE = (4, 6)
META: dict[str, Any] = {
    "splits": {"train": [1, 2], "select": ["0002"], "test": []},
    "to3": [255, 2, 0, 1],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images: a PNG and a JPEG, with all three truths."""
    root = tmp_path / "rooms"
    for folder in ("rgb", "label", "depth", "normal"):
        (root / folder).mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps(META))
    random = np.random.default_rng(0)
    for name, suffix in (("0001", ".png"), ("0002", ".jpg")):
        write(root / "rgb" / f"{name}{suffix}", random.integers(0, 256, (*SIZE, 3), np.uint8))
        write(root / "label" / f"{name}.png", random.integers(0, 3, SIZE, np.uint8))
        write(root / "depth" / f"{name}.png", random.integers(1, 9000, SIZE, np.uint16))
        write(root / "normal" / f"{name}.png", random.integers(1, 256, (*SIZE, 3), np.uint8))
    return root


def write(path: Path, rgb: Array) -> None:
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


def part(kind: str, folder: str) -> TaskPart:
    return TaskPart(kind=kind, target=Target(folder=folder))


def loaded(
    root: Path, *, fit: str = "stretch", size: tuple[int, int] = SIZE, autoencoding: bool = False
) -> LoadedRecipe:
    content = {
        "name": "tiny",
        "encoder": {"model": "vit_tiny_patch16_224"},
        "base": "random(0)",
        "image": {"size": size, "fit": fit, "mean": (0.2, 0.4, 0.6)},
        "tasks": {
            name: part.model_dump()
            for name, part in (("seg", SEG), ("depth", DEPTH), ("normals", NORMALS))
        }
        | ({"same": {"kind": "autoencoding"}} if autoencoding else {}),
        "data": {"root": str(root)},
    }
    recipe = Recipe.model_validate(content)
    return LoadedRecipe(
        recipe=recipe, text="", folder=root, shown="r.yaml", data=None, experts=root
    )


def trained(recipe: LoadedRecipe, **keys: Any) -> LoadedRecipe:
    """Give the recipe with other keys of `train`."""
    train = TrainPart.model_validate(keys)
    return replace(recipe, recipe=recipe.recipe.model_copy(update={"train": train}))


def load(root: Path, split: str = "train", **given: Any) -> Samples:
    recipe = loaded(root, **given)
    return load_split(recipe, split, tasks=list(recipe.recipe.tasks), progress=Silent())


# What the files mean


def test_every_kind_of_task_can_be_decoded() -> None:
    assert set(DECODERS) | UNTARGETED == set(KINDS)


def test_an_image_is_read_as_rgb(root: Path) -> None:
    write(root / "rgb" / "0001.png", np.full((*SIZE, 3), (10, 20, 30), np.uint8))
    assert FolderDataset(root).image("0001")[0, 0].tolist() == [10, 20, 30]


def test_labels_are_as_stored(root: Path) -> None:
    stored = np.array([[0, 1], [2, IGNORE]], np.uint8)
    write(root / "label" / "0001.png", stored)
    assert np.array_equal(FolderDataset(root).truth("0001", SEG), stored)


def test_a_table_maps_stored_classes_and_leaves_255_and_those_past_its_end_ignored(
    root: Path,
) -> None:
    write(root / "label" / "0001.png", np.array([[0, 1, 2, 3, 4, IGNORE]], np.uint8))
    assert FolderDataset(root).truth("0001", MAPPED).tolist() == [[255, 2, 0, 1, 255, 255]]


def test_255_stays_255_whatever_the_table_says(root: Path) -> None:
    (root / "meta.json").write_text(json.dumps({**META, "to3": [0] * 256}))
    write(root / "label" / "0001.png", np.array([[254, IGNORE]], np.uint8))
    assert FolderDataset(root).truth("0001", MAPPED).tolist() == [[0, IGNORE]]


def test_depth_is_stored_in_millimetres_and_read_in_metres(root: Path) -> None:
    write(root / "depth" / "0001.png", np.array([[0, 1, 2500, 65535]], np.uint16))
    truth = FolderDataset(root).truth("0001", DEPTH)
    assert truth.dtype == np.float32
    assert truth[0].tolist() == pytest.approx([0.0, 0.001, 2.5, 65.535])


def test_normals_are_unit_vectors_and_black_is_invalid(root: Path) -> None:
    # 255 / 127.5 - 1 = 1 and 0 / 127.5 - 1 = -1; (1, 1, -1) has the length of sqrt(3)
    write(root / "normal" / "0001.png", np.array([[[255, 255, 0], [0, 0, 0]]], np.uint8))
    truth = FolderDataset(root).truth("0001", NORMALS)
    assert truth[0, 0].tolist() == pytest.approx([3**-0.5, 3**-0.5, -(3**-0.5)])
    assert truth[0, 1].tolist() == [0, 0, 0]


def test_log_depth_is_stored_in_millimetres_and_0_is_invalid(root: Path) -> None:
    write(root / "depth" / "0001.png", np.array([[0, 2000]], np.uint16))
    truth = FolderDataset(root).truth("0001", part("log_depth", "depth"))
    assert truth.dtype == np.float32
    assert np.isnan(truth[0, 0])
    assert truth[0, 1] == pytest.approx(math.log(1 + 512 * 2.0) / math.log(65536))


def test_disparity_is_stored_in_65535_steps(root: Path) -> None:
    write(root / "depth" / "0001.png", np.array([[0, 13107, 65535]], np.uint16))
    truth = FolderDataset(root).truth("0001", part("disparity", "depth"))
    assert truth.dtype == np.float32
    assert truth[0].tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize("kind", ["edges", "keypoints"])
@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_strength_is_stored_from_0_to_the_highest_value(
    root: Path, kind: str, dtype: type[np.unsignedinteger[Any]], top: int
) -> None:
    write(root / "depth" / "0001.png", np.array([[0, top // 5, top]], dtype))
    truth = FolderDataset(root).truth("0001", part(kind, "depth"))
    assert truth.dtype == np.float32
    assert truth[0].tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-6)


def test_parts_are_classes(root: Path) -> None:
    stored = np.array([[0, 1], [2, IGNORE]], np.uint8)
    write(root / "label" / "0001.png", stored)
    parts = SEG.model_copy(update={"kind": "parts"})
    assert np.array_equal(FolderDataset(root).truth("0001", parts), stored)


def test_the_truth_of_autoencoding_is_the_image(root: Path) -> None:
    write(root / "rgb" / "0001.png", np.full((*SIZE, 3), (0, 51, 255), np.uint8))
    samples = load(root, autoencoding=True)
    assert samples.truths["same"].dtype == np.float16
    # 51 / 127.5 - 1 = -0.6
    assert samples.truths["same"][0, 0, 0].tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=3e-4)


def test_the_truth_of_autoencoding_shrinks_as_the_image_does(root: Path) -> None:
    samples = load(root, autoencoding=True, size=(2, 3))
    seen = samples.images / 127.5 - 1.0
    np.testing.assert_allclose(samples.truths["same"], seen, atol=0.5 / 127.5 + 3e-4)


def test_a_target_of_autoencoding_is_refused() -> None:
    with pytest.raises(ValueError, match="the truth of kind autoencoding is the image"):
        part("autoencoding", "rgb")


def test_numbers_are_file_names_of_four_digits(root: Path) -> None:
    assert FolderDataset(root).ids("train") == ["0001", "0002"]


def test_the_fingerprint_is_of_the_images_and_of_the_truths_in_use(root: Path) -> None:
    def found() -> tuple[str, str]:
        data = FolderDataset(root)
        return data.fingerprint(), data.fingerprint({"more"})

    bare, before = found()
    (root / "more").mkdir()
    (root / "more" / "0001.png").write_bytes(b"a truth of another task")
    assert found()[0] == bare
    assert found()[1] != before
    (root / "rgb" / "9999.png").write_bytes(b"another image")
    assert found()[0] != bare


def test_the_fingerprint_changes_with_the_splits(root: Path) -> None:
    before = FolderDataset(root).fingerprint()
    (root / "meta.json").write_text(json.dumps({**META, "splits": {"train": [1]}}))
    assert FolderDataset(root).fingerprint() != before


# Whole splits


def test_a_split_has_the_networks_size_and_the_types_of_its_kinds(root: Path) -> None:
    samples = load(root, size=(8, 12))
    assert (samples.images.shape, str(samples.images.dtype)) == ((2, 8, 12, 3), "uint8")
    assert {name: (truth.shape, str(truth.dtype)) for name, truth in samples.truths.items()} == {
        "seg": ((2, 8, 12), "uint8"),
        "depth": ((2, 8, 12), "float32"),
        "normals": ((2, 8, 12, 3), "float16"),
    }


def test_a_png_at_the_networks_size_is_not_changed(root: Path) -> None:
    assert np.array_equal(load(root).images[0], FolderDataset(root).image("0001"))


def test_only_the_truths_asked_for_are_read(root: Path) -> None:
    (root / "depth" / "0001.png").unlink()
    samples = load_split(loaded(root), "train", tasks=["seg"], progress=Silent())
    assert list(samples.truths) == ["seg"]


def test_a_resized_truth_has_no_value_that_was_not_there(root: Path) -> None:
    samples = load(root, size=(9, 17))
    stored = FolderDataset(root).truth("0001", DEPTH)
    assert set(np.unique(samples.truths["depth"][0])) <= set(np.unique(stored))


def test_a_resized_truth_is_the_nearest_pixel() -> None:
    truth = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    resized = fit_truth(truth, Placement((2, 2), (4, 4), "stretch"), "depth")
    assert resized.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize(
    ("task", "empty"), [("seg", IGNORE), ("depth", 0), ("normals", 0), ("same", math.nan)]
)
def test_letterbox_bars_have_no_truth(root: Path, task: str, empty: float) -> None:
    # 4 x 6 fills 4 x 6 of 8 x 6: bars of two rows above and below
    truth = load(root, autoencoding=True, fit="letterbox", size=(8, 6)).truths[task][0]
    np.testing.assert_array_equal(truth[[0, 1, 6, 7]], np.full_like(truth[:4], empty))
    assert not np.array_equal(truth[2:6], np.full_like(truth[2:6], empty), equal_nan=True)


def test_letterbox_bars_have_the_mean_colour(root: Path) -> None:
    image = load(root, fit="letterbox", size=(8, 6)).images[0]
    assert image[0, 0].tolist() == [51, 102, 153]  # 255 * (0.2, 0.4, 0.6)


def test_the_mean_colour_of_white_fits_a_byte() -> None:
    assert fill_colour((1.0, 0.0, 0.5)) == (255, 0, 128)


# Faults


Break = Callable[[Path], None]


def storing(folder: str, array: Array) -> Break:
    return lambda root: write(root / folder / "0001.png", array)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "label" / "0001.png").unlink(), r"label.0001\.png: there is no such"),
        (
            lambda root: (root / "label" / "0001.png").write_text("text"),
            r"label.0001\.png: missing, or not a PNG",
        ),
        (storing("label", np.full(SIZE, 3, np.uint8)), r"0001\.png: class 3, but .* 3 labels"),
        (storing("label", np.zeros(SIZE, np.uint16)), r"0001\.png: uint16 .*labels are uint8"),
        (storing("label", np.zeros((*SIZE, 3), np.uint8)), r"\(4, 6, 3\); labels are uint8"),
        (storing("depth", np.zeros(SIZE, np.uint8)), r"0001\.png: uint8 .*depth is uint16"),
        (storing("normal", np.zeros(SIZE, np.uint8)), r"normals are uint8 \(height, width, 3\)"),
        (storing("normal", np.zeros((*SIZE, 3), np.uint16)), r"uint16 .*normals are uint8"),
        (storing("label", np.zeros((4, 7), np.uint8)), r"0001: seg is \(4, 7\).* is \(4, 6\)"),
    ],
)
def test_a_truth_that_cannot_be_is_named_with_its_file(
    root: Path, damage: Break, told: str
) -> None:
    damage(root)
    with pytest.raises(DataError, match=told):
        load(root)


def test_normals_with_a_fourth_channel_are_refused(root: Path) -> None:
    cv2.imwrite(str(root / "normal" / "0001.png"), np.full((*SIZE, 4), 200, np.uint8))
    with pytest.raises(DataError, match=r"\(4, 6, 4\); normals are uint8 \(height, width, 3\)"):
        load(root)


def test_a_missing_image_is_named(root: Path) -> None:
    (root / "rgb" / "0001.png").unlink()
    with pytest.raises(DataError, match=r"1 of the 2 images .*\n.*rgb.0001\.jpg: there is no such"):
        load(root)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"meta\.json: cannot be read as JSON"),
        ("\xff", r"meta\.json: cannot be read as JSON"),
        ("[]", r"meta\.json: it must hold"),
        ("{}", r"meta\.json: it must hold"),
        ('{"splits": [1, 2]}', r"meta\.json: it must hold"),
        ('{"splits": {"train": "0001"}}', r"the split 'train' must be a list of file numbers"),
        ('{"splits": {"train": 5}}', r"the split 'train' must be a list of file numbers"),
        ('{"splits": {"train": [1.5]}}', r"the split 'train' must be a list of file numbers"),
        ('{"splits": {"train": []}}', r"the split 'train' is empty"),
    ],
)
def test_a_bad_meta_file_is_named(root: Path, text: str, told: str) -> None:
    (root / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=told):
        load(root)


def test_a_folder_without_a_meta_file_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder data set, there is no meta\.json"):
        FolderDataset(tmp_path)


def test_a_missing_folder_is_named_with_the_recipes_key(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere: there is no such folder \(`data\.root` of r\.yaml"
    ):
        open_dataset(loaded(tmp_path / "nowhere"))


def test_an_unknown_split_gives_the_closest_one(root: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"split of .*'trian'; did you mean 'train'\?"):
        FolderDataset(root).ids("trian")


def test_an_unknown_format_gives_those_there_are(root: Path) -> None:
    recipe = loaded(root)
    assert recipe.recipe.data is not None
    data = recipe.recipe.data.model_copy(update={"format": "foldr"})
    other = LoadedRecipe(
        **{**vars(recipe), "recipe": recipe.recipe.model_copy(update={"data": data})}
    )
    with pytest.raises(UnknownNameError, match=r"data format 'foldr'; did you mean 'folder'\?"):
        open_dataset(other)


def test_an_unknown_table_gives_the_closest_one(root: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'to4'; did you mean 'to3'\? \(there are: to3\)"):
        FolderDataset(root).table("to4")


@pytest.mark.parametrize("values", [[0] * 257, [0, 256], [0, -1], [0, "one"], [True]])
def test_a_table_that_is_not_of_classes_is_refused(root: Path, values: list[object]) -> None:
    (root / "meta.json").write_text(json.dumps({**META, "to3": values}))
    with pytest.raises(DataError, match=r"meta\.json: to3 must be at most 256 classes, each 0 to"):
        FolderDataset(root).table("to3")


# Images of `select` that are changed


def test_images_of_select_are_changed_with_their_truths_the_same_way_every_time(
    root: Path,
) -> None:
    recipe = loaded(root)
    of = {"scales": [2.0], "flip": False, "augment_select": True}  # every image is another then

    def read(split: str, tasks: list[str], **keys: Any) -> Samples:
        return load_split(trained(recipe, **keys), split, tasks=tasks, progress=Silent())

    plain, found = read("select", ["depth"]), read("select", ["depth"], **of)
    assert not np.array_equal(found.images, plain.images)
    # a part of 2 x 3 pixels fills the image, twice as near: every value of it four times
    shown = found.truths["depth"][0, ::2, ::2]
    assert np.array_equal(found.truths["depth"][0], shown.repeat(2, axis=0).repeat(2, axis=1))
    assert np.isin(2 * shown, plain.truths["depth"][0]).all()
    for tasks in ([], ["seg", "normals"]):
        assert np.array_equal(read("select", tasks, **of).images, found.images)
    assert not np.array_equal(read("select", [], **of, seed=1).images, found.images)
    assert np.array_equal(read("train", [], **of).images, read("train", []).images)


def test_data_counts_as_another_if_its_images_of_select_are_changed(root: Path) -> None:
    recipe, tasks = loaded(root), ["depth"]
    usual = fingerprint(recipe, tasks)
    assert fingerprint(trained(recipe, scales=[2.0]), tasks) == usual
    found = {
        fingerprint(trained(recipe, augment_select=True, **keys), tasks)
        for keys in ({}, {"scales": [2.0]}, {"seed": 1}, {"jitter": {"hue": 0.1}}, {"clip": 1})
    }
    assert len(found - {usual}) == 4  # `clip` changes no image
