"""The look of a picture: light times material, sky, shine, exposure, and a camera's traits."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from samples.rooms.light import Lights, lights_of, pane_frame, smoothed, soft_light, sun_light
from samples.rooms.scene import Scene
from samples.rooms.shapes import F32, Stuff
from samples.rooms.texture import Looks, albedo_at, looks_of, noise
from samples.rooms.trace import Hits, Ints, Solids, Surface, surface_at

_TAPS = 14
# Outside, far to near: mean height over distance, swell, roughness, and share of haze.
_HILLS = ((0.03, 0.05, 0.4, 0.55), (-0.03, 0.03, 1.5, 0.2), (-0.17, 0.04, 0.5, 0.05))


@dataclass(frozen=True)
class Stage:
    """All that shading needs of a scene."""

    scene: Scene
    solids: Solids
    looks: Looks
    lights: Lights
    eye_3: F32
    focal: float
    map_side: int


@dataclass(frozen=True)
class Points:
    """Surface points that light is worked out for; ``pixel_N`` is where each is in the picture."""

    part_N: Ints
    point_3N: F32
    surface: Surface
    depth_N: F32
    pixel_N: Ints


def stage_of(scene: Scene, solids: Solids, size_hw: tuple[int, int]) -> Stage:
    """The scene made ready for a picture of this size."""
    focal = float(size_hw[1] / 2 / np.tan(scene.camera.hfov / 2))
    eye = np.array(scene.camera.position, np.float32)
    side = int(np.clip(size_hw[1] * 0.5, 72, 224))
    return Stage(scene, solids, looks_of(scene), lights_of(scene), eye, focal, side)


def joined(one: Points, other: Points) -> Points:
    """Two sets of points as one."""
    a, b = one.surface, other.surface
    return Points(
        np.concatenate([one.part_N, other.part_N]),
        np.concatenate([one.point_3N, other.point_3N], axis=1),
        Surface(
            np.concatenate([a.normal_3N, b.normal_3N], axis=1),
            np.concatenate([a.local_3N, b.local_3N], axis=1),
            np.concatenate([a.unit_3N, b.unit_3N], axis=1),
            np.concatenate([a.axis_N, b.axis_N]),
        ),
        np.concatenate([one.depth_N, other.depth_N]),
        np.concatenate([one.pixel_N, other.pixel_N]),
    )


def chosen(points: Points, at_N: npt.NDArray[np.int64]) -> Points:
    """Some of the points."""
    own = points.surface
    part = Surface(
        own.normal_3N[:, at_N], own.local_3N[:, at_N], own.unit_3N[:, at_N], own.axis_N[at_N]
    )
    point, depth = points.point_3N[:, at_N], points.depth_N[at_N]
    return Points(points.part_N[at_N], point, part, depth, points.pixel_N[at_N])


def points_of(stage: Stage, hits: Hits, pixel_N: Ints) -> Points:
    """The points of a cast; ``pixel_N`` says in which pixel of the picture each lies."""
    depth, part = hits.depth_HW.ravel(), hits.part_HW.ravel()
    point = stage.eye_3[:, None] + hits.ray_3HW.reshape(3, -1) * depth
    return Points(part, point, surface_at(stage.solids, part, point), depth, pixel_N)


def _nooks(stage: Stage, points: Points) -> F32:
    """Darkening (N,) towards the edges of the room's shell and under furniture."""
    point, normal = points.point_3N, points.surface.normal_3N
    open_N = np.ones(points.depth_N.shape, np.float32)
    for axis, size in enumerate(stage.solids.size_3):
        for sign, away in ((1, point[axis]), (-1, size - point[axis])):
            side = 0.5 * (1 - sign * normal[axis])
            open_N *= 1 - 0.42 * side * np.exp(away * -2.4)
    low = np.flatnonzero((point[2] < 0.1) & (normal[2] > 0.5))
    x, y = point[:2, low]
    for foot in stage.scene.standing:
        cos, sin = np.cos(foot.yaw), np.sin(foot.yaw)
        a = np.abs(cos * (x - foot.x) + sin * (y - foot.y)) - foot.half_w
        b = np.abs(-sin * (x - foot.x) + cos * (y - foot.y)) - foot.half_d
        away = np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - np.clip(-np.maximum(a, b), 0, 0.12)
        reach = 0.2 + 0.25 * foot.clearance
        depth = 0.8 / (1 + 1.6 * foot.clearance)
        open_N[low] *= 1 - depth / (1 + np.exp(np.clip(away * 4 / reach, -20, 20)))
    return open_N


def _crevices(stage: Stage, points: Points, grid_3HW: F32) -> F32:
    """Screen-space ambient occlusion (N,): how much nearby geometry rises above each point."""
    _, height, width = grid_3HW.shape
    grid, normal = grid_3HW.reshape(3, -1), points.surface.normal_3N
    y, x = points.pixel_N // width, points.pixel_N % width
    spin = (x % 2) * 2 + (y % 2)
    turns = np.arange(4) * 0.6
    reach = np.clip(0.34 * stage.focal / points.depth_N, 3, width / 6)
    total = np.zeros(points.depth_N.shape, np.float32)
    for tap in range(_TAPS):
        angles = tap * 2.39996 + turns
        cos, sin = (f(angles).astype(np.float32)[spin] for f in (np.cos, np.sin))
        radius = reach * np.float32(np.sqrt((tap + 0.6) / _TAPS))
        column = np.clip(x + np.rint(cos * radius), 0, width - 1).astype(np.int32)
        row = np.clip(y + np.rint(sin * radius), 0, height - 1).astype(np.int32)
        offset = grid[:, row * width + column] - points.point_3N
        square = (offset * offset).sum(axis=0) + np.float32(1e-6)
        rise = (offset * normal).sum(axis=0) / np.sqrt(square) - np.float32(0.12)
        total += np.maximum(rise, 0) / (1 + square * 9)
    return np.asarray(np.clip(1 - total * np.float32(1.7 / _TAPS), 0.25, 1), np.float32)


def _ambient(stage: Stage, normal_3N: F32) -> F32:
    """Light (3, N) that walls, floor and ceiling throw back, by the way a surface faces."""
    scene = stage.scene
    colours = np.array([look.colour for _, look in scene.shell], np.float32)
    sky = np.array(scene.mood.sky, np.float32) * scene.mood.ambient
    up = normal_3N[2] * np.float32(0.5) + np.float32(0.5)
    floor, walls, ceiling = colours[4], colours[:4].mean(axis=0), colours[5]
    above = (0.55 * ceiling + 0.45 * walls + 0.12) * sky
    below = (0.75 * floor + 0.25 * walls + 0.10) * sky * np.array([1.12, 1.0, 0.9])
    if any(scene.mood.sun):
        below = below + floor * np.array(scene.mood.sun) * 0.022
    light = below[:, None] * (1 - up) + above[:, None] * up
    # Walls that face different ways must differ a little, or corners vanish.
    return np.asarray(light * (1 + 0.07 * normal_3N[0] - 0.05 * normal_3N[1]), np.float32)


def _shine(stage: Stage, points: Points, clear_N: F32) -> F32:
    """Blurred mirror image (3, N) of the windows in glossy surfaces."""
    gloss = stage.looks.gloss_P[points.part_N]
    at = np.flatnonzero(gloss > 0.02)
    result = np.zeros_like(points.point_3N)
    view = points.point_3N[:, at] - stage.eye_3[:, None]
    view /= np.linalg.norm(view, axis=0)
    normal = points.surface.normal_3N[:, at]
    cosine = -(view * normal).sum(axis=0)
    mirror = view + 2 * cosine * normal
    fresnel = 0.05 + 0.6 * np.clip(1 - cosine, 0, 1) ** 4
    total = np.zeros(len(at), np.float32)
    for pane in stage.scene.panes:
        axis, level, inward = pane_frame(stage.scene, pane)
        toward = -mirror[axis] * inward[axis]
        t = np.abs(points.point_3N[axis, at] - level) / np.maximum(toward, 1e-3)
        along = points.point_3N[1 - axis, at] + t * mirror[1 - axis]
        up = points.point_3N[2, at] + t * mirror[2]
        soft = 0.05 + 0.14 * np.minimum(t, 20)
        glow = np.ones(len(at), np.float32)
        for value, (low, high) in ((along, pane.along), (up, pane.up)):
            middle, half = (low + high) / 2, (high - low) / 2
            glow /= 1 + np.exp(np.clip((np.abs(value - middle) - half) * 3 / soft, -20, 20))
        total += np.where(toward > 1e-3, glow, 0)
    strength = total * fresnel * gloss[at] * clear_N[at] * 1.5
    result[:, at] = np.array(stage.scene.mood.sky, np.float32)[:, None] * strength
    return result


def light_at(stage: Stage, points: Points, grid_3HW: F32) -> tuple[F32, F32]:
    """Diffuse light and shine, both (3, N), without the direct sun.

    ``grid_3HW`` are the positions at the pixel centres, whose points come first in ``points``.
    """
    normal = points.surface.normal_3N
    crevices = _crevices(stage, points, grid_3HW)
    # The taps of neighbouring pixels are turned against each other: their mean has no pattern.
    shape, count = grid_3HW.shape[1:], grid_3HW[0].size
    parts = points.part_N[:count].reshape(shape)
    crevices[:count] = smoothed(crevices[:count].reshape(shape), parts).ravel()
    open_N = _nooks(stage, points) * crevices
    soft, clear = soft_light(
        stage.solids, stage.lights, points.point_3N, normal, points.part_N, stage.map_side
    )
    diffuse = _ambient(stage, normal) * open_N + soft * (0.35 + 0.65 * open_N)
    return diffuse, _shine(stage, points, clear * open_N)


def _sky(stage: Stage, view_3N: F32) -> F32:
    """The outside (3, N) in given directions: a sky gradient with clouds above hazy hills."""
    mood = stage.scene.mood
    x, y, z = view_3N / np.linalg.norm(view_3N, axis=0)
    turn = np.arctan2(y, x)
    rise = z / np.hypot(x, y)
    share = np.clip(rise * 2.4 + 0.1, 0, 1)
    low, high = (np.array(c, np.float32)[:, None] for c in (mood.sky, mood.zenith))
    colour = low * (1 - share) + high * share
    cloud = np.clip(noise(turn * 0.9, rise * 2.2) * 0.9 - 0.2, 0, 1) * np.clip(rise * 5, 0, 1)
    colour = colour + (low * 1.15 - colour) * cloud * 0.8
    for level, swell, rough, haze in _HILLS:
        crest = level + swell * noise(turn * rough + level * 30, turn * 0)
        green = np.array([[0.16], [0.34], [0.10]], np.float32) * low
        woods = 0.16 * (1 - haze) * noise(turn * 5, rise * 9)
        shade = 0.72 + 0.5 * np.clip((rise - crest) * 5 + 0.8, 0, 1) + woods
        hill = (low * 0.8 * haze + green * (1 - haze)) * shade
        colour = np.where(rise < crest, hill, colour)
    return np.asarray(colour * 0.8, np.float32)


def _emitted(stage: Stage, points: Points, view_3N: F32) -> F32:
    """Light (3, N) of what shines itself: the sky in the windows, and lampshades.

    A shade is brightest near the height of its bulb, and dimmer by day.
    """
    looks = stage.looks
    stuff = looks.stuff_P[points.part_N]
    result = np.zeros_like(view_3N)
    sky = np.flatnonzero(stuff == Stuff.SKY)
    result[:, sky] = _sky(stage, view_3N[:, sky])
    shade = np.flatnonzero(stuff == Stuff.SHADE)
    part = points.part_N[shade]
    bulb = np.exp(-((points.surface.unit_3N[2, shade] + 0.15) ** 2) * 1.6)
    power = looks.glow_P[part] * (0.75 + 0.5 * bulb) * (0.75 + 0.3 * stage.scene.mood.lamps)
    result[:, shade] = looks.colour_P3[part].T * power
    return result


def colour_of(
    stage: Stage, points: Points, soft: tuple[F32, F32], jitter_2N: F32, size_hw: tuple[int, int]
) -> F32:
    """Linear radiance (3, N) of a whole picture's points whose soft light is known.

    ``soft`` is what ``light_at`` gives; ``size_hw`` is the picture's height and width, N = HW.
    """
    normal = points.surface.normal_3N
    view = points.point_3N - stage.eye_3[:, None]
    tilt = np.abs((view * normal).sum(axis=0)) / np.linalg.norm(view, axis=0)
    foot = points.depth_N / np.float32(stage.focal * 2) / np.maximum(tilt, 0.08)
    albedo = albedo_at(stage.solids, stage.looks, points.part_N, points.surface, foot)
    sun = sun_light(stage.scene, stage.solids, points.point_3N, normal, points.part_N, jitter_2N)
    sun = smoothed(sun.reshape(size_hw), points.part_N.reshape(size_hw)).ravel()
    power = np.array(stage.scene.mood.sun, np.float32)[:, None]
    colour = albedo * (soft[0] + power * sun * np.float32(0.62)) + soft[1]
    return colour + _emitted(stage, points, view)


def develop(linear_HW3: F32, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A photo (H, W, 3) uint8: automatic exposure, bloom, film curve, vignette, sensor noise."""
    height, width, _ = linear_HW3.shape
    luminance = linear_HW3 @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    key = float(np.exp(np.log(np.minimum(luminance, 1.2) + 0.01).mean()))
    image = linear_HW3 * np.float32(np.clip(0.30 / key, 0.6, 3.0))
    bright = np.minimum(np.maximum(image - 1.0, 0), 2.5)
    for spread, share in ((0.012, 0.12), (0.05, 0.07)):
        image = image + share * cv2.GaussianBlur(bright, (0, 0), width * spread)
    film = image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    film = np.clip(film, 0, 1) * (1 - 0.07 * (x * x + y * y))[..., None]
    srgb = np.clip(film, 0, 1) ** (1 / 2.2)
    noisy = srgb + rng.normal(0, 0.006, srgb.shape[:2])[..., None] * (1.2 - srgb)
    return np.asarray(np.clip(noisy * 255 + 0.5, 0, 255), np.uint8)
