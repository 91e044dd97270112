"""Files out: values come back as they were, and a file is there whole or not at all."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_runtime.errors import ImageError
from simo_runtime.predictor import Prediction
from simo_runtime.sinks import as_png, names_of, write, write_image, write_npy
from simo_runtime.tasks import TaskSpec

SPECS = {
    "seg": TaskSpec(
        name="seg", kind="segmentation", channels=3, metric="mean_iou", labels=("a", "b", "c")
    ),
    "depth": TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error"),
    "normals": TaskSpec(name="normals", kind="normals", channels=3, metric="mean_angle"),
    "disparity": TaskSpec(name="disparity", kind="disparity", channels=1, metric="disparity_error"),
    "edges": TaskSpec(name="edges", kind="edges", channels=1, metric="value_error"),
    "image": TaskSpec(name="image", kind="autoencoding", channels=3, metric="value_error"),
}
VALUES: dict[str, NDArray[Any]] = {
    "seg": np.array([[0, 1, 2], [2, 1, 0]], np.uint8),
    "depth": np.array([[0.5, 1.2344, 1.2346], [8.0, 65.535, 70.0]], np.float32),
    "normals": np.tile(np.array((0.6, -0.48, -0.64), np.float32), (2, 3, 1)),
    "disparity": np.array([[0.0, 0.25, 0.5], [1.0, 1.5, 0.75]], np.float32),
    "edges": np.array([[-1.0, 0.25, 0.5], [1.0, 1.5, -2.0]], np.float32),
    "image": np.tile(np.array((0.6, -0.48, -0.64), np.float32), (2, 3, 1)),
}
every_task = pytest.mark.parametrize("task", SPECS)


def predict(task: str, values: NDArray[Any] | None = None) -> Prediction:
    found = VALUES[task] if values is None else values
    return Prediction(SPECS[task], found, np.full((*found.shape[:2], 3), 90, np.uint8))


def read_png(path: Path) -> NDArray[Any]:
    """Read a PNG as a reader who knows nothing of OpenCV's order does: colours are RGB."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return pixels[..., ::-1] if pixels.ndim == 3 else pixels


class TestWrite:
    @every_task
    def test_npy_comes_back_as_it_was(self, task: str, tmp_path: Path) -> None:
        values, _ = write(predict(task), tmp_path, "photo", raw="npy")
        loaded = np.load(values, allow_pickle=False)
        assert loaded.dtype == VALUES[task].dtype
        np.testing.assert_array_equal(loaded, VALUES[task])

    @every_task
    @pytest.mark.parametrize("raw", ["npy", "png"])
    def test_gives_the_two_files_it_made(self, task: str, raw: str, tmp_path: Path) -> None:
        files = write(predict(task), tmp_path / "new" / "folder", "photo", raw=raw)
        assert [file.name for file in files] == [f"photo.{task}.{raw}", f"photo.{task}.jpg"]
        assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(files)

    @every_task
    def test_the_picture_has_the_colours_of_the_overlay(self, task: str, tmp_path: Path) -> None:
        large = VALUES[task].repeat(32, axis=0).repeat(32, axis=1)
        prediction = predict(task, large)
        _, picture = write(prediction, tmp_path, "photo", raw="npy")
        shown = read_png(picture)[16::32, 16::32].astype(int)
        expected = prediction.overlay()[16::32, 16::32].astype(int)
        np.testing.assert_allclose(shown, expected, atol=8)  # JPEG: +-8 inside a block

    def test_classes_are_a_grey_8_bit_png(self, tmp_path: Path) -> None:
        file, _ = write(predict("seg"), tmp_path, "photo", raw="png")
        pixels = read_png(file)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, VALUES["seg"])

    def test_depth_is_a_16_bit_png_in_millimetres(self, tmp_path: Path) -> None:
        file, _ = write(predict("depth"), tmp_path, "photo", raw="png")
        pixels = read_png(file)
        assert pixels.dtype == np.uint16
        # 1.2344 m and 1.2346 m round to 1234 and 1235 mm; 70 m does not fit into 16 bits
        np.testing.assert_array_equal(pixels, [[500, 1234, 1235], [8000, 65535, 65535]])

    def test_normals_are_an_8_bit_png_with_x_y_z_as_red_green_blue(self, tmp_path: Path) -> None:
        file, _ = write(predict("normals"), tmp_path, "photo", raw="png")
        # 1.6 * 127.5 = 204; 0.52 * 127.5 = 66.3; 0.36 * 127.5 = 45.9
        np.testing.assert_array_equal(read_png(file)[0, 0], [204, 66, 46])

    def test_disparity_is_a_16_bit_png_of_0_to_1(self, tmp_path: Path) -> None:
        file, _ = write(predict("disparity"), tmp_path, "photo", raw="png")
        # 0.25 * 65535 = 16383.75; 0.5 * 65535 = 32767.5, halves to even; 0.75: 49151.25
        np.testing.assert_array_equal(read_png(file), [[0, 16384, 32768], [65535, 65535, 49151]])

    def test_strengths_are_a_16_bit_png_of_minus_1_to_1(self, tmp_path: Path) -> None:
        file, _ = write(predict("edges"), tmp_path, "photo", raw="png")
        # 1.25 * 32767.5 = 40959.375; 1.5 * 32767.5 = 49151.25
        np.testing.assert_array_equal(read_png(file), [[0, 40959, 49151], [65535, 65535, 0]])

    def test_an_image_is_an_8_bit_png_in_its_colours(self, tmp_path: Path) -> None:
        file, _ = write(predict("image"), tmp_path, "photo", raw="png")
        np.testing.assert_array_equal(read_png(file)[0, 0], [204, 66, 46])

    def test_a_second_run_replaces_the_files(self, tmp_path: Path) -> None:
        write(predict("depth"), tmp_path, "photo", raw="npy")
        file, _ = write(predict("depth", VALUES["depth"] + 1), tmp_path, "photo", raw="npy")
        np.testing.assert_array_equal(np.load(file), VALUES["depth"] + 1)

    def test_a_stem_may_have_dots_and_spaces(self, tmp_path: Path) -> None:
        file, _ = write(predict("seg"), tmp_path, "IMG 1.raw é", raw="png")
        assert file.name == "IMG 1.raw é.seg.png"
        np.testing.assert_array_equal(read_png(file), VALUES["seg"])


class TestAsPng:
    @pytest.mark.parametrize(
        ("metres", "millimetres"),
        [(np.nan, 0), (-np.inf, 0), (-1.0, 0), (0.0, 0), (np.inf, 65535), (3e38, 65535)],
    )
    def test_depth_outside_the_range_is_cut(self, metres: float, millimetres: int) -> None:
        found = as_png(predict("depth", np.full((1, 1), metres, np.float32)))
        assert found.tolist() == [[millimetres]]

    @pytest.mark.parametrize(
        ("task", "pixel"), [("disparity", 0), ("edges", 0), ("image", [0] * 3)]
    )
    def test_what_is_not_a_number_is_0(self, task: str, pixel: object) -> None:
        found = as_png(predict(task, np.full_like(VALUES[task][:1, :1], np.nan)))
        assert found.tolist() == [[pixel]]

    @pytest.mark.parametrize("value", [1.0000001, -1.0000001])
    def test_normals_a_little_too_long_do_not_wrap(self, value: float) -> None:
        found = as_png(predict("normals", np.full((1, 1, 3), value, np.float32)))
        assert found.tolist() == [[[255 if value > 0 else 0] * 3]]


class TestAFailureInBetween:
    # A folder lies where the file should go, so that the last step, the renaming, fails.
    @pytest.fixture
    def taken(self, tmp_path: Path) -> Path:
        path = tmp_path / "photo.depth.png"
        path.mkdir()
        return path

    def test_of_an_array_leaves_nothing(self, taken: Path) -> None:
        with pytest.raises(OSError, match="directory"):
            write_npy(taken, VALUES["depth"])
        assert list(taken.parent.iterdir()) == [taken]

    def test_of_an_image_leaves_nothing(self, taken: Path) -> None:
        with pytest.raises(OSError, match="directory"):
            write_image(taken, VALUES["seg"])
        assert list(taken.parent.iterdir()) == [taken]

    def test_of_an_array_that_cannot_be_saved_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="pickle"):
            write_npy(tmp_path / "a.npy", np.array([object()]))
        assert list(tmp_path.iterdir()) == []

    def test_of_an_array_keeps_the_file_that_was_there(self, tmp_path: Path) -> None:
        path = write_npy(tmp_path / "a.npy", VALUES["seg"])
        with pytest.raises(ValueError, match="pickle"):
            write_npy(path, np.array([object()]))
        np.testing.assert_array_equal(np.load(path), VALUES["seg"])

    def test_of_a_picture_too_tall_for_a_jpeg_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"a\.jpg: OpenCV cannot encode uint8 \(65501, 1, 3\)"):
            write_image(tmp_path / "a.jpg", np.zeros((65501, 1, 3), np.uint8))
        assert list(tmp_path.iterdir()) == []


class TestNames:
    def test_are_the_stems(self) -> None:
        assert names_of([Path("a/one.jpg"), Path("two.x.png")]) == ["one", "two.x"]

    @pytest.mark.parametrize(
        ("first", "second"), [("a/x.jpg", "b/x.jpg"), ("x.jpg", "x.png"), ("x.jpg", "x.jpg")]
    )
    def test_that_are_the_same_are_refused(self, first: str, second: str) -> None:
        with pytest.raises(ImageError, match=r"several images would write the same files:\n  x\n"):
            names_of([Path(first), Path("other.jpg"), Path(second)])
