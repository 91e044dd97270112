"""A bundle: a folder that holds everything a deployment needs, and nothing else.

    manifest.json     what is in it (below); written last
    encoder.onnx      the shared encoder's graph       encoder.bin    its weights
    <task>.onnx       one head's graph                 <task>.bin     its weights
    joint.onnx        all of them in one graph, whose weights are those of the files above
    encoder.fp16.onnx, ...                             the same in another precision

`manifest.json` names every other file with its SHA-256 and size. A file that is missing, changed
or not named there makes the bundle refuse to open. The same recipe and the same inputs give the
same bytes: there are no dates and no machine names in it.

`report.md` and `report.html` say how the bundle was made. They are for people alone: they tell
times, which differ from run to run, so that the manifest does not name them and no reader looks
into them.

Graphs.  encoder: `image` uint8 (B, H, W, 3) RGB  ->  one tensor a tap, `tap3` float32
(B, tokens, width), CLS first.  head: the taps  ->  one tensor named as the task:
classes uint8 (B, H, W), depth and other values float32 (B, H, W), normals and colours float32
(B, 3, H, W).  joint: `image` -> all of these.  In other precisions taps may be float16 or bfloat16;
what goes in and what heads put out stays the same.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from simo_runtime.errors import BundleError, SimoError, listing, unknown
from simo_runtime.graphs import Expected, GraphFiles, check_graphs, parse_graphs
from simo_runtime.placement import Fit
from simo_runtime.tasks import TaskSpec, kind_named

SCHEMA = "simo.bundle/1"
MANIFEST = "manifest.json"
REPORTS = ("report.md", "report.html")  # for people: neither named in the manifest nor read


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of manifest.json."""

    name: str
    image_size: tuple[int, int]  # height, width of the network's image in pixels
    fit: Fit
    mean: tuple[float, float, float]  # of the normalisation, RGB, 0 to 1; folded into the graph
    std: tuple[float, float, float]
    features: tuple[str, ...]  # the encoder's outputs, in the order of its layers
    tasks: tuple[TaskSpec, ...]
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, GraphFiles]  # by precision; fp32 is always there
    random_weights: bool = False  # the base was random: for measuring speed only
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def task(self, name: str) -> TaskSpec:
        """Give the task of that name, or say which ones the bundle has."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise unknown("task", name, (task.name for task in self.tasks))

    def graph_files(self, precision: str) -> GraphFiles:
        """Give the graphs of a precision, or say which precisions the bundle has."""
        if precision not in self.graphs:
            raise unknown("precision", precision, self.graphs)
        return self.graphs[precision]

    def expected(self) -> Expected:
        """Say what the graphs must take and give."""
        return Expected(
            image_size=self.image_size,
            features=self.features,
            tasks=self.tasks,
            sizes={name: entry.bytes for name, entry in self.files.items()},
        )

    def to_json(self) -> str:
        """Write the manifest as JSON with sorted keys."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"


Signature = tuple[int, int, int]  # inode, bytes, time of the last change in ns


def signature(path: Path | str) -> Signature | None:
    """Tell a file from what it may be later; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def signatures(root: Path, manifest: Manifest) -> dict[str, Signature]:
    """Give the signatures of a bundle's files that are there."""
    found = {name: signature(root / name) for name in manifest.files}
    return {name: one for name, one in found.items() if one is not None}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, whose files were found to be what its manifest says.

    `seen` has the signature of every file as it was when it was compared with the manifest, so that
    who reads it later can tell whether it is still that file.
    """

    root: Path
    manifest: Manifest
    seen: Mapping[str, Signature] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path | str) -> "Bundle":
        """Read the manifest, compare every file with it, and look into every graph.

        Raises BundleError for a folder that is not a bundle, for a manifest that cannot be
        understood, for a missing, changed or foreign file, by name, and for a graph that takes
        weights from elsewhere, needs foreign operators or is not what the manifest says.
        """
        root = Path(root)
        if not root.is_dir():
            raise BundleError(f"{root}: there is no such folder")
        path = root / MANIFEST
        if not path.is_file():
            raise BundleError(f"{root}: not a bundle, there is no {MANIFEST} in it")
        manifest = parse_manifest(path)
        seen = signatures(root, manifest)  # before the files are read
        check_files(root, manifest.files)
        check_graphs(root, manifest.graphs, manifest.expected())
        return cls(root, manifest, seen)

    def content(self) -> str:
        """Give a hash that no two contents of one folder share, of all graphs and weights.

        Graphs of two builds may well be equal, byte by byte, where their weights are not; and a
        file that was written anew is another file to those who have the old one mapped.
        """
        names = sorted(name for name in self.manifest.files if name.endswith((".onnx", ".bin")))
        files = [(name, self.manifest.files[name].sha256, self.seen.get(name)) for name in names]
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def check_untouched(self) -> None:
        """Raise BundleError if a graph or its weights are not the files that were opened."""
        for name, before in self.seen.items():
            if name.endswith((".onnx", ".bin")) and signature(self.root / name) != before:
                raise BundleError(
                    f"{self.root / name}: exchanged while the bundle was open; open it again"
                )

    def graph(self, name: str, precision: str = "fp32") -> Path:
        """Give the path of a graph: `encoder`, a task's name, or `joint`.

        UnknownNameError for a precision or a graph that the bundle does not have.
        """
        files = self.manifest.graph_files(precision).named()
        if name not in files:
            raise unknown("graph", name, files)
        return self.root / files[name]


def parse_manifest(path: Path) -> Manifest:
    """Read manifest.json; BundleError names the key that is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise BundleError(f"{path}: schema is {found!r}; this version reads {SCHEMA!r}")
    try:
        return _manifest(data)
    except KeyError as error:
        raise BundleError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError, SimoError) as error:
        raise BundleError(f"{path}: {error}") from error


def _manifest(data: Mapping[str, Any]) -> Manifest:
    high, wide = (int(side) for side in data["image_size"])
    if high < 1 or wide < 1:
        raise ValueError(f"image_size is {high} x {wide}")
    if data["fit"] not in get_args(Fit):
        raise ValueError(f"fit is {data['fit']!r}; it must be one of {', '.join(get_args(Fit))}")
    tasks = tuple(_task(entry) for entry in data["tasks"])
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError("tasks: there must be at least one, and no name twice")
    files = {name: _file(name, entry) for name, entry in data["files"].items()}
    return Manifest(
        name=str(data["name"]),
        image_size=(high, wide),
        fit=cast("Fit", data["fit"]),
        mean=_triple(data, "mean"),
        std=_triple(data, "std"),
        features=tuple(str(name) for name in data["features"]),
        tasks=tasks,
        files=files,
        graphs=parse_graphs(data.get("graphs"), [task.name for task in tasks], files),
        random_weights=bool(data["random_weights"]),
        provenance=_object(data, "provenance"),
    )


def _task(entry: Mapping[str, Any]) -> TaskSpec:
    spec = TaskSpec(
        name=str(entry["name"]),
        kind=str(entry["kind"]),
        channels=int(entry["channels"]),
        metric=str(entry["metric"]),
        labels=tuple(str(label) for label in entry["labels"]),
    )
    kind = kind_named(spec.kind)
    if spec.channels != (len(spec.labels) if kind.channels is None else kind.channels):
        raise ValueError(f"tasks.{spec.name}: {spec.channels} channels do not fit its kind")
    return spec


def _file(name: str, entry: Mapping[str, Any]) -> FileEntry:
    # A plain name keeps every file inside the folder, whatever the manifest says.
    if Path(name).name != name or name in {"", ".", "..", MANIFEST} or "\\" in name:
        raise ValueError(f"files: {name!r} is not a plain file name")
    if name in REPORTS:
        raise ValueError(f"files: {name!r} is for people, and must not be listed")
    return FileEntry(sha256=str(entry["sha256"]), bytes=int(entry["bytes"]))


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(data[key], dict):
        raise ValueError(f"{key} is a {type(data[key]).__name__}; it must be an object")
    return dict(data[key])


def _triple(data: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in data[key])
    return red, green, blue


def check_files(root: Path, files: Mapping[str, FileEntry]) -> None:
    """Compare the files of a folder with what the manifest says; BundleError names offenders.

    Reports are passed over, if they are regular files.
    """
    present = {path.name: path for path in root.iterdir() if path.name != MANIFEST}
    reports = {name: path for name in REPORTS if (path := present.pop(name, None))}
    faults = [f"{name}: not named in the manifest" for name in sorted(set(present) - set(files))]
    faults += [f"{name}: not a regular file" for name, path in reports.items() if not plain(path)]
    for name, entry in sorted(files.items()):
        path = present.get(name)
        if path is None:
            faults.append(f"{name}: missing")
        elif not plain(path):
            faults.append(f"{name}: not a regular file")
        elif path.stat().st_nlink > 1:
            faults.append(f"{name}: a hard link, which changes with another file; copy it instead")
        elif path.stat().st_size != entry.bytes:
            faults.append(f"{name}: {path.stat().st_size} bytes, {entry.bytes} in the manifest")
        elif sha256_of(path) != entry.sha256:
            faults.append(f"{name}: changed, its SHA-256 is not the one in the manifest")
    if faults:
        raise BundleError(
            f"{root}: the bundle does not match its manifest\n{listing(faults)}\n"
            "Build it again, or copy it again from where it came."
        )


def plain(path: Path) -> bool:
    """Tell whether a path is a regular file, and no link to one."""
    return path.is_file() and not path.is_symlink()


def sha256_of(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
