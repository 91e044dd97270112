"""Ray casting against a room's solids: nearest hits from the camera, hits between points.

Every part is an affine image of a unit solid, so a ray is taken into the part's own axes and
met there; distances along the ray survive the change of axes. Shape suffixes: H, W image;
N rays or points; P parts; a leading 3 is x, y, z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samples.rooms.scene import Camera, Scene
from samples.rooms.shapes import F32, Kind, Label

Ints = npt.NDArray[np.int32]

_FLAT = (Label.WINDOW, Label.DOOR, Label.PICTURE)
_NEAR = 0.05
_FAR = np.float32(1e9)
_TINY = np.float32(1e-9)


@dataclass(frozen=True)
class Solids:
    """The parts of a scene as arrays; ``inverse_P33`` takes world offsets to unit-solid axes; the
    rows of ``edges_P33`` are a part's half extents as world vectors.

    A tube's unit radius at height z is ``mean + slope * z``. All ``casts`` parts shadow the
    sun; only the ``bulky`` ones, which do not hang on a wall, are worth a soft shadow.
    """

    kind_P: Ints
    centre_P3: F32
    half_P3: F32
    inverse_P33: F32
    edges_P33: F32
    mean_P: F32
    slope_P: F32
    radius_P: F32
    casts_P: npt.NDArray[np.bool_]
    bulky_P: npt.NDArray[np.bool_]
    size_3: F32

    @property
    def count(self) -> int:
        """How many parts there are; the six faces of the shell are numbered from here."""
        return len(self.kind_P)


@dataclass(frozen=True)
class Hits:
    """What the camera sees: z-depth in metres, part number, and unnormalised rays (z = 1)."""

    depth_HW: F32
    part_HW: Ints
    ray_3HW: F32


def solids_of(scene: Scene) -> Solids:
    """The arrays of a scene's parts."""
    parts = scene.parts
    half = np.array([part.half for part in parts], np.float32)
    turn = np.array([part.turn for part in parts], np.float32)
    taper = np.array([part.taper for part in parts], np.float32)
    top, bottom = taper / np.maximum(taper, 1), 1 / np.maximum(taper, 1)
    kind = np.array([part.kind for part in parts], np.int32)
    boxed = np.linalg.norm(half, axis=1)
    casts = np.array([part.casts for part in parts])
    flat = np.array([part.label in _FLAT for part in parts]) | (half[:, 2] < 0.01)
    return Solids(
        kind,
        np.array([part.centre for part in parts], np.float32),
        half,
        np.ascontiguousarray(turn.transpose(0, 2, 1) / half[:, :, None]),
        np.ascontiguousarray(turn.transpose(0, 2, 1) * half[:, :, None]),
        np.asarray((top + bottom) / 2, np.float32),
        np.asarray((top - bottom) / 2, np.float32),
        np.where(kind == Kind.BALL, half.max(axis=1), boxed).astype(np.float32),
        casts,
        casts & ~flat & (boxed > 0.05),
        np.array(scene.size, np.float32),
    )


def _meet_box(o: F32, d: F32) -> F32:
    """Distance to the unit box along rays o + t d (3, ...), or far; rays start outside."""
    inverse = 1 / (d + _TINY)
    middle = -o * inverse
    reach = np.abs(inverse)
    near = (middle - reach).max(axis=0)
    far = (middle + reach).min(axis=0)
    return np.where((near <= far) & (near > 0), near, _FAR)


def _meet_ball(o: F32, d: F32) -> F32:
    """Distance to the unit ball."""
    a = (d * d).sum(axis=0)
    b = (o * d).sum(axis=0)
    c = (o * o).sum(axis=0) - 1
    root = b * b - a * c
    near = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (near > 0), near, _FAR)


def _meet_tube(o: F32, d: F32, mean: F32, slope: F32) -> F32:
    """Distance to the unit tube or cone frustum, with its two caps."""
    dz = d[2] + _TINY
    wide = mean + slope * o[2]
    narrow = slope * dz
    a = d[0] * d[0] + d[1] * d[1] - narrow * narrow + _TINY
    b = o[0] * d[0] + o[1] * d[1] - wide * narrow
    c = o[0] * o[0] + o[1] * o[1] - wide * wide
    root = b * b - a * c
    spread = np.sqrt(np.maximum(root, 0))
    best = np.full(root.shape, _FAR, np.float32)
    for sign in (-1, 1):
        t = (-b + sign * spread) / a
        fits = (root > 0) & (t > 0) & (np.abs(o[2] + t * dz) <= 1)
        best = np.where(fits & (t < best), t, best)
    end = np.sign(o[2])
    t = (end - o[2]) / dz
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    rim = mean + slope * end
    fits = (t > 0) & (np.abs(o[2]) > 1) & (x * x + y * y <= rim * rim)
    return np.where(fits & (t < best), t, best)


def meet(solids: Solids, part: int, o: F32, d: F32) -> F32:
    """Distance along rays given in the part's own axes, o (3, ...) and d (3, ...)."""
    kind = solids.kind_P[part]
    if kind == Kind.BOX:
        return _meet_box(o, d)
    if kind == Kind.BALL:
        return _meet_ball(o, d)
    return _meet_tube(o, d, solids.mean_P[part], solids.slope_P[part])


def meet_pairs(solids: Solids, part_N: Ints, o_3N: F32, d_3N: F32) -> F32:
    """Distances (N,) of world rays, each against its own part."""
    inverse = solids.inverse_P33[part_N]
    offset = o_3N - solids.centre_P3[part_N].T
    o = np.einsum("nij,jn->in", inverse, offset)
    d = np.einsum("nij,jn->in", inverse, d_3N)
    best = np.empty(len(part_N), np.float32)
    kind = solids.kind_P[part_N]
    for which in Kind:
        at = np.flatnonzero(kind == which)
        if which is Kind.BOX:
            best[at] = _meet_box(o[:, at], d[:, at])
        elif which is Kind.BALL:
            best[at] = _meet_ball(o[:, at], d[:, at])
        else:
            shape = solids.mean_P[part_N[at]], solids.slope_P[part_N[at]]
            best[at] = _meet_tube(o[:, at], d[:, at], *shape)
    return best


def _shell_hits(solids: Solids, eye_3: F32, ray_3HW: F32) -> tuple[F32, Ints]:
    """Distance and face number of the room's own six faces, seen from inside."""
    d = ray_3HW + _TINY
    eye = eye_3[:, None, None]
    t = (np.where(d > 0, solids.size_3[:, None, None], 0) - eye) / d
    axis = t.argmin(axis=0)
    upper = np.take_along_axis(d, axis[None], 0)[0] > 0
    return t.min(axis=0), (solids.count + 2 * axis + upper).astype(np.int32)


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


def _clipped(corners_C83: F32) -> F32:
    """Corners of boxes in camera axes, those behind the near plane pulled up to it.

    Each is pulled along the lines to all the corners in front, and keeps, for x and y, the
    extremes reached: what results bounds the visible part of the box, which is all it is for.
    """
    z = corners_C83[..., 2]
    front = z > _NEAR
    step = (_NEAR - z[:, :, None]) / np.where(
        z[:, None] == z[:, :, None], 1, z[:, None] - z[:, :, None]
    )
    lines = corners_C83[:, None] - corners_C83[:, :, None]
    met = corners_C83[:, :, None] + step[..., None] * lines
    crossing = (~front[:, :, None] & front[:, None])[..., None]
    low = np.where(crossing, met, np.inf).min(axis=(1, 2))
    high = np.where(crossing, met, -np.inf).max(axis=(1, 2))
    # Alternating extremes: any two corners behind then span the whole cut in both axes.
    pulled = np.where(np.arange(8)[None, :, None] % 2 == 0, low[:, None], high[:, None])
    return np.where(front[..., None], corners_C83, pulled)


def _bounds(
    solids: Solids, camera: Camera, focal: float, size_hw: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Pixel rectangles (P, 4) as x0, y0, x1, y1 that contain the parts; empty if unseen."""
    axes = camera.axes()
    corners = solids.centre_P3[:, None] + _CORNERS @ solids.edges_P33
    seen = (corners - np.array(camera.position, np.float32)) @ axes.T
    behind = seen[..., 2].max(axis=1) <= _NEAR
    cut = np.flatnonzero((seen[..., 2].min(axis=1) <= _NEAR) & ~behind)
    seen[cut] = _clipped(seen[cut])
    z = np.maximum(seen[..., 2], _NEAR)
    middle = np.array([size_hw[1] / 2, size_hw[0] / 2])
    xy = seen[..., :2] / z[..., None] * focal + middle
    low, high = np.floor(xy.min(axis=1) - 1), np.ceil(xy.max(axis=1) + 1)
    high[behind] = -1
    limit = np.array([size_hw[1], size_hw[0]])
    rect = np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=1)
    return rect.astype(np.int64)


def rays_of(camera: Camera, size_hw: tuple[int, int]) -> tuple[F32, F32, F32, float]:
    """Ray parts: forward (3,), per column (3, W), per row (3, H), and the focal length in px."""
    height, width = size_hw
    focal = float(width / 2 / np.tan(camera.hfov / 2))
    right, down, forward = camera.axes()
    u = ((np.arange(width) + 0.5 - width / 2) / focal).astype(np.float32)
    v = ((np.arange(height) + 0.5 - height / 2) / focal).astype(np.float32)
    return forward, right[:, None] * u, down[:, None] * v, focal


def cast(solids: Solids, camera: Camera, size_hw: tuple[int, int]) -> Hits:
    """The nearest surface at every pixel centre."""
    forward, right_3W, down_3H, focal = rays_of(camera, size_hw)
    ray_3HW = (forward[:, None] + down_3H)[:, :, None] + right_3W[:, None, :]
    eye = np.array(camera.position, np.float32)
    depth, part = _shell_hits(solids, eye, ray_3HW)
    rects = _bounds(solids, camera, focal, size_hw)
    for index in np.flatnonzero((rects[:, 2] > rects[:, 0]) & (rects[:, 3] > rects[:, 1])):
        x0, y0, x1, y1 = rects[index]
        inverse = solids.inverse_P33[index]
        column = inverse @ (forward[:, None] + right_3W[:, x0:x1])
        d = column[:, None, :] + (inverse @ down_3H[:, y0:y1])[:, :, None]
        o = (inverse @ (eye - solids.centre_P3[index]))[:, None, None]
        t = meet(solids, int(index), o, d)
        window = depth[y0:y1, x0:x1]
        nearer = t < window
        np.copyto(window, t, where=nearer)
        np.copyto(part[y0:y1, x0:x1], np.int32(index), where=nearer)
    return Hits(depth, part, ray_3HW)


@dataclass(frozen=True)
class Surface:
    """Points on parts: outward normal, position in part axes (metres) and in the unit solid."""

    normal_3N: F32
    local_3N: F32
    unit_3N: F32
    axis_N: Ints


def surface_at(solids: Solids, part_N: Ints, point_3N: F32) -> Surface:
    """Exact normals and part coordinates of points known to lie on the given parts."""
    normal, local, unit = (np.zeros_like(point_3N) for _ in range(3))
    axis = np.zeros(len(part_N), np.int32)
    shell = np.flatnonzero(part_N >= solids.count)
    face = part_N[shell] - solids.count
    axis[shell] = face // 2
    normal[face // 2, shell] = 1 - 2 * (face % 2)
    local[:, shell] = point_3N[:, shell]
    unit[:, shell] = point_3N[:, shell] / solids.size_3[:, None] * 2 - 1
    at = np.flatnonzero(part_N < solids.count)
    which = part_N[at]
    inverse = solids.inverse_P33[which]
    p = np.einsum("nij,jn->in", inverse, point_3N[:, at] - solids.centre_P3[which].T)
    own, axis[at] = _unit_normals(solids, which, p)
    world = np.einsum("nij,in->jn", inverse, own)
    normal[:, at] = world / np.linalg.norm(world, axis=0)
    local[:, at] = p * solids.half_P3[which].T
    unit[:, at] = p
    return Surface(normal, local, unit, axis)


def _unit_normals(solids: Solids, part_N: Ints, p_3N: F32) -> tuple[F32, Ints]:
    """Normals of the unit solids at p (not of unit length), and the axis each is nearest to."""
    kind = solids.kind_P[part_N]
    axis = np.abs(p_3N).argmax(axis=0).astype(np.int32)
    normal = p_3N.copy()
    flat = np.flatnonzero(kind == Kind.BOX)
    normal[:, flat] = 0
    normal[axis[flat], flat] = np.sign(p_3N[axis[flat], flat])
    tubes = np.flatnonzero(kind == Kind.TUBE)
    x, y, z = p_3N[:, tubes]
    slope = solids.slope_P[part_N[tubes]]
    wide = solids.mean_P[part_N[tubes]] + slope * z
    # The side and the caps are told apart by which of the two surfaces the point is closer to.
    capped = 1 - np.abs(z) < np.abs(wide - np.hypot(x, y))
    normal[2, tubes] = np.where(capped, np.sign(z), -slope * wide)
    normal[:2, tubes] *= ~capped
    axis[tubes] = np.where(capped, 2, 0)
    return normal, axis
