"""Where things stand: footprints that do not overlap, walls with free stretches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from samples.rooms.furniture import Shop
from samples.rooms.shapes import Part, Piece, Span, all_moved


class Wall(IntEnum):
    """The walls; LEFT is x = 0, NEAR (behind the camera) is y = 0."""

    LEFT = 0
    RIGHT = 1
    NEAR = 2
    FAR = 3


_YAW = {Wall.LEFT: -math.pi / 2, Wall.RIGHT: math.pi / 2, Wall.NEAR: 0.0, Wall.FAR: math.pi}


@dataclass(frozen=True)
class Footprint:
    """A rectangle on the floor: centre, half sizes, rotation, height and clearance (metres)."""

    x: float
    y: float
    half_w: float
    half_d: float
    yaw: float
    height: float
    clearance: float = 0.0

    def corners(self, grow: float = 0.0) -> list[Span]:
        """Its four corners, pushed outwards by ``grow``."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        w, d = self.half_w + grow, self.half_d + grow
        return [
            (self.x + cos * a - sin * b, self.y + sin * a + cos * b)
            for a, b in ((w, d), (-w, d), (-w, -d), (w, -d))
        ]

    def distance(self, x: float, y: float) -> float:
        """How far a floor point is from the rectangle; 0 inside."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        a = abs(cos * (x - self.x) + sin * (y - self.y)) - self.half_w
        b = abs(-sin * (x - self.x) + cos * (y - self.y)) - self.half_d
        return math.hypot(max(a, 0.0), max(b, 0.0))


def overlap(one: Footprint, other: Footprint, gap: float) -> bool:
    """Whether two footprints come closer than ``gap`` (by separating axes, so a little early)."""
    grown, fixed = one.corners(gap), other.corners()
    for yaw in (one.yaw, one.yaw + math.pi / 2, other.yaw, other.yaw + math.pi / 2):
        cos, sin = math.cos(yaw), math.sin(yaw)
        a = [cos * x + sin * y for x, y in grown]
        b = [cos * x + sin * y for x, y in fixed]
        if max(a) <= min(b) or max(b) <= min(a):
            return False
    return True


@dataclass
class Layout:
    """A room being furnished; the camera's place is kept free from the start."""

    shop: Shop
    width: float
    depth: float
    height: float
    eye: Span
    has_rug: bool = False
    parts: list[Part] = field(default_factory=list)
    standing: list[Footprint] = field(default_factory=list)
    hung: list[tuple[Wall, Span, Span]] = field(default_factory=list)

    def length(self, wall: Wall) -> float:
        """The horizontal length of a wall."""
        return self.depth if wall in (Wall.LEFT, Wall.RIGHT) else self.width

    def spot(self, wall: Wall, along: float, out: float) -> Span:
        """The floor point ``along`` a wall and ``out`` from it."""
        return {
            Wall.LEFT: (out, along),
            Wall.RIGHT: (self.width - out, along),
            Wall.NEAR: (along, out),
            Wall.FAR: (along, self.depth - out),
        }[wall]

    def free(self, foot: Footprint, gap: float) -> bool:
        """Whether a footprint is inside the room and clear of others and of the camera."""
        inside = all(
            -1e-6 <= x <= self.width + 1e-6 and -1e-6 <= y <= self.depth + 1e-6
            for x, y in foot.corners()
        )
        near = 2.0 if foot.height > 1.1 else 1.35
        if not inside or foot.distance(*self.eye) < near:
            return False
        return not any(overlap(foot, other, gap) for other in self.standing)

    def wall_free(self, wall: Wall, along: Span, up: Span, gap: float = 0.06) -> bool:
        """Whether nothing hangs on, or stands before, this rectangle of a wall."""
        return not any(
            wall is other
            and along[0] < a[1] + gap
            and a[0] < along[1] + gap
            and up[0] < z[1] + gap
            and z[0] < up[1] + gap
            for other, a, z in self.hung
        )

    def add(self, piece: Piece, x: float, y: float, yaw: float, z: float = 0.0) -> None:
        """Puts a piece down without asking whether it fits and without taking up floor."""
        self.parts += all_moved(piece.parts, yaw, (x, y, z))

    def stand(self, piece: Piece, x: float, y: float, yaw: float, gap: float = 0.05) -> bool:
        """Puts a piece on the floor if it fits there."""
        half_w, half_d = piece.width / 2, piece.depth / 2
        foot = Footprint(x, y, half_w, half_d, yaw, piece.height, piece.clearance)
        if not self.free(foot, gap):
            return False
        self.standing.append(foot)
        self.add(piece, x, y, yaw)
        return True

    def against(self, piece: Piece, walls: list[Wall], gap: float = 0.08) -> Footprint | None:
        """Stands a piece with its back to one of the walls; None if no try fitted."""
        for _ in range(14):
            wall = walls[int(self.shop.rng.integers(len(walls)))]
            half = piece.width / 2 + 0.04
            low = half if wall is Wall.FAR else max(half, 1.3)
            if low >= self.length(wall) - half:
                continue
            along = self.shop.between(low, self.length(wall) - half)
            span = (along - piece.width / 2, along + piece.width / 2)
            if not self.wall_free(wall, span, (0.0, piece.height), 0.03):
                continue
            x, y = self.spot(wall, along, piece.depth / 2 + 0.02)
            if self.stand(piece, x, y, _YAW[wall], gap):
                self.hung.append((wall, span, (0.0, piece.height)))
                return self.standing[-1]
        return None

    def hang(self, piece: Piece, wall: Wall, along: float, z: float) -> bool:
        """Fixes a piece to a wall with its z = 0 at height z, if the wall is free there."""
        span = (along - piece.width / 2, along + piece.width / 2)
        inside = span[0] > 0.05 and span[1] < self.length(wall) - 0.05
        if not inside or not self.wall_free(wall, span, (z, z + piece.height)):
            return False
        x, y = self.spot(wall, along, 0.0)
        self.add(piece, x, y, _YAW[wall], z)
        self.hung.append((wall, span, (z, z + piece.height)))
        return True

    def reserve(self, wall: Wall, along: float, width: float, out: float) -> None:
        """Keeps the floor before a stretch of wall free (a door's swing, a long curtain)."""
        x, y = self.spot(wall, along, out / 2)
        self.standing.append(Footprint(x, y, width / 2, out / 2, _YAW[wall], 0.0, 9.0))
