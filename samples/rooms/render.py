"""Draws furnished rooms: a command that writes a data set or a few large photos.

``render_room`` is the same thing for use from Python: a seed in, arrays out.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    # One thread per process: the products are tiny, and there is a process per core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click
import cv2
import numpy as np
import numpy.typing as npt

from samples.rooms.room import U8, Room, draw_room, render_room, room_rng
from samples.rooms.shapes import CLASSES

__all__ = ["CLASSES", "GENERATOR", "Room", "render_room"]

GENERATOR = "rooms/1"


@dataclass(frozen=True)
class Job:
    """One room to write: the index-th (from 0) of its split, as files named ``stem``."""

    folder: Path
    stem: str
    seed: int
    split: str
    index: int
    size_hw: tuple[int, int]

    def files(self) -> dict[str, Path]:
        """Where each of the room's pictures goes."""
        endings = {"rgb": "jpg", "depth": "png", "normal": "png", "label": "png"}
        return {kind: self.folder / kind / f"{self.stem}.{end}" for kind, end in endings.items()}


def _save(path: Path, image: npt.NDArray[np.generic]) -> None:
    """Writes an RGB or one-channel image whole or not at all."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == ".jpg" else []
    good, data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr), options)
    if not good:
        raise OSError(f"cannot encode {path}")
    _replace(path, data.tobytes())


def _replace(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and moves it into place."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    temporary.replace(path)


def encode_normals(normal_HW3: npt.NDArray[np.float32]) -> U8:
    """Unit normals as bytes e with n = e / 127.5 - 1; no unit vector becomes 0, 0, 0."""
    return np.asarray(np.rint((normal_HW3 + 1) * 127.5), np.uint8)


def _write_room(job: Job) -> tuple[str, float]:
    """Writes a room's files unless they are there; its stem and horizontal field of view."""
    files = job.files()
    if all(path.exists() for path in files.values()):
        scene = draw_room(room_rng(job.seed, job.split, job.index))
        return job.stem, float(np.degrees(scene.camera.hfov))
    room = render_room(job.seed, job.split, job.index, job.size_hw)
    millimetres = np.rint(room.depth_HW * 1000).astype(np.uint16)
    _save(files["rgb"], room.rgb_HW3)
    _save(files["depth"], millimetres)
    _save(files["normal"], encode_normals(room.normal_HW3))
    _save(files["label"], room.label_HW)
    return job.stem, room.hfov


def _write_photo(job: Job) -> tuple[str, float]:
    """Writes one showcase photo."""
    room = render_room(job.seed, job.split, job.index, job.size_hw)
    _save(job.folder / f"{job.stem}.jpg", room.rgb_HW3)
    return job.stem, room.hfov


def _parse_size(context: click.Context, option: click.Parameter, text: str) -> tuple[int, int]:
    """``HxW`` as (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) >= 8 and int(width) >= 8):
        raise click.BadParameter("expected HEIGHTxWIDTH in pixels, for instance 120x160")
    return int(height), int(width)


def _parse_splits(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, int]:
    """``name=count`` options as a mapping, in the order given."""
    splits: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not name or name in splits or not count.isdecimal():
            raise click.BadParameter(f"expected distinct NAME=COUNT, got {text!r}")
        splits[name] = int(count)
    return splits


def _jobs_of(
    folder: Path, size_hw: tuple[int, int], splits: dict[str, int], seed: int
) -> list[Job]:
    """All rooms of a data set, numbered through in the order of its splits."""
    wanted = [(split, index) for split, count in splits.items() for index in range(count)]
    return [
        Job(folder, f"{number:04d}", seed, split, index, size_hw)
        for number, (split, index) in enumerate(wanted, start=1)
    ]


def _check_folder(folder: Path, meta: dict[str, object]) -> bool:
    """Whether a folder holds the finished data set; refuses one that holds another's."""
    path = folder / "meta.json"
    if path.exists():
        found = json.loads(path.read_text())
        done = found.pop("hfov_deg", None) is not None
        if found == meta:
            return done
        raise click.ClickException(f"{folder} was made with other arguments; choose another folder")
    if folder.exists() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} is not empty and has no meta.json")
    return False


def _run(jobs: list[Job], photos: bool, processes: int) -> Iterator[tuple[str, float]]:
    """The results of all jobs, in whatever order they finish."""
    work = _write_photo if photos else _write_room
    processes = min(processes, len(jobs))
    if processes <= 1:
        cv2.setNumThreads(1)
        yield from map(work, jobs)
        return
    with multiprocessing.Pool(processes, cv2.setNumThreads, (1,)) as pool:
        yield from pool.imap_unordered(work, jobs)


def _with_progress(jobs: list[Job], photos: bool, processes: int) -> dict[str, float]:
    """Runs the jobs under a progress line on stderr; fields of view in degrees by stem."""
    fields: dict[str, float] = {}
    for stem, hfov in _run(jobs, photos, processes):
        fields[stem] = round(hfov, 4)
        click.echo(f"\r{len(fields)}/{len(jobs)} rooms", err=True, nl=False)
    click.echo(err=True)
    return dict(sorted(fields.items()))


def write_dataset(
    folder: Path, size_hw: tuple[int, int], splits: dict[str, int], seed: int, processes: int = 1
) -> None:
    """Writes (or completes) a data set; the README describes the layout."""
    jobs = _jobs_of(folder, size_hw, splits, seed)
    numbers: dict[str, list[int]] = {split: [] for split in splits}
    for job in jobs:
        numbers[job.split].append(int(job.stem))
    meta: dict[str, object] = {
        "size_hw": list(size_hw),
        "classes": list(CLASSES),
        "splits": numbers,
        "seed": seed,
        "generator": GENERATOR,
    }
    if _check_folder(folder, meta) and all(p.exists() for j in jobs for p in j.files().values()):
        return
    for kind in ("rgb", "depth", "normal", "label"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    _replace(folder / "meta.json", json.dumps(meta).encode())
    meta["hfov_deg"] = _with_progress(jobs, False, processes)
    _replace(folder / "meta.json", (json.dumps(meta, indent=1) + "\n").encode())


def write_photos(
    folder: Path, size_hw: tuple[int, int], count: int, seed: int, processes: int = 1
) -> None:
    """Writes ``room-1.jpg`` and so on, without ground truth."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(folder, f"room-{index + 1}", seed, "photos", index, size_hw) for index in range(count)
    ]
    _with_progress(jobs, True, processes)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--size", "size_hw", default="120x160", callback=_parse_size, help="HEIGHTxWIDTH.")
@click.option("--split", "splits", multiple=True, callback=_parse_splits, help="NAME=COUNT.")
@click.option("--photos", type=click.IntRange(1), help="Draw this many photos and no truth.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count, help="Processes.")
def main(
    output: Path,
    size_hw: tuple[int, int],
    splits: dict[str, int],
    photos: int | None,
    seed: int,
    jobs: int,
) -> None:
    """Draw furnished rooms with exact segmentation, depth and normals."""
    if bool(photos) == bool(splits):
        raise click.UsageError("give either --split (once or more) or --photos")
    if photos:
        write_photos(output, size_hw, photos, seed, jobs)
    else:
        write_dataset(output, size_hw, splits, seed, jobs)


if __name__ == "__main__":
    main()
