"""The samples run as they stand, on a clip and a small folder instead of a camera and a disk."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(sample: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "samples" / sample, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_camera_becomes_a_video(rooms_bundle: Path, rooms_data: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (160, 120)
    )
    for number in range(1, 4):
        frame = cv2.imread(str(rooms_data / "rooms" / "rgb" / f"{number:04d}.jpg"))
        assert frame is not None
        writer.write(frame)
    writer.release()
    told = run("webcam.py", rooms_bundle, tmp_path / "clip.mp4", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[-1] == "webcam.mp4"
    assert len([line for line in lines if "median" in line]) == 3
    assert cv2.VideoCapture(str(tmp_path / "webcam.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_folder_becomes_values_and_statistics(
    rooms_bundle: Path, rooms_data: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(1, 6):
        name = f"{number:04d}.jpg"
        (photos / name).write_bytes((rooms_data / "rooms" / "rgb" / name).read_bytes())
    (photos / "0003.jpg").write_text("no photo")
    told = run("batch_folder.py", rooms_bundle, photos, "--out", "out", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == "5 photos, 1 of them bad: out"
    lines = (tmp_path / "out" / "statistics.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"{n:04d}" for n in range(1, 6)]
    assert len(list((tmp_path / "out").glob("*.depth.png"))) == 4


def test_a_program_asks_from_several_threads(
    rooms_bundle: Path, rooms_data: Path, tmp_path: Path
) -> None:
    photo = rooms_data / "rooms" / "rgb" / "0001.jpg"
    told = run("embed_in_your_app.py", rooms_bundle, photo, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "wall" in told.stdout
    assert told.stdout.splitlines()[-1].startswith("nearest")
    wrong = run("embed_in_your_app.py", rooms_bundle, tmp_path / "gone.jpg", cwd=tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("Error: ")


@pytest.mark.parametrize("sample", ["webcam.py", "batch_folder.py", "embed_in_your_app.py"])
def test_a_mistake_is_said_in_words(sample: str, tmp_path: Path) -> None:
    told = run(sample, tmp_path / "no-bundle", tmp_path / "nothing.mp4", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.startswith("Error: ")
    assert "Traceback" not in told.stderr
    assert list(tmp_path.iterdir()) == []
    assert run(sample, cwd=tmp_path).stderr.startswith("usage: ")
