"""Whatever comes in, there is one clear error or a right answer: manifests, pictures, commands.

Hypothesis makes the input, the same every time; each test says how many times it runs. What it has
found stands as an example with the test.
"""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simo_runtime import cli
from simo_runtime.bundle import MANIFEST, Bundle, parse_manifest
from simo_runtime.errors import BundleError, ImageError, SimoError
from simo_runtime.image import read_image, read_reduced
from simo_runtime.sources import find
from tests.scenes import manifest, plain, write_photo
from tests.test_sources import write_video

# SIMO_FUZZ=50 makes fifty times as many, drawn anew; it is run by hand.
TIMES = int(os.environ.get("SIMO_FUZZ", "1"))


def runs(count: int) -> Any:
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# The manifest.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
PLAIN = json.loads(manifest().to_json())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of everything in JSON."""
    inside: Any = ()
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for key, child in inside for place in places(child, (*path, key)))]


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = json.loads(json.dumps(data))
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return copy


def refused_or_read(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    try:
        found = parse_manifest(path)
    except BundleError as error:
        told = str(error)
    else:  # what was read is what stands there, and can be written again
        path.write_text(found.to_json())
        assert parse_manifest(path) == found
        told = str(path)
    assert str(path) in told


@runs(150)
@given(place=st.sampled_from(places(PLAIN)), value=VALUES)
@example(place=("image_size",), value=[float("inf"), 4])
@example(place=("image_size",), value=[1e400, 4])
@example(place=("mean", 0), value=float("nan"))
@example(place=("tasks", 0, "channels"), value=float("inf"))
@example(place=("files",), value={"": {"sha256": "", "bytes": 0}})
@example(place=("graphs",), value={"fp32": None})
@example(place=("provenance",), value=[[None, None]])
def test_a_manifest_with_anything_anywhere(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    text = json.dumps(changed(PLAIN, place, value))
    refused_or_read(tmp_path / MANIFEST, text.encode("utf-8", "surrogatepass"))


@runs(120)
@given(at=st.integers(0, 10**6), cut=st.integers(0, 40), new=st.binary(max_size=8))
@example(at=0, cut=0, new=b"[" * 8)
def test_a_manifest_whose_bytes_are_damaged(tmp_path: Path, at: int, cut: int, new: bytes) -> None:
    text = json.dumps(PLAIN).encode()
    at %= len(text)
    refused_or_read(tmp_path / MANIFEST, text[:at] + new + text[at + cut :])


def test_a_manifest_nested_without_end_is_refused(tmp_path: Path) -> None:
    refused_or_read(tmp_path / MANIFEST, b"[" * 200_000)


@runs(60)
@given(name=st.sampled_from(["../up.onnx", "/etc/passwd", "a/b.onnx", "x\x00.onnx", "..", "\\up"]))
def test_a_file_outside_the_bundle_is_never_listed(tmp_path: Path, name: str) -> None:
    data = changed(PLAIN, ("files", "encoder.onnx"), PLAIN["files"]["encoder.onnx"])
    data["files"][name] = data["files"]["encoder.onnx"]
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


# Pictures.


def picture(suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


PICTURES = {suffix: picture(suffix) for suffix in (".jpg", ".png", ".webp", ".bmp")}


def refused_or_decoded(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (read_image, lambda path: read_reduced(path, (8, 8)).pixels):
        try:
            pixels = read(path)
        except ImageError as error:
            told = str(error)
        else:
            told = str(path)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
        assert str(path) in told


@runs(120)
@given(
    suffix=st.sampled_from(list(PICTURES)),
    at=st.integers(0, 10**6),
    cut=st.integers(0, 200),
    new=st.binary(max_size=12),
    end=st.none() | st.integers(0, 10**6),
)
def test_a_picture_whose_bytes_are_damaged(
    tmp_path: Path, suffix: str, at: int, cut: int, new: bytes, end: int | None
) -> None:
    data = PICTURES[suffix]
    at %= len(data)
    data = data[:at] + new + data[at + cut :]
    refused_or_decoded(tmp_path / f"x{suffix}", data if end is None else data[: end % len(data)])


@runs(120)
@given(head=st.sampled_from([data[:40] for data in PICTURES.values()]), rest=st.binary())
def test_a_picture_of_anything_behind_a_header(tmp_path: Path, head: bytes, rest: bytes) -> None:
    refused_or_decoded(tmp_path / "x.jpg", head + rest)


@runs(150)
@given(
    high=st.integers(1, 70),
    wide=st.integers(1, 70),
    fit=st.sampled_from(["stretch", "letterbox"]),
)
@example(high=1, wide=59, fit="letterbox")
def test_any_picture_comes_back_at_its_size(high: int, wide: int, fit: str) -> None:
    predict = plain(fit=fit)
    pixels = np.full((high, wide, 3), 200, np.uint8)
    scene = predict(pixels, colours="RGB")
    expected = np.full((high, wide), 200, np.float32)
    # OpenCV's weights may add up to a little more than one
    np.testing.assert_allclose(scene["depth"].values, expected, rtol=1e-6)
    assert (scene["seg"].values == 1).all()


# The command line.

OPTIONS = """
    - -- -o --out --tasks --write --json --video --backend --precision --joint --threads --batch
    --frames --bundle --doctor camera:0x camera: rtsp:/ * ** ? [ ] ~ . .. / 16x16 npy,png 0 -1
    1e9 out x.jpg x.mp4 nothing auto yes
"""
NAMES = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
WORDS = st.text(NAMES, max_size=12) | st.sampled_from(OPTIONS.split())


@runs(150)
@given(words=st.lists(WORDS, max_size=7))
@example(words=["[", "-o", "out"])
@example(words=["--frames", "9" * 12])
@example(words=["--frames", "²x²"])
@example(words=["a" * 300])
def test_any_command_line_gets_a_code_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli.main, words)
    assert told.exit_code in (0, 1, 2), told.output
    if told.exception is not None:
        assert isinstance(told.exception, SystemExit), told.exception
    assert "Traceback" not in told.output


STRIP = 1
ODD, LONG = os.fsdecode(b"caf\xe9 [1] %s.jpg"), f"{'l' * 240}.jpg"
INPUTS = ["photo.jpg", "grey.png", "strip.png", "text.jpg", ODD, LONG, "clip.mp4", "bad.mp4"]
INPUTS += ["clip.000000.png", "*.png", "gone.jpg", "gone.mp4", "full"]
FORMS = ["npy", "png", "jpg", "colour", "overlay"]
CHOICES = {
    "--write": st.lists(st.sampled_from(FORMS), max_size=3).map(",".join) | st.just("pgn"),
    "--json": st.sampled_from(["a.jsonl", "-", "new/a.jsonl", "photo.jpg/a.jsonl"]),
    "--video": st.sampled_from(["v.mp4", "v.avi", "v.mov", "new/v.mkv", "v.gif", "full"]),
    "--tasks": st.sampled_from(["seg", "depth, normals", "normals", "seg,seg", "norms"]),
    "--batch": st.sampled_from(["1", "3"]),
    "--out": st.sampled_from(["out", "new/out", "out", "new/out", "photo.jpg", "o" * 300]),
}
WISHES = st.fixed_dictionaries({}, optional=CHOICES)


@pytest.fixture(scope="session")
def pile(rooms_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad pictures and videos, with a bundle."""
    folder = tmp_path_factory.mktemp("pile")
    (folder / "bundles").mkdir()
    (folder / "bundles" / "rooms").symlink_to(rooms_bundle)
    for name in ("photo.jpg", ODD, LONG, "clip.000000.png"):
        (folder / name).write_bytes(PICTURES[".jpg"])
    cv2.imwrite(str(folder / "grey.png"), np.full((30, 40), 90, np.uint8))
    write_photo(folder / "strip.png", 90, size=(300, STRIP))
    (folder / "text.jpg").write_text("no picture")
    (folder / "bad.mp4").write_text("no video")
    (folder / "full").mkdir()
    write_photo(folder / "full" / "one.png", 90)
    write_video(folder / "clip.mp4", 2)
    return folder


@runs(20)
@given(images=st.lists(st.sampled_from(INPUTS), min_size=1, max_size=4, unique=True), wish=WISHES)
@example(images=["clip.mp4", "clip.000000.png"], wish={})
@example(images=["bad.mp4", "clip.mp4"], wish={"--video": "v.avi", "--json": "a.jsonl"})
@example(images=[ODD], wish={"--json": "-", "--write": ""})
@example(images=[ODD, LONG, "text.jpg"], wish={"--json": "a.jsonl", "--write": "npy"})
@example(images=["clip.mp4"], wish={"--video": f"{ODD}.mp4"})
@example(images=["strip.png"], wish={"--write": "overlay,jpg", "--video": "v.mp4"})
def test_any_pictures_and_wishes_get_a_code_and_whole_files(
    pile: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], wish: dict[str, str]
) -> None:
    monkeypatch.chdir(pile)
    words = [word for pair in wish.items() for word in pair]
    told = CliRunner().invoke(cli.main, [*images, "--threads", "1", *words])
    assert told.exit_code in (0, 1, 2), told.output
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    assert "Traceback" not in told.output
    assert told.exit_code == 0 or "Error: " in told.output
    assert not [path for path in pile.rglob(".*") if path.is_file()]
    for path in pile.rglob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text().splitlines())


@runs(120)
@given(one=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@example(one="\x00")
@example(one="a" * 5000)
def test_any_word_is_a_source_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        source = find([one])
    except SimoError:
        return
    for frame in source:
        assert isinstance(frame.image, Path)
        with pytest.raises(ImageError):
            read_image(frame.image)
