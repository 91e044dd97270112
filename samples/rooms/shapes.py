"""The solid parts that furniture is made of: boxes, balls and (tapered) tubes.

Lengths are metres; a piece of furniture stands on z = 0 around the origin of its own axes,
its back towards -y and its front towards +y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from samples.rooms.palette import Rgb

Vec = tuple[float, float, float]
Span = tuple[float, float]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class Kind(IntEnum):
    """Which unit solid a part is an affine image of."""

    BOX = 0
    BALL = 1
    TUBE = 2


class Label(IntEnum):
    """The classes of the ground truth."""

    WALL = 0
    FLOOR = 1
    CEILING = 2
    WINDOW = 3
    DOOR = 4
    PICTURE = 5
    TABLE = 6
    SEAT = 7
    BED = 8
    CABINET = 9
    LAMP = 10
    PLANT = 11


CLASSES = tuple(label.name.lower() for label in Label)


class Stuff(IntEnum):
    """Which procedural texture a surface wears."""

    PAINT = 0
    PLASTER = 1
    WOOD = 2
    PLANKS = 3
    CHEVRON = 4
    TILES = 5
    CARPET = 6
    FABRIC = 7
    STRIPES = 8
    RUG = 9
    ART = 10
    SKY = 11
    LEAF = 12
    SHADE = 13


@dataclass(frozen=True)
class Look:
    """The appearance of a part: two linear colours, a texture, its size, shine and light."""

    stuff: Stuff
    colour: Rgb
    second: Rgb = (0.8, 0.8, 0.8)
    scale: float = 1.0
    gloss: float = 0.0
    glow: float = 0.0


@dataclass(frozen=True)
class Part:
    """One solid: ``half`` are its half extents along the columns of ``turn``.

    A tube stands along its own z axis; ``taper`` is its top radius over its bottom radius.
    """

    kind: Kind
    label: Label
    look: Look
    centre: Vec
    half: Vec
    turn: F64
    taper: float = 1.0
    casts: bool = True


@dataclass(frozen=True)
class Piece:
    """A piece of furniture: its parts, its bounding size, and the free height underneath."""

    parts: list[Part]
    width: float
    depth: float
    height: float
    clearance: float = 0.0


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> F64:
    """Rotation (3, 3) by ``roll`` about y, then ``pitch`` about x, then ``yaw`` about z."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    cr, sr = math.cos(roll), math.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1.0]])
    about_x = np.array([[1.0, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1.0, 0], [-sr, 0, cr]])
    return np.asarray(about_z @ about_x @ about_y)


_UPRIGHT = rotation()


def box(label: Label, look: Look, x: Span, y: Span, z: Span, casts: bool = True) -> Part:
    """An upright box given by its extent along each axis."""
    spans = (x, y, z)
    mid_x, mid_y, mid_z = ((low + high) / 2 for low, high in spans)
    half_x, half_y, half_z = ((high - low) / 2 for low, high in spans)
    centre, half = (mid_x, mid_y, mid_z), (half_x, half_y, half_z)
    return Part(Kind.BOX, label, look, centre, half, _UPRIGHT, casts=casts)


def slab(label: Label, look: Look, centre: Vec, half: Vec, turn: F64) -> Part:
    """A box in any attitude."""
    return Part(Kind.BOX, label, look, centre, half, turn)


def ball(
    label: Label, look: Look, centre: Vec, half: Vec, turn: F64 = _UPRIGHT, casts: bool = True
) -> Part:
    """An ellipsoid with the given half axes."""
    return Part(Kind.BALL, label, look, centre, half, turn, casts=casts)


def tube(label: Label, look: Look, at: Span, radius: float, z: Span, taper: float = 1.0) -> Part:
    """An upright tube or cone frustum; ``radius`` is the bottom one."""
    wide = radius * max(1.0, taper)
    centre = (at[0], at[1], (z[0] + z[1]) / 2)
    half = (wide, wide, (z[1] - z[0]) / 2)
    return Part(Kind.TUBE, label, look, centre, half, _UPRIGHT, taper, casts=look.glow == 0)


def moved(part: Part, yaw: float, at: Vec) -> Part:
    """The part turned by ``yaw`` about the vertical through the origin, then shifted."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    x, y, z = part.centre
    centre = (cos * x - sin * y + at[0], sin * x + cos * y + at[1], z + at[2])
    about_z = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return replace(part, centre=centre, turn=about_z @ part.turn)


def all_moved(parts: list[Part], yaw: float, at: Vec) -> list[Part]:
    """Every part moved alike."""
    return [moved(part, yaw, at) for part in parts]
