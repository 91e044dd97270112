"""Edges and keypoints, made from the images of a `folder` data set as Taskonomy makes them.

    python -m simo_bench.drawn DATA/nyuv2

Writes edge/NNNN.png and keypoint/NNNN.png beside rgb/ for every frame of every split: uint16 grey,
0 = none. They need nobody's labels, and make a three-task data set one of five tasks.

edge        the magnitude of the gradient of the brightness, smoothed by a Gaussian of 1 pixel: a
            Canny detector before it thins and decides (Taskonomy, CVPR 2018, supplement).
keypoint    what SURF's detector approximates, before it decides: the determinant of the Hessian
            of the smoothed brightness, normalised by scale, the largest of three scales (Bay et
            al. 2008, section 3.2; its boxes, and with them its weight of 0.9, are not needed here).

Both are cut at the 99th percentile of the frames of `train`, which becomes 65535.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from simo_build.cli import polite
from simo_build.formats.folder import FolderDataset
from simo_build.progress import Bars, Progress
from simo_runtime.errors import DataError
from simo_runtime.files import write_image
from simo_runtime.image import Pixels

Map = NDArray[np.float32]
SIGMA = 1.0  # pixels, of the edges
SCALES = (1.5, 2.5, 4.0)  # pixels, of the keypoints
PERCENTILE = 99.0
WHOLE = 65535


def brightness(image_HW3: Pixels) -> Map:
    """Give an RGB image as grey from 0 to 1."""
    return np.asarray(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), np.float32) / np.float32(255)


def smoothed(grey_HW: Map, sigma: float) -> Map:
    """Blur a map by a Gaussian of so many pixels."""
    blurred = cv2.GaussianBlur(grey_HW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred, np.float32)


def edges(image_HW3: Pixels) -> Map:
    """Give the magnitude of the smoothed gradient, per pixel, for RGB uint8 (H, W, 3)."""
    down, right = np.gradient(smoothed(brightness(image_HW3), SIGMA))
    return np.asarray(np.hypot(down, right), np.float32)


def keypoints(image_HW3: Pixels) -> Map:
    """Give the largest normalised determinant of the Hessian over the scales, at least 0."""
    grey = brightness(image_HW3)
    return np.asarray(np.max([_determinant(grey, sigma) for sigma in SCALES], axis=0).clip(min=0))


def _determinant(grey_HW: Map, sigma: float) -> Map:
    down, right = np.gradient(smoothed(grey_HW, sigma))
    (down_down, down_right), right_right = np.gradient(down), np.gradient(right)[1]
    found = down_down * right_right - down_right**2
    return np.asarray(sigma**4 * found, np.float32)


DRAWN: Mapping[str, Callable[[Pixels], Map]] = {"edge": edges, "keypoint": keypoints}


def draw(root: Path, *, progress: Progress) -> list[Path]:
    """Write the maps of every frame; give the folders. DataError for what is no such data set."""
    data = FolderDataset(root)
    names = sorted({name for split in data.meta["splits"] for name in data.ids(split)})
    folders = []
    for folder, function in DRAWN.items():
        (root / folder).mkdir(exist_ok=True)
        highest = _highest(data, function)
        if highest <= 0:
            raise DataError(f"{root}: the images of `train` are all of one colour")
        for name in progress.track(names, folder):
            share = (function(data.image(name)) / highest).clip(0, 1)
            write_image(root / folder / f"{name}.png", np.round(share * WHOLE).astype(np.uint16))
        folders.append(root / folder)
    return folders


def _highest(data: FolderDataset, function: Callable[[Pixels], Map]) -> float:
    """Give the percentile over the frames of `train`, from every fourth pixel of each side."""
    maps = [function(data.image(name))[::4, ::4].ravel() for name in data.ids("train")]
    return float(np.percentile(np.concatenate(maps), PERCENTILE))


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@polite
def main(root: Path) -> None:
    """Make edges and keypoints from the images of a data set at ROOT."""
    for folder in draw(root, progress=Bars()):
        click.echo(folder)


if __name__ == "__main__":
    main()
