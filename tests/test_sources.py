"""Sources: what an argument means, what the frames are called, and how a source ends."""

import io
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from simo_runtime import sources
from simo_runtime.errors import ImageError
from simo_runtime.sources import Arrays, Capture, Chain, Frame, Pipe, find, names_of, rtsp
from tests.scenes import write_photo


def write_video(path: Path, count: int, size: tuple[int, int] = (48, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size[::-1])
    for shade in np.linspace(0, 255, count).astype(np.uint8):
        writer.write(np.full((*size, 3), shade, np.uint8))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "c.JPG", ".hidden.jpg"):
        write_photo(tmp_path / name, 90)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "inner.jpg").mkdir()
    return tmp_path


def names(*what: object, **options: Any) -> list[str]:
    return [frame.name for frame in find([str(one) for one in what], **options)]


class TestFiles:
    def test_of_a_folder_are_its_pictures_by_name(self, folder: Path) -> None:
        source = find([str(folder)])
        assert [frame.name for frame in source] == ["a", "b", "c"]
        assert (source.total, source.live) == (3, False)

    def test_of_a_pattern_are_what_matches(self, folder: Path) -> None:
        assert names(folder / "*.jpg") == ["b"]  # without hidden ones, as in a shell
        assert names(folder / "**" / "[ab].*") == ["a", "b"]

    def test_come_in_the_order_given(self, folder: Path) -> None:
        assert names(folder / "b.jpg", folder / "a.png") == ["b", "a"]

    def test_with_brackets_in_the_name_are_files(self, folder: Path) -> None:
        write_photo(folder / "x[1].jpg", 90)
        assert names(folder / "x[1].jpg") == ["x[1]"]

    def test_that_are_missing_are_found_when_they_are_read(self, folder: Path) -> None:
        assert names(folder / "gone.jpg") == ["gone"]

    def test_of_an_empty_folder_or_pattern_are_an_error(self, folder: Path) -> None:
        (folder / "empty").mkdir()
        with pytest.raises(ImageError, match="no pictures in this folder"):
            find([str(folder / "empty")])
        with pytest.raises(ImageError, match="no file matches"):
            find([str(folder / "z*")])
        with pytest.raises(ImageError, match="nothing to read"):
            find([])

    def test_of_one_name_are_refused(self, folder: Path) -> None:
        write_photo(folder / "b.png", 90)
        with pytest.raises(ImageError, match=r"would write the same files:\n  b\n"):
            find([str(folder)])


class TestNames:
    def test_are_the_stems(self) -> None:
        assert names_of([Path("a/one.jpg"), Path("two.x.png")]) == ["one", "two.x"]

    @pytest.mark.parametrize(
        ("first", "second"), [("a/x.jpg", "b/x.jpg"), ("x.jpg", "x.png"), ("x.jpg", "x.jpg")]
    )
    def test_that_are_the_same_are_refused(self, first: str, second: str) -> None:
        with pytest.raises(ImageError, match=r"several images would write the same files:\n  x\n"):
            names_of([Path(first), Path("other.jpg"), Path(second)])

    @pytest.mark.parametrize(
        ("what", "twin"),
        [
            (("clip.mp4", "clip.000000.png"), "clip.000000"),
            (("clip.mp4", "a.jpg", "clip.jpg"), "clip"),
            (("clip.mp4", "clip.avi"), "clip"),
            (("camera:0", "camera0.000012.png"), "camera0.000012"),
            (("camera:0", "camera:0"), "camera0"),
            (("-", "stdin.1000000.png"), "stdin.1000000"),
            (("rtsp://a", "rtsp://b", "stream2.mp4"), "stream2"),
        ],
    )
    def test_are_alone_among_all_sources(self, what: tuple[str, ...], twin: str) -> None:
        with pytest.raises(ImageError, match=rf"the same files:\n  {re.escape(twin)}\nRun"):
            find(what, size=(2, 2), stdin=io.BytesIO())

    def test_of_streams_are_numbered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources.cv2, "VideoCapture", lambda *rest: Device(1))
        assert rtsp("rtsp://a").name == "stream"
        source = find(["rtsp://a", "rtsp://b"])
        assert isinstance(source, Chain)
        assert [getattr(one, "name", None) for one in source.sources] == ["stream", "stream2"]


class TestVideos:
    def test_give_every_frame_in_order_with_a_number(self, tmp_path: Path) -> None:
        source = find([str(write_video(tmp_path / "clip.mp4", 5))])
        assert (source.total, source.rate, source.live) == (5, 10.0, False)
        frames = list(source)
        assert [frame.name for frame in frames] == [f"clip.00000{index}" for index in range(5)]
        assert frames[3].origin == f"{tmp_path / 'clip.mp4'}, frame 3"
        shades = [float(np.asarray(frame.image).mean()) for frame in frames]
        np.testing.assert_allclose(shades, [0, 63, 127, 191, 255], atol=4)
        assert {frame.colours for frame in frames} == {"BGR"}

    def test_that_are_missing_or_no_video_are_errors(self, tmp_path: Path) -> None:
        (tmp_path / "bad.mp4").write_text("not a video")
        with pytest.raises(ImageError, match=r"bad\.mp4: cannot be opened; it is not a video"):
            find([str(tmp_path / "bad.mp4")])
        with pytest.raises(ImageError, match=r"gone\.mp4: no such file"):
            find([str(tmp_path / "gone.mp4")])

    def test_whose_name_is_not_utf_8_are_refused(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mp4", 2)
        strange = path.rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
        for name in (str(strange), os.fsdecode(b"rtsp://caf\xe9")):
            with pytest.raises(ImageError, match="OpenCV needs a name in UTF-8; rename it"):
                find([name])

    def test_may_stand_beside_pictures(self, tmp_path: Path) -> None:
        clip, photo = write_video(tmp_path / "clip.mp4", 2), write_photo(tmp_path / "p.jpg", 9)
        assert names(clip, photo) == ["p", "clip.000000", "clip.000001"]


class TestSeveralVideos:
    def test_go_on_after_one_that_is_damaged_missing_or_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "bad.mp4").write_text("not a video")
        cut = write_video(tmp_path / "cut.avi", 40, size=(240, 320))
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 3 // 4])
        good = write_video(tmp_path / "good.mp4", 2)
        gone = tmp_path / "gone.mp4"
        source = find([str(path) for path in (tmp_path / "bad.mp4", gone, cut, good)])
        frames = list(source)
        errors = [frame for frame in frames if frame.error is not None]
        assert [frame.origin for frame in errors] == [
            str(tmp_path / name) for name in ("bad.mp4", "gone.mp4", "cut.avi")
        ]
        assert "it is not a video" in str(errors[0].error)
        assert "no such file" in str(errors[1].error)
        assert "damaged, it ends after" in str(errors[2].error)
        assert [frame.name for frame in frames[-2:]] == ["good.000000", "good.000001"]
        assert source.total == 1 + 1 + 40 + 2  # as they claim

    def test_are_open_one_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        devices: list[Device] = []

        def opened(path: str) -> Device:
            assert all(device.released for device in devices)
            devices.append(Device(2, claims=2))
            return devices[-1]

        monkeypatch.setattr(sources.cv2, "VideoCapture", opened)
        for name in ("a.mp4", "b.mp4", "c.mp4"):
            (tmp_path / name).touch()
        source = find([str(tmp_path / "*.mp4")])
        assert (source.total, source.rate) == (6, 30.0)
        frames = iter(source)
        assert [next(frames).name for _ in range(3)] == ["a.000000", "a.000001", "b.000000"]
        assert not devices[-1].released
        frames.close()  # type: ignore[attr-defined]  # it is a generator
        assert devices[-1].released

    def test_with_a_camera_end_when_the_camera_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources.cv2, "VideoCapture", lambda *rest: Device(1))
        source = find(["camera:0", "camera:1"])
        assert source.live
        got = list[Frame]()
        with pytest.raises(ImageError, match="camera:0: no more pictures after 1"):
            got.extend(source)
        assert [frame.name for frame in got] == ["camera0.000000"]


class Device:
    """Stands in for cv2.VideoCapture: some frames, and then nothing more."""

    def __init__(self, frames: int, *, claims: float = 0, side: float = 8) -> None:
        self.left, self.released = frames, False
        self.answers = {
            cv2.CAP_PROP_FRAME_COUNT: claims,
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_FRAME_WIDTH: side,
            cv2.CAP_PROP_FRAME_HEIGHT: side,
        }
        self.asked: dict[int, float] = {}

    def isOpened(self) -> bool:
        return self.left >= 0

    def get(self, what: int) -> float:
        return self.answers[what]

    def set(self, what: int, value: float) -> bool:
        self.asked[what] = value
        return True

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        return (True, np.zeros((8, 8, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


class TestDevices:
    def test_a_camera_that_vanishes_ends_with_an_error(self) -> None:
        device, got = Device(3), list[Frame]()
        source = Capture("camera:0", "camera0", lambda: device, live=True)
        source.open()
        assert (source.total, source.rate) == (None, 30.0)
        assert device.asked == {cv2.CAP_PROP_BUFFERSIZE: 1}
        with pytest.raises(
            ImageError, match="camera:0: no more pictures after 3; it was unplugged"
        ):
            got.extend(source)
        assert [frame.name for frame in got] == [f"camera0.00000{index}" for index in range(3)]
        assert device.released

    def test_a_camera_that_is_not_there_says_so(self) -> None:
        with pytest.raises(ImageError, match="camera:7: cannot be opened; is it there"):
            Capture("camera:7", "camera7", lambda: Device(-1), live=True).open()

    @pytest.mark.parametrize(
        "name", ["camera:", "camera:x", "camera:-1", "camera:٣", "camera:9999"]
    )
    def test_a_camera_needs_a_number(self, name: str) -> None:
        with pytest.raises(ImageError, match="a camera has a number"):
            find([name])

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("rtsp://host/live?user=me&password=secret", "rtsp://host/live"),
            ("rtsp://me:se@cret@host/live?token=secret", "rtsp://host/live"),
            ("rtsp://host/live?user=a@b&password=secret", "rtsp://..."),
            ("rtsp://me:sec?ret@host/live", "rtsp://..."),
        ],
    )
    def test_no_secret_of_an_address_is_told(self, url: str, told: str) -> None:
        assert rtsp(url).where == told

    def test_a_stream_is_opened_with_a_deadline_and_named_without_its_password(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(
            sources.cv2, "VideoCapture", lambda *rest: asked.append(rest) or Device(1)
        )
        source = rtsp("rtsp://me:secret@host:554/live")
        source.open()
        assert source.where == "rtsp://host:554/live"
        url, engine, waits = asked[0]
        assert (url, engine) == ("rtsp://me:secret@host:554/live", cv2.CAP_FFMPEG)
        assert waits == [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 10_000
        ]  # fmt: skip

    def test_a_video_that_ends_early_is_damaged(self) -> None:
        source = Capture("clip.mp4", "clip", lambda: Device(4, claims=40), live=False)
        with pytest.raises(ImageError, match="damaged, it ends after 4 of 40 frames"):
            list(source)

    def test_frames_of_a_hundred_megapixels_are_refused(self) -> None:
        with pytest.raises(ImageError, match="10000 x 10000 pixels; at most 80 megapixels"):
            Capture("clip.mp4", "clip", lambda: Device(4, side=10_000), live=False).open()


class TestPipes:
    def test_that_cannot_be_read_say_so(self, tmp_path: Path) -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(ImageError, match="standard input: Is a directory"):
            list(Pipe(Folder(folder), (4, 6)))
        os.close(folder)

    def test_give_raw_frames_however_they_are_cut(self) -> None:
        frames = np.arange(3 * 4 * 6 * 3, dtype=np.uint8).reshape(3, 4, 6, 3)
        read, write = os.pipe()
        with os.fdopen(write, "wb", buffering=0) as out:
            for part in (frames.tobytes()[:50], frames.tobytes()[50:]):
                out.write(part)
        with os.fdopen(read, "rb", buffering=0) as stream:
            found = list(Pipe(stream, (4, 6)))
        assert [frame.name for frame in found] == [f"stdin.00000{index}" for index in range(3)]
        np.testing.assert_array_equal(np.stack([frame.image for frame in found]), frames)

    def test_that_end_inside_a_frame_say_so(self) -> None:
        source = find(["-"], size=(4, 6), stdin=io.BytesIO(bytes(100)))
        with pytest.raises(ImageError, match="ends inside frame 1, after 28 of 72 bytes"):
            list(source)

    def test_need_a_size_that_can_be(self) -> None:
        with pytest.raises(ImageError, match="--frames WIDTHxHEIGHT"):
            find(["-"])
        with pytest.raises(ImageError, match="cannot be read"):
            Pipe(io.BytesIO(), (100_000, 100_000))


class Folder:
    """Stands in for standard input that is a folder."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, count: int, /) -> bytes:
        return os.read(self._descriptor, count)


def test_arrays_may_be_endless() -> None:
    def endless() -> Any:
        while True:
            yield np.zeros((2, 2, 3), np.uint8)

    source = Arrays(endless(), "RGB", name="grab")
    assert source.total is None
    assert next(iter(source)).name == "grab.000000"
    assert Arrays([np.zeros((2, 2, 3), np.uint8)], "BGR").total == 1
