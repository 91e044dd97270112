"""Files out: values come back as they were, and a file is there whole or not at all."""

import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from simo_runtime.errors import ImageError, UnknownNameError
from simo_runtime.files import partial_name, whole, write_image, write_npy
from simo_runtime.predictor import Prediction
from simo_runtime.sinks import VIDEO_CODES, Call, Forms, Lines, Video, as_png, write_form
from simo_runtime.sources import Frame
from simo_runtime.statistics import statistics
from simo_runtime.tasks import TaskSpec
from tests.disks import disk_of

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


def write(prediction: Prediction, out: Path, stem: str, *, raw: str) -> list[Path]:
    return Forms(out, (raw, "jpg")).write(frame(stem), {prediction.task.name: prediction})


def frame(stem: str) -> Frame:
    return Frame(stem, f"{stem}.jpg", Path(f"{stem}.jpg"))


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

    def test_names_the_file_that_people_know(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"'.*/gone/a\.npy'$"):
            write_npy(tmp_path / "gone" / "a.npy", VALUES["seg"])

    def test_of_a_picture_too_tall_for_a_jpeg_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"a\.jpg: OpenCV cannot encode uint8 \(65501, 1, 3\)"):
            write_image(tmp_path / "a.jpg", np.zeros((65501, 1, 3), np.uint8))
        assert list(tmp_path.iterdir()) == []


posix = pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")


def write_lines(sink: Lines, names: str) -> None:
    for name in names:
        sink.write(frame(name), scene())


def write_video(path: Path) -> Video:
    sink = Video(path, 10.0)
    for shade in range(12):
        sink.write(frame("a"), scene(20 * shade))
    return sink


class TestPartialNames:
    def test_leave_room_for_the_longest_name(self, tmp_path: Path) -> None:
        path = tmp_path / f"{'a' * 251}.npy"
        assert write_npy(path, VALUES["seg"]) == path
        assert list(tmp_path.iterdir()) == [path]

    def test_are_hidden_and_keep_the_suffix(self) -> None:
        name = partial_name(Path("out") / "a.b.mp4").name
        assert name.startswith(".")
        assert name.endswith(".partial.mp4")

    def test_are_another_each_time(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        with whole(path) as first, whole(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "first"
        assert list(tmp_path.iterdir()) == [path]


def scene(shade: int = 90, *, size: tuple[int, int] = (60, 80)) -> dict[str, Prediction]:
    photo = np.full((*size, 3), shade, np.uint8)
    values: dict[str, NDArray[Any]] = {
        "seg": np.tile(np.array([0, 2], np.uint8), (size[0], size[1] // 2)),
        "depth": np.full(size, 2.5, np.float32),
        "normals": np.tile(np.array((0, 0, -1), np.float32), (*size, 1)),
    }
    return {name: Prediction(SPECS[name], values[name], photo) for name in values}


class TestForms:
    def test_colours_stand_alone_in_a_png(self, tmp_path: Path) -> None:
        prediction = predict("seg")
        file = write_form(prediction, tmp_path, "photo", "colour")
        assert file.name == "photo.seg.colour.png"
        np.testing.assert_array_equal(read_png(file), prediction.colours())

    def test_an_overlay_is_one_picture_of_all_tasks(self, tmp_path: Path) -> None:
        files = Forms(tmp_path, ("overlay",)).write(frame("photo"), scene())
        assert [file.name for file in files] == ["photo.overlay.png"]
        assert read_png(files[0]).ndim == 3

    def test_another_form_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownNameError, match="form of output 'pgn'; did you mean 'png'"):
            Forms(tmp_path, ("pgn",))

    def test_a_name_too_long_for_the_file_system_is_the_pictures_fault(
        self, tmp_path: Path
    ) -> None:
        long = frame("a" * 248)
        assert (
            len(Forms(tmp_path, ("npy",)).write(frame("a" * 242), {"x": predict("normals")})) == 1
        )
        with pytest.raises(ImageError, match=r"aaa\.jpg: its name is too long"):
            Forms(tmp_path, ("npy",)).write(long, {"x": predict("normals")})
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize(
        ("forms", "draws"), [(("npy", "png", "colour"), False), (("jpg",), True), ((), False)]
    )
    def test_only_what_draws_the_photo_says_so(self, forms: tuple[str, ...], draws: bool) -> None:
        assert Forms(Path("out"), forms).draws is draws


class TestLines:
    def test_are_json_with_statistics_or_an_error(self, tmp_path: Path) -> None:
        sink = Lines(tmp_path / "new" / "lines.jsonl")
        sink.write(frame("a"), scene())
        sink.missed(frame("b"), ImageError("b.jpg: damaged"))
        assert not (tmp_path / "new" / "lines.jsonl").exists()  # it is not whole yet
        assert sink.close() == [tmp_path / "new" / "lines.jsonl"]
        first, second = map(json.loads, (tmp_path / "new" / "lines.jsonl").read_text().splitlines())
        assert (first["name"], first["size"]) == ("a", [60, 80])
        assert first["tasks"]["seg"]["shares"] == {"a": 0.5, "c": 0.5}
        assert first["tasks"]["depth"]["p50"] == 2.5
        assert first["tasks"]["depth"]["unit"] == "m"
        assert first["tasks"]["normals"]["mean"] == [0.0, 0.0, -1.0]
        assert second == {"name": "b", "origin": "b.jpg", "error": "b.jpg: damaged"}
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["lines.jsonl"]

    def test_a_name_that_is_not_utf_8_is_spelled_out(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        sink, stream = Lines(tmp_path / "lines.jsonl"), StringIO()
        for one in (sink, Lines(stream)):
            one.missed(frame(name), ImageError(f"{name}.jpg: damaged"))
        sink.close()
        assert (tmp_path / "lines.jsonl").read_text("utf-8") == stream.getvalue()
        found = json.loads(stream.getvalue())
        assert found["name"] == r"caf\udce9"
        assert found["error"] == r"caf\udce9.jpg: damaged"

    def test_a_stream_gets_its_lines_at_once(self) -> None:
        stream = StringIO()
        Lines(stream).write(frame("a"), scene())
        assert json.loads(stream.getvalue())["name"] == "a"

    @posix
    def test_a_disk_without_room_for_a_line_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "lines.jsonl"
        path.write_text("older\n")
        sink = Lines(path)
        with disk_of(10), pytest.raises(OSError, match="File too large"):
            write_lines(sink, "a")
        assert sink.close() == []
        assert path.read_text() == "older\n"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_is_a_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError, match=r"/file'$"):
            Lines(tmp_path / "file" / "lines.jsonl").write(frame("a"), scene())

    def test_without_a_frame_there_is_no_file(self, tmp_path: Path) -> None:
        assert Lines(tmp_path / "lines.jsonl").close() == []
        assert list(tmp_path.iterdir()) == []

    @posix
    def test_a_full_disk_keeps_whole_lines_and_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "lines.jsonl"
        sink = Lines(path)
        with disk_of(2000), pytest.raises(OSError, match=r"File too large: '.*/lines\.jsonl'"):
            write_lines(sink, "abcdefgh")
        assert sink.close() == [path]
        names = [json.loads(line)["name"] for line in path.read_text().splitlines()]
        assert "".join(names) in ("abc", "abcd")
        assert list(tmp_path.iterdir()) == [path]


class TestVideo:
    def test_holds_an_overlay_a_frame(self, tmp_path: Path) -> None:
        sink = Video(tmp_path / "out.mp4", 10.0)
        for shade in (40, 90, 140):
            sink.write(frame("a"), scene(shade))
        assert not (tmp_path / "out.mp4").exists()
        assert sink.close() == [tmp_path / "out.mp4"]
        assert sink.close() == []
        assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
        capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
        frames = []
        while (read := capture.read())[0]:
            frames.append(read[1])
        assert len(frames) == 3
        assert frames[2].mean() > frames[0].mean()

    def test_a_picture_of_another_shape_is_refused_and_the_video_kept(self, tmp_path: Path) -> None:
        sink = Video(tmp_path / "out.avi", None)
        sink.write(frame("a"), scene())
        with pytest.raises(ImageError, match=r"b\.jpg: a picture of another shape"):
            sink.write(frame("b"), scene(size=(60, 40)))
        sink.close()
        assert (tmp_path / "out.avi").is_file()

    @posix
    @pytest.mark.parametrize("suffix", VIDEO_CODES)
    @pytest.mark.parametrize("left", [0.2, 0.95, 0.995])
    def test_a_full_disk_is_noticed_and_half_a_video_is_not_kept(
        self, suffix: str, left: float, tmp_path: Path
    ) -> None:
        whole = write_video(tmp_path / f"whole{suffix}")
        whole.close()
        room = int((tmp_path / f"whole{suffix}").stat().st_size * left)
        with disk_of(room):
            sink = write_video(tmp_path / f"out{suffix}")
            with pytest.raises(ImageError, match=r"out\.\w+: the video could not be written"):
                sink.close()
        assert [path.name for path in tmp_path.iterdir()] == [f"whole{suffix}"]
        assert sink.close() == []

    def test_a_name_that_is_not_utf_8_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="OpenCV needs a name in UTF-8"):
            Video(tmp_path / os.fsdecode(b"caf\xe9") / "out.mp4", None)

    def test_another_kind_of_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"a video is one of \.mp4"):
            Video(tmp_path / "out.gif", None)


def test_a_call_gets_every_frame_and_scene() -> None:
    got = []
    Call(lambda frame, scene: got.append((frame.name, list(scene)))).write(frame("a"), scene())
    assert got == [("a", ["seg", "depth", "normals"])]


@pytest.mark.parametrize(
    ("task", "changed"), [("depth", np.nan), ("disparity", np.inf), ("normals", np.nan)]
)
def test_statistics_leave_out_what_is_no_number(task: str, changed: float) -> None:
    values = VALUES[task].astype(np.float32).copy()
    values[0, 0] = changed
    found = statistics(predict(task, values))
    assert found["known"] == pytest.approx(5 / 6)
    assert np.isfinite(found["mean"]).all()
    assert json.loads(json.dumps(found)) == found
    nothing = statistics(predict(task, np.full_like(values, np.nan)))
    assert nothing["known"] == 0


def test_percentiles_by_hand() -> None:
    # 0 .. 100 evenly: the p-th percentile is p
    found = statistics(predict("depth", np.arange(101, dtype=np.float32)[None]))
    assert [found[f"p{at:02d}"] for at in (1, 25, 50, 75, 99)] == [1, 25, 50, 75, 99]
