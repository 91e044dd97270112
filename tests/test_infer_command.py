"""simo-infer: what it writes, what it says, and how it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from simo_runtime import cli
from tests.test_sources import write_video

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX's")
COMMAND = Path(sys.executable).parent / "simo-infer"


def infer(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def workplace(tmp_path: Path, rooms_data: Path, rooms_bundle: Path) -> Path:
    shutil.copytree(rooms_bundle, tmp_path / "bundles" / "rooms")
    shutil.copy(rooms_data / "rooms" / "rgb" / "0001.jpg", tmp_path / "room.jpg")
    return tmp_path


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


def one_line(told: subprocess.CompletedProcess[str]) -> str:
    assert told.returncode in (1, 2)
    assert "Traceback" not in told.stderr
    assert told.stdout == ""
    lines = [line for line in told.stderr.splitlines() if line]
    assert len(lines) == 1, told.stderr
    return lines[0]


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


@pytest.fixture
def album(workplace: Path) -> Path:
    """A folder of 30 photos, one of them no photo."""
    (workplace / "album").mkdir()
    for number in range(30):
        shutil.copy(workplace / "room.jpg", workplace / "album" / f"{number:02d}.jpg")
    (workplace / "album" / "07.jpg").write_text("no")
    return workplace


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


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_is_done(workplace: Path, number: int, code: int) -> None:
    read, write = os.pipe()
    command = [COMMAND, "-", "--frames", "16x12", "--write", "npy", "--json", "lines.jsonl"]
    with subprocess.Popen(
        [*command, "--video", "out.mp4"],
        cwd=workplace,
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(read)
        assert process.stdout is not None
        try:
            os.write(write, bytes(range(192)) * 3 * 2)
            lines = [process.stdout.readline() for _ in range(2)]  # it waits for a third
            assert "stdin.000001" in lines[1]
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
        finally:
            os.close(write)  # ends the command, whatever has become of it
    assert process.returncode == code
    assert "Stopped; what was written is whole: 2 pictures" in told
    assert "Traceback" not in told
    assert len((workplace / "lines.jsonl").read_text().splitlines()) == 2
    assert cv2.VideoCapture(str(workplace / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert np.load(workplace / "predictions" / "stdin.000001.depth.npy").shape == (12, 16)
    assert_nothing_hidden(workplace)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_there_is_anything_to_keep_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def interrupted(wish: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:  # as an engine's import does
            raise ImportError("initialization failed") from error

    for run in (lambda wish: signal.raise_signal(number), interrupted):
        monkeypatch.setattr(cli, "run", run)
        told = CliRunner().invoke(cli.main, ["room.jpg"])
        assert (told.exit_code, told.output) == (128 + number, "Stopped\n")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_the_handler_of_another_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(cli, "run", lambda wish: signal.raise_signal(signal.SIGTERM) or 0)
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        assert CliRunner().invoke(cli.main, ["room.jpg"]).exit_code == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@posix
def test_a_reader_that_leaves_ends_it_without_a_word(album: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "album", "-o", "out", "--write", "npy", "--json", "a.jsonl"],
        cwd=album,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "00.jpg" in process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert told == ""
    assert json.loads((album / "a.jsonl").read_text().splitlines()[0])["name"] == "00"
    assert_nothing_hidden(album)


def on_a_disk_of(size: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it where no file may grow beyond a number of bytes."""
    limited = "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
    limited += "from simo_runtime.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_nothing_hidden(folder: Path) -> None:
    assert [path for path in folder.rglob(".*") if path.is_file()] == []


@posix
def test_a_full_disk_gets_one_line_and_leaves_no_half_file(workplace: Path) -> None:
    # A file may grow to 50 kB: the depth of a room is larger.
    told = on_a_disk_of(50_000, "room.jpg", "-o", "out", "--write", "npy", cwd=workplace)
    assert told.returncode == 1
    assert "Traceback" not in told.stderr
    assert "out/room.depth.npy: File too large" in told.stderr
    assert [path.name for path in (workplace / "out").iterdir()] == ["room.seg.npy"]


@posix
def test_a_full_disk_keeps_whole_lines_of_json(workplace: Path) -> None:
    write_video(workplace / "clip.mp4", 20)
    told = on_a_disk_of(4000, "clip.mp4", "--write", "", "--json", "a.jsonl", cwd=workplace)
    assert told.returncode == 1
    assert told.stderr == "Error: a.jsonl: File too large\n"
    lines = (workplace / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [
        f"clip.{number:06d}" for number in range(len(lines))
    ]
    assert lines
    assert_nothing_hidden(workplace)


@posix
def test_a_full_disk_is_noticed_at_the_end_of_a_video(workplace: Path) -> None:
    write_video(workplace / "clip.mp4", 30, size=(120, 160))
    options = ("--write", "", "--video", "out.mp4", "--json", "a.jsonl")
    told = on_a_disk_of(30_000, "clip.mp4", *options, cwd=workplace)
    assert told.returncode == 1
    first, second = told.stderr.splitlines()
    assert first.startswith("Error: out.mp4: the video could not be written to its end")
    assert second.startswith("30 of 30 pictures")
    assert not (workplace / "out.mp4").exists()
    assert len((workplace / "a.jsonl").read_text().splitlines()) == 30
    assert_nothing_hidden(workplace)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_standard_output_that_is_full_is_named(workplace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(
            [COMMAND, "room.jpg", "--json", "-"],
            cwd=workplace,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert told.returncode == 1
    assert told.stderr == "Error: standard output: No space left on device\n"


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


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_kill_leaves_no_half_file_under_a_final_name(album: Path) -> None:
    with subprocess.Popen(
        [COMMAND, *["album/*.jpg"], "-o", "out", "--write", "npy"],
        cwd=album,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    for path in (album / "out").glob("[!.]*"):
        assert np.load(path).shape[:2] == (120, 160)


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
