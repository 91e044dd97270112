"""A bundle opens only when every file is what its manifest says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simo_runtime.bundle import MANIFEST, REPORTS, Bundle
from simo_runtime.errors import BundleError, UnknownNameError


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_whole_bundle_opens(rooms_bundle: Path) -> None:
    manifest = Bundle.open(rooms_bundle).manifest
    assert manifest.name == "rooms"
    assert [task.name for task in manifest.tasks] == ["seg", "depth", "normals"]
    assert manifest.image_size == (120, 160)
    assert not manifest.random_weights


def test_the_weights_are_stored_once(rooms_bundle: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in rooms_bundle.iterdir()}
    graphs = sum(size for name, size in sizes.items() if name.endswith(".onnx"))
    assert graphs < 0.05 * sizes["encoder.bin"]
    assert sizes["seg.bin"] < 0.05 * sizes["encoder.bin"]


@pytest.mark.parametrize("name", ["encoder.bin", "encoder.onnx", "depth.onnx", "seg.bin"])
def test_one_flipped_byte_is_found_and_named(rooms_copy: Path, name: str) -> None:
    data = bytearray((rooms_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (rooms_copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: changed"):
        Bundle.open(rooms_copy)


def test_a_missing_file_is_named(rooms_copy: Path) -> None:
    (rooms_copy / "seg.bin").unlink()
    with pytest.raises(BundleError, match=r"seg\.bin: missing"):
        Bundle.open(rooms_copy)


def test_a_truncated_file_is_named_with_both_sizes(rooms_copy: Path) -> None:
    path = rooms_copy / "encoder.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"encoder\.bin: 100 bytes, \d+ in the manifest"):
        Bundle.open(rooms_copy)


def test_a_foreign_file_is_named(rooms_copy: Path) -> None:
    (rooms_copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt: not named in the manifest"):
        Bundle.open(rooms_copy)


def test_a_link_in_place_of_a_file_is_refused(rooms_copy: Path, tmp_path: Path) -> None:
    moved = (rooms_copy / "seg.bin").rename(tmp_path / "seg.bin")
    (rooms_copy / "seg.bin").symlink_to(moved)
    with pytest.raises(BundleError, match=r"seg\.bin: not a regular file"):
        Bundle.open(rooms_copy)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_may_be_missing_or_other(rooms_copy: Path, name: str) -> None:
    (rooms_copy / name).write_text("edited")
    Bundle.open(rooms_copy)
    (rooms_copy / name).unlink()
    assert name not in Bundle.open(rooms_copy).manifest.files


@pytest.mark.parametrize("name", REPORTS)
def test_a_link_or_a_folder_in_place_of_a_report_is_refused(
    rooms_copy: Path, tmp_path: Path, name: str
) -> None:
    moved = (rooms_copy / name).rename(tmp_path / name)
    (rooms_copy / name).symlink_to(moved)
    with pytest.raises(BundleError, match=f"{name}: not a regular file"):
        Bundle.open(rooms_copy)
    (rooms_copy / name).unlink()
    (rooms_copy / name).symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match=f"{name}: not a regular file"):
        Bundle.open(rooms_copy)
    (rooms_copy / name).unlink()
    (rooms_copy / name).mkdir()
    with pytest.raises(BundleError, match=f"{name}: not a regular file"):
        Bundle.open(rooms_copy)


@pytest.mark.parametrize("name", REPORTS)
def test_a_manifest_that_lists_a_report_is_refused(rooms_copy: Path, name: str) -> None:
    edit(rooms_copy, lambda data: data["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleError, match="is for people, and must not be listed"):
        Bundle.open(rooms_copy)


@pytest.mark.parametrize("name", ["../encoder.bin", "/etc/hostname", "a/b", "..", "", "a\\b"])
def test_a_file_outside_the_bundle_is_refused(rooms_copy: Path, name: str) -> None:
    edit(rooms_copy, lambda data: data["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle.open(rooms_copy)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another schema": (lambda d: d.update(schema="simo.bundle/9"), "this version reads"),
    "no tasks": (lambda d: d.update(tasks=[]), "at least one"),
    "tasks missing": (lambda d: d.pop("tasks"), "the key 'tasks' is missing"),
    "a task without a kind": (lambda d: d["tasks"][0].pop("kind"), "the key 'kind' is missing"),
    "an unknown kind": (lambda d: d["tasks"][0].update(kind="dept"), "did you mean 'depth'"),
    "channels that do not fit": (lambda d: d["tasks"][0].update(channels=3), "do not fit"),
    "a task without a graph": (lambda d: d["files"].pop("seg.onnx"), "not listed"),
    "an impossible size": (lambda d: d.update(image_size=[0, 5]), "image_size is 0 x 5"),
    "a size that is text": (lambda d: d.update(image_size="big"), "manifest.json"),
    "an unknown fit": (lambda d: d.update(fit="squash"), "must be one of stretch, letterbox"),
    "two numbers for a mean": (lambda d: d.update(mean=[0.5, 0.5]), "manifest.json"),
    "files that are a list": (lambda d: d.update(files=[]), "manifest.json"),
    "tasks that are a number": (lambda d: d.update(tasks=3), "manifest.json"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_that_makes_no_sense_is_refused(rooms_copy: Path, case: str) -> None:
    change, message = CHANGES[case]
    edit(rooms_copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(rooms_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"simo"', "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(rooms_copy: Path, text: str) -> None:
    (rooms_copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"schema|cannot be read as JSON"):
        Bundle.open(rooms_copy)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "nothing")


def test_a_task_that_is_not_there_gets_the_closest_name(rooms_bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'depth'"):
        Bundle.open(rooms_bundle).manifest.task("dept")


def test_the_manifest_reads_back_as_it_was_written(rooms_bundle: Path) -> None:
    manifest = Bundle.open(rooms_bundle).manifest
    assert manifest.to_json() == (rooms_bundle / MANIFEST).read_text()


def test_the_manifest_names_no_folder_of_the_machine(rooms_bundle: Path, rooms_data: Path) -> None:
    for path in rooms_bundle.iterdir():
        assert str(rooms_data).encode() not in path.read_bytes()
        assert str(rooms_bundle.parent).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
