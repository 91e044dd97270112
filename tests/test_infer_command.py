"""simo-infer: what it writes, what it says, and how it fails."""

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.inferring import COMMAND, infer, one_line
from tests.test_sources import write_video


def test_it_writes_values_and_pictures_for_every_task(workplace: Path) -> None:
    told = infer("room.jpg", "-o", "out", cwd=workplace)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert sorted(path.name for path in (workplace / "out").iterdir()) == [
        f"room.{task}.{suffix}" for task in ("depth", "normals", "seg") for suffix in ("jpg", "npy")
    ]
    assert np.load(workplace / "out" / "room.depth.npy").shape == (120, 160)
    picture = cv2.imread(str(workplace / "out" / "room.seg.jpg"))
    assert picture is not None
    assert picture.shape == (120, 160, 3)
    assert "room.jpg -> out/room.{seg,depth,normals}.{npy,jpg}\n" in told.stdout
    assert "  depth     " in told.stdout


def test_tasks_are_chosen_by_name(workplace: Path) -> None:
    told = infer("room.jpg", "--tasks", "seg, depth", "-o", "out", cwd=workplace)
    assert told.returncode == 0
    assert not list((workplace / "out").glob("*normals*"))


def test_png_holds_the_same_values(workplace: Path) -> None:
    infer("room.jpg", "-o", "npy", cwd=workplace)
    infer("room.jpg", "-o", "png", "--write", "png", cwd=workplace)
    metres = np.load(workplace / "npy" / "room.depth.npy")
    millimetres = cv2.imread(str(workplace / "png" / "room.depth.png"), cv2.IMREAD_UNCHANGED)
    assert millimetres is not None
    assert millimetres.dtype == np.uint16
    np.testing.assert_allclose(millimetres / 1000, metres, atol=0.00051)
    labels = cv2.imread(str(workplace / "png" / "room.seg.png"), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    np.testing.assert_array_equal(labels, np.load(workplace / "npy" / "room.seg.npy"))


def test_without_a_bundle_it_says_what_to_do(tmp_path: Path) -> None:
    told = infer("room.jpg", cwd=tmp_path)
    assert told.returncode == 1
    assert "build one with simo-build, or give --bundle" in told.stderr


def test_with_two_bundles_it_names_them(workplace: Path) -> None:
    shutil.copytree(workplace / "bundles" / "rooms", workplace / "bundles" / "other")
    told = infer("room.jpg", cwd=workplace)
    assert told.returncode == 1
    assert "bundles/other, bundles/rooms" in told.stderr


def test_a_text_file_called_jpg_gets_one_line(workplace: Path) -> None:
    (workplace / "note.jpg").write_text("this is not a photo")
    assert "note.jpg: not a JPEG" in one_line(infer("note.jpg", "-o", "out", cwd=workplace))
    assert not (workplace / "out").exists()


def test_a_header_of_a_hundred_megapixels_gets_one_line(workplace: Path) -> None:
    data = bytearray(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (workplace / "bomb.png").write_bytes(data)
    line = one_line(infer("bomb.png", cwd=workplace))
    assert "bomb.png" in line
    assert "100 megapixels" in line


def test_a_missing_file_gets_one_line(workplace: Path) -> None:
    assert "gone.jpg: No such file" in one_line(infer("gone.jpg", cwd=workplace))


def test_a_task_that_is_not_there_gets_one_line(workplace: Path) -> None:
    line = one_line(infer("room.jpg", "--tasks", "seg,norms", "-o", "out", cwd=workplace))
    assert "did you mean 'normals'?" in line
    assert not (workplace / "out").exists()


def test_a_damaged_bundle_is_named(workplace: Path) -> None:
    path = workplace / "bundles" / "rooms" / "encoder.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    told = infer("room.jpg", cwd=workplace)
    assert told.returncode == 1
    assert "encoder.bin: changed" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_pixel_is_an_image_too(workplace: Path) -> None:
    cv2.imwrite(str(workplace / "dot.png"), np.full((1, 1, 3), 200, np.uint8))
    assert infer("dot.png", "-o", "out", cwd=workplace).returncode == 0
    assert np.load(workplace / "out" / "dot.depth.npy").shape == (1, 1)


def test_one_bad_image_does_not_stop_the_others(workplace: Path) -> None:
    (workplace / "bad.jpg").write_text("no")
    told = infer("bad.jpg", "room.jpg", "-o", "out", cwd=workplace)
    assert told.returncode == 1
    assert "bad.jpg" in told.stderr
    assert (workplace / "out" / "room.seg.npy").is_file()


def test_two_images_that_would_write_the_same_files_are_refused(workplace: Path) -> None:
    (workplace / "sub").mkdir()
    shutil.copy(workplace / "room.jpg", workplace / "sub" / "room.jpg")
    told = infer("room.jpg", "sub/room.jpg", "-o", "out", cwd=workplace)
    assert told.returncode == 1
    assert not (workplace / "out").exists()


def test_an_output_folder_that_is_a_file_gets_one_line(workplace: Path) -> None:
    (workplace / "out").write_text("mine")
    told = infer("room.jpg", "-o", "out", cwd=workplace)
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert (workplace / "out").read_text() == "mine"


def test_a_folder_keeps_its_order_names_what_is_bad_and_sums_up(album: Path) -> None:
    told = infer("album", "-o", "out", "--write", "npy", "--json", "a.jsonl", cwd=album)
    assert told.returncode == 1
    assert "07.jpg: not a JPEG" in told.stderr
    assert "30 of 30 pictures, 1 failed" in told.stderr
    lines = [json.loads(line) for line in (album / "a.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{number:02d}" for number in range(30)]
    assert [line["name"] for line in lines if "error" in line] == ["07"]
    assert len(list((album / "out").iterdir())) == 29 * 3
    first, last = (np.load(album / "out" / f"{name}.depth.npy") for name in ("00", "29"))
    np.testing.assert_array_equal(first, last)


def test_a_batch_gives_what_single_pictures_give(album: Path) -> None:
    infer("album", "-o", "one", "--write", "npy", cwd=album)
    infer("album", "-o", "four", "--write", "npy", "--batch", "4", cwd=album)
    for task in ("depth", "normals"):
        one, four = (np.load(album / out / f"11.{task}.npy") for out in ("one", "four"))
        np.testing.assert_allclose(one, four, atol=1e-4)


def test_lines_on_standard_output_stand_there_alone(workplace: Path) -> None:
    told = infer("room.jpg", "-o", "out", "--json", "-", "--write", "", cwd=workplace)
    assert told.returncode == 0
    assert json.loads(told.stdout)["tasks"]["depth"]["kind"] == "depth"
    assert not (workplace / "out").exists()


def test_raw_frames_come_through_a_pipe(workplace: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3), np.uint8)
    told = subprocess.run(
        [COMMAND, "-", "--frames", "16x12", "--write", "png", "-o", "out"],
        cwd=workplace,
        input=frames.tobytes(),
        capture_output=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    written = sorted(path.name for path in (workplace / "out").glob("*.depth.png"))
    assert written == [f"stdin.00000{index}.depth.png" for index in range(3)]


def test_a_video_comes_back_as_a_video(workplace: Path) -> None:
    write_video(workplace / "clip.mp4", 4)
    told = infer("clip.mp4", "--write", "overlay", "--video", "out.mp4", cwd=workplace)
    assert told.returncode == 0, told.stderr
    capture = cv2.VideoCapture(str(workplace / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    assert (workplace / "predictions" / "clip.000003.overlay.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in UTF-8")
def test_a_name_that_is_not_utf_8_is_spelled_out(workplace: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (workplace / "room.jpg").rename(workplace / f"{name}.jpg")
    for lines in ("a.jsonl", "-"):
        told = subprocess.run(
            [COMMAND, f"{name}.jpg", "-o", "out", "--json", lines],
            cwd=workplace,
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (told.returncode, told.stderr) == (0, "")
        text = told.stdout if lines == "-" else (workplace / lines).read_text("utf-8")
        assert json.loads(text)["origin"] == r"caf\udce9.jpg"
    assert (workplace / "out" / f"{name}.depth.npy").is_file()


def test_lines_on_standard_output_are_utf_8_whatever_the_terminal(workplace: Path) -> None:
    (workplace / "room.jpg").rename(workplace / "café.jpg")
    told = subprocess.run(
        [COMMAND, "café.jpg", "--json", "-", "--write", ""],
        cwd=workplace,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=True,
    )
    assert json.loads(told.stdout.decode("utf-8"))["name"] == "café"


def test_a_name_as_long_as_can_be_does_not_stop_the_others(workplace: Path) -> None:
    for name in ("a" * 240, "b" * 250, "c"):
        shutil.copy(workplace / "room.jpg", workplace / f"{name}.jpg")
    told = infer("[a-c]*.jpg", "-o", "out", "--write", "npy,overlay", cwd=workplace)
    assert told.returncode == 1
    assert told.stderr.count("Error: ") == 1
    assert "bbb.jpg: its name is too long for the files that are named after it" in told.stderr
    written = {path.name[0] for path in (workplace / "out").iterdir()}
    assert written == {"a", "c"}
    assert len(list((workplace / "out").iterdir())) == 8


def test_one_bad_video_does_not_stop_the_others(workplace: Path) -> None:
    (workplace / "bad.mp4").write_text("no video")
    write_video(workplace / "good.mp4", 2)
    told = infer("*.mp4", "--write", "", "--json", "a.jsonl", "--video", "out.avi", cwd=workplace)
    assert told.returncode == 1
    assert told.stderr == (
        "Error: bad.mp4: cannot be opened; it is not a video that FFmpeg can decode\n"
    )
    lines = [json.loads(line) for line in (workplace / "a.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["bad.mp4", "good.000000", "good.000001"]
    assert (workplace / "out.avi").is_file()


def test_a_bad_video_alone_gets_one_line(workplace: Path) -> None:
    (workplace / "bad.mp4").write_text("no video")
    assert "bad.mp4: cannot be opened" in one_line(infer("bad.mp4", "-o", "out", cwd=workplace))
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--write", "pgn"), "did you mean 'png'"),
        (("--frames", "640"), "it must be WIDTHxHEIGHT"),
        (("--frames", "0x0"), "cannot be read"),
        (("--backend", "tensor"), "unknown backend 'tensor'"),
        (("--precision", "fp61"), "unknown precision 'fp61'"),
        (("--batch", "0"), "--batch"),
        (("--video", "out.gif"), "a video is one of"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(
    workplace: Path, options: tuple[str, ...], told: str
) -> None:
    image = "-" if "--frames" in options else "room.jpg"
    found = infer(image, *options, "-o", "out", cwd=workplace)
    assert found.returncode in (1, 2)
    assert told in found.stderr
    assert "Traceback" not in found.stderr
    assert not (workplace / "out").exists()


def test_without_images_it_says_how_it_is_used(tmp_path: Path) -> None:
    told = infer(cwd=tmp_path)
    assert told.returncode == 2
    assert "Missing argument 'IMAGES...'" in told.stderr


def test_help_is_instant(tmp_path: Path) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert infer("--help", cwd=tmp_path).returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3
