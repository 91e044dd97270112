"""How much light reaches a point: sky through windows, lamps, sun, and what is reflected about.

Soft light is shadowed with one small map per light: the nearest part in each direction, over an
octahedral unfolding of the sphere. The sun is shadowed with exact rays. Shape suffixes as in
``trace``; L lights, K directions of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samples.rooms.layout import Wall
from samples.rooms.scene import Pane, Scene
from samples.rooms.shapes import F32, Stuff
from samples.rooms.trace import Ints, Solids, meet_pairs

_SPREAD = 0.08  # metres by which rays stray from parallel, over the length of a room
_BEAM = 16384  # sun rays are met in chunks of this many, to bound the memory they take


@dataclass(frozen=True)
class Lights:
    """Soft lights: a lamp has a zero normal and shines all around."""

    place_L3: F32
    normal_L3: F32
    power_L3: F32
    soft_L: F32


@dataclass(frozen=True)
class ShadowMap:
    """Distance to, and number of, the nearest part seen from a light, on an (S, S) unfolding."""

    distance_SS: F32
    part_SS: Ints


def pane_frame(scene: Scene, pane: Pane) -> tuple[int, float, F32]:
    """The axis a pane's plane is normal to, the plane's coordinate, and the inward normal."""
    axis = 0 if pane.wall in (Wall.LEFT, Wall.RIGHT) else 1
    high = pane.wall in (Wall.RIGHT, Wall.FAR)
    normal = np.zeros(3, np.float32)
    normal[axis] = -1 if high else 1
    return axis, scene.size[axis] if high else 0.0, normal


def lights_of(scene: Scene) -> Lights:
    """Patches of the windows (four, or two each when there are more) and the lit lamps."""
    rows: list[tuple[F32, F32, F32, float]] = []
    split = (0.25, 0.75) if len(scene.panes) < 2 else (0.5,)
    for pane in scene.panes:
        axis, level, normal = pane_frame(scene, pane)
        (a0, a1), (z0, z1) = pane.along, pane.up
        area = (a1 - a0) * (z1 - z0) / (2 * len(split))
        for share in (0.25, 0.75):
            for rise in split:
                place = np.full(3, a0 + (a1 - a0) * share, np.float32)
                place[2] = z0 + (z1 - z0) * rise
                place[axis] = level
                power = np.array(scene.mood.sky, np.float32) * area * 2.4
                rows.append((place + normal * 0.06, normal, power, area))
    lamps = [part for part in scene.parts if part.look.stuff is Stuff.SHADE]
    for part in lamps[:3]:
        power = np.array(part.look.colour, np.float32) * part.look.glow * scene.mood.lamps
        rows.append((np.array(part.centre, np.float32), np.zeros(3, np.float32), power, 0.22))
    places, normals, powers, softs = zip(*rows, strict=True) if rows else ((),) * 4
    shape = (len(rows), 3)
    return Lights(
        np.array(places, np.float32).reshape(shape),
        np.array(normals, np.float32).reshape(shape),
        np.array(powers, np.float32).reshape(shape),
        np.array(softs, np.float32),
    )


def _fold(x: F32, y: F32) -> tuple[F32, F32]:
    """Exchanges the inner square of the unfolding with its outer corners."""
    return (1 - np.abs(y)) * np.where(x < 0, -1, 1), (1 - np.abs(x)) * np.where(y < 0, -1, 1)


def _unfolded(way_3N: F32, side: int) -> tuple[F32, F32]:
    """Map coordinates in cells of directions (they need not be of unit length)."""
    x, y, z = way_3N / np.abs(way_3N).sum(axis=0)
    folded = _fold(x, y)
    u, v = np.where(z < 0, folded[0], x), np.where(z < 0, folded[1], y)
    half = np.float32(side / 2)
    return (u + 1) * half - np.float32(0.5), (v + 1) * half - np.float32(0.5)


def _directions(side: int) -> F32:
    """Unit directions (K, 3) of the cells of a map, row by row."""
    at = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    y, x = (a.ravel() for a in np.meshgrid(at, at, indexing="ij"))
    z = 1 - np.abs(x) - np.abs(y)
    folded = _fold(x, y)
    ways = np.stack([np.where(z < 0, folded[0], x), np.where(z < 0, folded[1], y), z], axis=1)
    return np.asarray(ways / np.linalg.norm(ways, axis=1, keepdims=True), np.float32)


def shadow_map(solids: Solids, place_3: F32, side: int) -> ShadowMap:
    """The nearest bulky part in every direction from a light."""
    ways_K3 = _directions(side)
    parts = np.flatnonzero(solids.bulky_P)
    offset = solids.centre_P3[parts] - place_3
    away = np.linalg.norm(offset, axis=1)
    sine = np.minimum(solids.radius_P[parts] / away, 1)
    cosine = np.where(away > solids.radius_P[parts], np.sqrt(1 - sine * sine), -1)
    cell, column = np.nonzero(ways_K3 @ (offset / away[:, None]).T > cosine)
    part = parts[column].astype(np.int32)
    origin = np.broadcast_to(place_3[:, None], (3, len(part)))
    t = meet_pairs(solids, part, origin, ways_K3[cell].T)
    nearest = np.full(side * side, 1e9, np.float32)
    np.minimum.at(nearest, cell, t)
    owner = np.full(side * side, -1, np.int32)
    first = t <= nearest[cell]
    owner[cell[first]] = part[first]
    return ShadowMap(nearest.reshape(side, side), owner.reshape(side, side))


def _lit(shadows: ShadowMap, way_3N: F32, away_N: F32, part_N: Ints) -> F32:
    """Share of light (N,) that arrives, filtered over 3x3 cells.

    A convex part cannot shadow itself, so its own cells count as lit: no bias is needed there.
    """
    side = shadows.part_SS.shape[0]
    u, v = _unfolded(way_3N, side)
    u, v = np.clip(u, 1, side - 2), np.clip(v, 1, side - 2)
    x, y = np.rint(u).astype(np.int32), np.rint(v).astype(np.int32)
    across, down = _spline(u - x), _spline(v - y)
    limit = away_N * 0.97 - 0.04
    total = np.zeros_like(u)
    far, own = shadows.distance_SS.ravel(), shadows.part_SS.ravel()
    for dy in (-1, 0, 1):
        row = np.zeros_like(u)
        for dx in (-1, 0, 1):
            cell = (y + dy) * side + x + dx
            row += across[dx + 1] * ((far[cell] > limit) | (own[cell] == part_N))
        total += down[dy + 1] * row
    return total


def _spline(off_N: F32) -> tuple[F32, F32, F32]:
    """Quadratic B-spline weights of the cells before, at and after an offset in -0.5..0.5."""
    half, most = np.float32(0.5), np.float32(0.75)
    return (half - off_N) ** 2 * half, most - off_N * off_N, (half + off_N) ** 2 * half


def soft_light(
    solids: Solids, lights: Lights, point_3N: F32, normal_3N: F32, part_N: Ints, side: int
) -> tuple[F32, F32]:
    """Irradiance (3, N) from windows and lamps, and the share (N,) of the windows unobscured."""
    total = np.zeros_like(point_3N)
    sky, open_sky = np.full(part_N.shape, 1e-4, np.float32), np.zeros(part_N.shape, np.float32)
    for index in range(len(lights.soft_L)):
        place, out = lights.place_L3[index], lights.normal_L3[index]
        way = point_3N - place[:, None]
        square = (way * way).sum(axis=0)
        away = np.sqrt(square)
        facing = np.maximum(-(way * normal_3N).sum(axis=0) / away, 0)
        leaving = np.maximum(out @ way / away, 0) if out.any() else np.float32(1.0)
        lit = _lit(shadow_map(solids, place, side), way, away, part_N)
        strength = facing * leaving / (square + lights.soft_L[index])
        total += lights.power_L3[index][:, None] * (strength * lit)
        if out.any():
            sky += strength
            open_sky += strength * lit
    return total, open_sky / sky


def _enters(scene: Scene, point_3N: F32, way_3: F32) -> npt.NDArray[np.bool_]:
    """Whether the straight way from points along one direction leaves through a pane."""
    through = np.zeros(point_3N.shape[1], np.bool_)
    for pane in scene.panes:
        axis, level, normal = pane_frame(scene, pane)
        if way_3 @ normal > -0.05:
            continue
        t = (level - point_3N[axis]) / way_3[axis]
        along = point_3N[1 - axis] + t * way_3[1 - axis]
        up = point_3N[2] + t * way_3[2]
        across = (along > pane.along[0]) & (along < pane.along[1])
        through |= across & (up > pane.up[0]) & (up < pane.up[1])
    return through


def sun_light(
    scene: Scene, solids: Solids, point_3N: F32, normal_3N: F32, part_N: Ints, jitter_2N: F32
) -> F32:
    """Cosine-weighted share (N,) of direct sun; ``jitter_2N`` (-1..1) spreads the sun's disc."""
    sun = np.zeros(part_N.shape, np.float32)
    way = np.array(scene.mood.sun_way, np.float32)
    if not any(scene.mood.sun) or not scene.panes:
        return sun
    cosine = way @ normal_3N
    at = np.flatnonzero((cosine > 0) & (part_N != -1))
    at = at[_enters(scene, point_3N[:, at], way)]
    side = np.cross(way, [0, 0, 1]).astype(np.float32)
    up = np.cross(side, way).astype(np.float32)
    for start in range(0, len(at), _BEAM):
        some = at[start : start + _BEAM]
        shift = jitter_2N[:, some] * np.float32(0.018)
        ways = way[:, None] + side[:, None] * shift[0] + up[:, None] * shift[1]
        free = ~_blocked(solids, point_3N[:, some], ways, part_N[some])
        sun[some] = cosine[some] * free
    return sun


def _blocked(solids: Solids, point_3N: F32, way_3N: F32, part_N: Ints) -> npt.NDArray[np.bool_]:
    """Whether some casting part other than a point's own lies on its ray."""
    parts = np.flatnonzero(solids.casts_P)
    mean = way_3N.mean(axis=1)
    mean /= np.linalg.norm(mean)
    # Seen along the rays' mean direction, a ray must pass within the part's bounding rectangle.
    side = np.cross(mean, [0, 0, 1]).astype(np.float32)
    plane = np.stack([side, np.cross(side, mean)]).astype(np.float32)
    centres, points = plane @ solids.centre_P3[parts].T, plane @ point_3N
    reach = np.abs(solids.edges_P33[parts] @ plane.T).sum(axis=1).T + _SPREAD
    near = np.abs(points[0][:, None] - centres[0]) < reach[0]
    near &= np.abs(points[1][:, None] - centres[1]) < reach[1]
    ray, column = np.nonzero(near)
    part = parts[column].astype(np.int32)
    other = part != part_N[ray]
    ray, part = ray[other], part[other]
    t = meet_pairs(solids, part, point_3N[:, ray], way_3N[:, ray])
    blocked = np.zeros(point_3N.shape[1], np.bool_)
    blocked[ray[(t > 1e-3) & (t < 100)]] = True
    return blocked


def smoothed(value_HW: F32, part_HW: Ints) -> F32:
    """Values (H, W) averaged over 3x3 pixels, but only with pixels that see the same part."""
    total, count = value_HW * 4, np.full_like(value_HW, 4)
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        weight = np.float32(2 if dx * dy == 0 else 1)
        lower, upper = slice(dy, None), slice(None, -dy or None)
        right, left = (
            slice(max(dx, 0), dx if dx < 0 else None),
            slice(max(-dx, 0), -dx if dx > 0 else None),
        )
        one, other = (upper, left), (lower, right)
        same = (part_HW[one] == part_HW[other]) * weight
        for here, there in ((one, other), (other, one)):
            total[here] += value_HW[there] * same
            count[here] += same
    return np.asarray(total / count, np.float32)
