"""simo-infer: what it writes, what it says, and how it fails."""

import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

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
    infer("room.jpg", "-o", "png", "--raw", "png", cwd=workplace)
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


def test_help_is_instant(tmp_path: Path) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert infer("--help", cwd=tmp_path).returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3
