"""Arrays past the limit lie in files, and nothing else changes."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from simo_build import room
from simo_build.data import Samples, mirrored
from simo_build.features import collected
from simo_build.room import room_for
from simo_runtime.errors import DataError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let everything over 100 bytes lie in a file, in a folder that is given back."""
    monkeypatch.setattr(room, "LIMIT", 100)
    monkeypatch.setattr(room._Held, "bytes", 0)  # what other tests hold
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def in_a_file(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def test_what_fits_is_in_memory(small: Path) -> None:
    assert not in_a_file(room_for((100,), np.uint8))
    assert not in_a_file(room_for((0, 3), np.float32))


def test_what_is_still_held_counts(small: Path) -> None:
    first = room_for((60,), np.uint8)
    kept = first[10:20]  # a view keeps the whole
    del first
    assert in_a_file(room_for((60,), np.uint8))
    del kept
    assert not in_a_file(room_for((60,), np.uint8))


def test_what_is_larger_is_in_a_file_without_a_name(small: Path) -> None:
    array = room_for((11, 5), np.float16)
    assert in_a_file(array)
    assert (array.shape, array.dtype) == ((11, 5), np.float16)
    array[:] = 2.5
    assert (np.asarray(array) == 2.5).all()
    assert list(small.iterdir()) == []


def test_torch_reads_and_writes_it(small: Path) -> None:
    array = room_for((30, 4), np.float32)
    tensor = torch.from_numpy(array)
    tensor[:] = torch.arange(120.0).reshape(30, 4)
    assert array[29, 3] == 119
    assert tensor[torch.tensor([29, 0])].tolist() == [[116, 117, 118, 119], [0, 1, 2, 3]]


def test_a_large_split_is_mirrored_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    samples = Samples(
        draw.integers(0, 256, (3, 4, 5, 3), np.uint8),
        {"normals": draw.normal(size=(3, 4, 5, 3)).astype(np.float16)},
    )
    small = mirrored(samples, {"normals": "normals"})
    monkeypatch.setattr(room, "LIMIT", 100)
    large = mirrored(samples, {"normals": "normals"})
    assert in_a_file(large.images)
    assert not in_a_file(small.images)
    np.testing.assert_array_equal(large.images, small.images)
    np.testing.assert_array_equal(large.truths["normals"], small.truths["normals"])
    np.testing.assert_array_equal(
        large.truths["normals"][3, :, 0, 0], -samples.truths["normals"][0, :, 4, 0]
    )


def test_a_full_disk_is_told_before_anything_is_written(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(
        DataError, match=r"no room for .* GiB .*No space left on device; set TMPDIR"
    ):
        room_for((2**28,), np.float32)


def test_what_is_collected_in_half_precision_is_widened_once_it_must_be(small: Path) -> None:
    parts = [
        torch.full((2, 3), 1.5).half(),
        torch.full((2, 3), 1e6),
        torch.full((1, 3), 2.5).half(),
    ]
    rows = (slice(0, 2), slice(2, 4), slice(4, 6))
    (whole,) = collected(((at, [part]) for at, part in zip(rows, parts, strict=True)), count=5)
    assert whole.dtype == torch.float32
    assert whole[:, 0].tolist() == [1.5, 1.5, 1e6, 1e6, 2.5]
    (narrow,) = collected([(slice(0, 2), parts[:1])], count=2)
    assert narrow.dtype == torch.float16
