"""A predictor without a network: what it predicts is a plain function of the pixels."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from simo_runtime.backends import Outputs, Pixels
from simo_runtime.bundle import Bundle, FileEntry, Manifest
from simo_runtime.graphs import usual_files
from simo_runtime.predictor import Predictor
from simo_runtime.tasks import TaskSpec

SIZE = (24, 32)  # height, width of the network's image
LABELS = ("dark", "light")
SPECS = (
    TaskSpec(name="seg", kind="segmentation", channels=2, metric="mean_iou", labels=LABELS),
    TaskSpec(name="depth", kind="depth", channels=1, metric="absolute_error"),
    TaskSpec(name="normals", kind="normals", channels=3, metric="mean_angle"),
)


class Plain:
    """A session: light pixels are class 1, the red channel is metres, normals face the camera."""

    def __init__(self, before: Callable[[Pixels], object] = lambda pixels: None) -> None:
        self.batches: list[int] = []
        self.closed = False
        self._before, self._lock = before, threading.Lock()

    def run(self, pixels_BHW3: Pixels, tasks: Sequence[str]) -> Outputs:
        with self._lock:
            self.batches.append(len(pixels_BHW3))
        self._before(pixels_BHW3)
        facing = np.zeros((len(pixels_BHW3), 3, *SIZE), np.float32)
        facing[:, 2] = -1
        every = {
            "seg": (pixels_BHW3[..., 1] > 127).astype(np.uint8),
            "depth": pixels_BHW3[..., 0].astype(np.float32),
            "normals": facing,
        }
        return {task: every[task] for task in tasks}

    def identity(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        self.closed = True


def manifest(**changes: Any) -> Manifest:
    names = [spec.name for spec in SPECS]
    files = usual_files(names, "fp32").named().values()
    content: dict[str, Any] = {
        "name": "plain",
        "image_size": SIZE,
        "fit": "stretch",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "features": ("tap0",),
        "tasks": SPECS,
        "files": {name: FileEntry(sha256="0" * 64, bytes=1) for name in files},
        "graphs": {"fp32": usual_files(names, "fp32")},
    }
    return Manifest(**content | changes)


def plain(session: Plain | None = None, **changes: Any) -> Predictor:
    return Predictor(Bundle(Path("plain"), manifest(**changes)), session or Plain())


def write_photo(path: Path, shade: int, *, size: tuple[int, int] = (40, 60)) -> Path:
    """Write a picture of one grey; a JPEG or what the suffix says."""
    assert cv2.imwrite(str(path), np.full((*size, 3), shade, np.uint8))
    return path
