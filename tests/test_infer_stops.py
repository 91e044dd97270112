"""simo-infer that is stopped: by a signal, a reader that leaves, a disk that is full, a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from simo_runtime import cli
from tests.inferring import COMMAND, posix
from tests.test_sources import write_video


def begun(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command and read along."""
    return subprocess.Popen(
        [COMMAND, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


@pytest.fixture
def heard() -> Iterator[None]:
    """Let SIGINT be heard: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.usefixtures("heard")
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
    with begun("album", "-o", "out", "--write", "npy", "--json", "a.jsonl", cwd=album) as process:
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


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_kill_leaves_no_half_file_under_a_final_name(album: Path) -> None:
    with begun("album/*.jpg", "-o", "out", "--write", "npy", cwd=album) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    for path in (album / "out").glob("[!.]*"):
        assert np.load(path).shape[:2] == (120, 160)
