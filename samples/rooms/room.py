"""One room from a seed: the photo and what is true of it, pixel by pixel."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samples.rooms.scene import Scene, draw_scene
from samples.rooms.shade import (
    Points,
    chosen,
    colour_of,
    develop,
    joined,
    light_at,
    points_of,
    stage_of,
)
from samples.rooms.shapes import F32, Label
from samples.rooms.trace import Hits, Solids, cast, solids_of

U8 = npt.NDArray[np.uint8]
_SHELL = (Label.WALL, Label.FLOOR, Label.CEILING)
_GLANCE = (24, 32)


@dataclass(frozen=True)
class Room:
    """A photo with its ground truth, exact at pixel centres.

    ``depth_HW`` is z-depth in metres; ``normal_HW3`` has unit length in camera axes (x right,
    y down, z forward) and faces the viewer; ``label_HW`` indexes ``shapes.CLASSES``; ``hfov``
    is the horizontal field of view in degrees, the optical axis meeting the picture's middle.
    """

    rgb_HW3: U8
    depth_HW: F32
    normal_HW3: F32
    label_HW: U8
    hfov: float


def room_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of the index-th room of a split; it depends on nothing else."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def _labels(scene: Scene, hits: Hits) -> U8:
    """Class indices (H, W) of what the camera sees."""
    of_part = [part.label for part in scene.parts] + [label for label, _ in scene.shell]
    return np.array(of_part, np.uint8)[hits.part_HW]


def _good_view(scene: Scene, solids: Solids) -> bool:
    """Whether a glance shows enough: several classes, furniture neither absent nor in the way."""
    hits = cast(solids, scene.camera, _GLANCE)
    label = _labels(scene, hits)
    share = np.bincount(label.ravel(), minlength=len(Label)) / label.size
    inside = hits.part_HW < solids.count
    nearest = hits.depth_HW[inside].min(initial=9.0)
    furniture = share[[Label.TABLE, Label.SEAT, Label.BED, Label.CABINET]]
    return bool(
        (share > 0.004).sum() >= 7
        and 2.0 < hits.depth_HW.mean() < 6.0
        and nearest > 0.75
        and 0.1 < furniture.sum() < 0.5
        and share[list(_SHELL)].sum() < 0.82
        and 0.012 < share[Label.WINDOW] < 0.3
    )


def draw_room(rng: np.random.Generator) -> Scene:
    """The first of the generator's scenes that makes a good picture."""
    while True:
        scene = draw_scene(rng)
        if _good_view(scene, solids_of(scene)):
            return scene


def _fine_parents(size_hw: tuple[int, int]) -> npt.NDArray[np.int32]:
    """For every sample of the doubled picture, row by row, the flat pixel that it lies in."""
    height, width = size_hw
    pixel = np.arange(height * width, dtype=np.int32).reshape(height, width)
    return pixel.repeat(2, axis=0).repeat(2, axis=1).ravel()


def _jitter(size_hw: tuple[int, int], rng: np.random.Generator) -> F32:
    """Where on the sun's disc each sample of the doubled picture looks, (2, 4HW) in -1..1.

    The four samples of a pixel look at its four quarters, so that little noise is left.
    """
    height, width = size_hw
    quarter = np.array([[[-0.25, 0.65], [-0.65, 0.25]], [[-0.65, -0.25], [0.25, 0.65]]])
    tiled = np.tile(quarter, (1, height, width))
    return (tiled + rng.uniform(-0.25, 0.25, tiled.shape)).reshape(2, -1).astype(np.float32)


def _lit_samples(
    scene: Scene, solids: Solids, hits: Hits, rng: np.random.Generator
) -> tuple[F32, Points]:
    """Linear radiance (2H, 2W, 3) of the doubled picture, and the points at pixel centres.

    Soft light is worked out at pixel centres and shared by a pixel's samples; samples that see
    another surface than the centre does get their own.
    """
    height, width = hits.depth_HW.shape
    stage = stage_of(scene, solids, (height, width))
    centre = points_of(stage, hits, np.arange(height * width, dtype=np.int32))
    parent = _fine_parents((height, width))
    fine = points_of(stage, cast(solids, scene.camera, (2 * height, 2 * width)), parent)
    bend = (fine.surface.normal_3N * centre.surface.normal_3N[:, parent]).sum(axis=0)
    odd = np.flatnonzero((fine.part_N != centre.part_N[parent]) | (bend < 0.9))
    grid = centre.point_3N.reshape(3, height, width)
    light, shine = light_at(stage, joined(centre, chosen(fine, odd)), grid)
    source = parent.copy()
    source[odd] = height * width + np.arange(len(odd), dtype=np.int32)
    jitter = _jitter((height, width), rng)
    doubled = (2 * height, 2 * width)
    colour = colour_of(stage, fine, (light[:, source], shine[:, source]), jitter, doubled)
    return colour.T.reshape(2 * height, 2 * width, 3), centre


def _facing(normal_3N: F32, ray_3N: F32) -> F32:
    """Normals (3, N) that rounding turned just away from the viewer, laid across the ray."""
    ray = ray_3N / np.linalg.norm(ray_3N, axis=0)
    away = np.maximum((normal_3N * ray).sum(axis=0), 0)
    turned = normal_3N - away * ray
    return np.asarray(turned / np.linalg.norm(turned, axis=0), np.float32)


def render_scene(scene: Scene, size_hw: tuple[int, int], rng: np.random.Generator) -> Room:
    """The photo (with the generator's sensor noise) and ground truth of a scene."""
    height, width = size_hw
    solids = solids_of(scene)
    hits = cast(solids, scene.camera, size_hw)
    samples, centre = _lit_samples(scene, solids, hits, rng)
    # Bounded before averaging, so that a bright window's edge stays smooth.
    blocks = np.minimum(samples, 1.8).reshape(height, 2, width, 2, 3)
    rgb = develop(blocks.mean(axis=(1, 3)), rng)
    facing = _facing(centre.surface.normal_3N, hits.ray_3HW.reshape(3, -1))
    normal = (scene.camera.axes() @ facing).T.reshape(height, width, 3)
    hfov = float(np.degrees(scene.camera.hfov))
    return Room(rgb, hits.depth_HW, normal, _labels(scene, hits), hfov)


def render_room(seed: int, split: str, index: int, size_hw: tuple[int, int]) -> Room:
    """The index-th room (from 0) of a split, at the given height and width in pixels."""
    rng = room_rng(seed, split, index)
    return render_scene(draw_room(rng), size_hw, rng)
