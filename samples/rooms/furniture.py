"""Furniture that stands on the floor: beds, sofas, chairs, tables, cabinets, lamps, plants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from samples.rooms.palette import Palette, Rgb, mix, vary
from samples.rooms.shapes import (
    F64,
    Label,
    Look,
    Part,
    Piece,
    Span,
    Stuff,
    Vec,
    all_moved,
    ball,
    box,
    rotation,
    slab,
    tube,
)

_METAL: Rgb = (0.045, 0.043, 0.042)
_BRASS: Rgb = (0.55, 0.36, 0.14)
_LINEN: Rgb = (0.84, 0.81, 0.75)


@dataclass(frozen=True)
class Shop:
    """Where a room's furniture comes from: one generator and one palette for all of it."""

    rng: np.random.Generator
    palette: Palette

    def between(self, low: float, high: float) -> float:
        """A uniform draw."""
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        """True for this share of the draws."""
        return bool(self.rng.random() < share)

    def wood(self) -> Look:
        """Oiled wood in the room's tone, sometimes painted in its trim colour."""
        if self.chance(0.18):
            return Look(Stuff.PAINT, vary(self.rng, self.palette.trim), gloss=0.2)
        return Look(Stuff.WOOD, vary(self.rng, self.palette.wood, 0.1), gloss=0.25)

    def metal(self) -> Look:
        """Blackened steel or brass."""
        return Look(Stuff.PAINT, _BRASS if self.chance(0.4) else _METAL, gloss=0.5)

    def cloth(self, which: int | None = None) -> Look:
        """Upholstery in one of the palette's three fabric colours."""
        index = int(self.rng.integers(3)) if which is None else which
        return Look(Stuff.FABRIC, vary(self.rng, self.palette.fabrics[index]))

    def patterned(self) -> Look:
        """A two-coloured striped or checked textile."""
        one, other = self.rng.permutation(3)[:2]
        first, second = self.palette.fabrics[int(one)], self.palette.fabrics[int(other)]
        second = mix(second, _LINEN, 0.55)
        return Look(Stuff.STRIPES, vary(self.rng, first), second, self.between(0.05, 0.12))


def four_legs(
    shop: Shop, label: Label, look: Look, size: tuple[float, float], top: float, inset: float
) -> list[Part]:
    """Legs under the corners of a (width, depth) top, round and tapered or square."""
    x, y = size[0] / 2 - inset, size[1] / 2 - inset
    corners: list[Span] = [(x, y), (-x, y), (x, -y), (-x, -y)]
    thick = shop.between(0.018, 0.03)
    if shop.chance(0.6):
        return [tube(label, look, at, thick * 0.75, (0.0, top), 1.5) for at in corners]
    return [
        box(label, look, (a - thick, a + thick), (b - thick, b + thick), (0.0, top))
        for a, b in corners
    ]


def _plump(label: Label, look: Look, centre: Vec, half: Vec, turn: F64) -> list[Part]:
    """A filled cushion: square and flat towards its seams, round in its middle."""
    flat = (half[0], half[1] * 0.42, half[2])
    return [slab(label, look, centre, flat, turn), ball(label, look, centre, half, turn)]


def _pillows(look: Look, label: Label, width: float, y: float, z: float) -> list[Part]:
    """Two plump pillows leaning on a headboard."""
    half = (width * 0.21, 0.12, 0.21)
    lean = rotation(pitch=0.75)
    left = _plump(label, look, (-width * 0.235, y, z), half, lean)
    return left + _plump(label, look, (width * 0.235, y, z), half, lean)


def bed(shop: Shop) -> Piece:
    """A double or single bed with headboard, mattress, pillows, duvet and throw."""
    width, length = shop.between(1.15, 1.75), shop.between(1.95, 2.1)
    low, top = 0.2, shop.between(0.44, 0.56)
    frame, head = shop.wood(), shop.between(0.9, 1.25)
    w, back, front = width / 2, -length / 2, length / 2
    linen = Look(Stuff.FABRIC, vary(shop.rng, _LINEN, 0.03))
    headboard = frame if shop.chance(0.5) else shop.cloth()
    duvet = shop.cloth() if shop.chance(0.6) else shop.patterned()
    label = Label.BED
    parts = [
        box(label, headboard, (-w - 0.04, w + 0.04), (back, back + 0.08), (0.0, head)),
        box(label, frame, (-w - 0.02, w + 0.02), (back + 0.08, front), (low - 0.1, low + 0.12)),
        box(label, linen, (-w, w), (back + 0.08, front - 0.02), (low + 0.12, top)),
    ]
    parts += four_legs(shop, label, frame, (width, length), low - 0.1, 0.1)
    fold, edge = back + shop.between(0.62, 0.8), 0.025
    sides = (-w - edge, w + edge)
    parts.append(box(label, duvet, sides, (fold, front + edge), (low + 0.06, top + 0.05)))
    parts.append(box(label, linen, sides, (fold - 0.16, fold), (low + 0.1, top + 0.055)))
    parts += _pillows(linen, label, width, back + 0.3, top + 0.15)
    if shop.chance(0.8):
        accent = shop.patterned() if duvet.stuff is Stuff.FABRIC else shop.cloth()
        start = front - shop.between(0.55, 0.8)
        band = (-w - edge - 0.01, w + edge + 0.01)
        parts.append(box(label, accent, band, (start, start + 0.42), (low + 0.02, top + 0.065)))
        cushion = (shop.between(0.18, 0.24), 0.085, 0.18)
        lean = rotation(pitch=0.65)
        parts += _plump(label, accent, (0.0, back + 0.5, top + 0.16), cushion, lean)
    return Piece(parts, width + 0.1, length + 0.06, head, low - 0.1)


def _cushions(shop: Shop, seats: int, pitch: float, y: float, z: float) -> list[Part]:
    """A few loose cushions leaning on the back of a sofa."""
    parts = []
    for index in range(seats):
        if shop.chance(0.7):
            look = shop.cloth(1 + int(shop.rng.integers(2)))
            look = shop.patterned() if shop.chance(0.4) else look
            x = (index - (seats - 1) / 2) * pitch + shop.between(-0.08, 0.08)
            lean = rotation(yaw=shop.between(-0.3, 0.3), pitch=0.35)
            parts += _plump(Label.SEAT, look, (x, y, z), (0.19, 0.085, 0.18), lean)
    return parts


def sofa(shop: Shop, seats: int) -> Piece:
    """A sofa or, with one seat, an armchair: plinth, seat and back cushions, arms, feet."""
    pitch, arm = shop.between(0.6, 0.72), shop.between(0.12, 0.2)
    inner = seats * pitch
    width, depth = inner + 2 * arm, shop.between(0.82, 0.95)
    seat, back, arm_top = 0.43, shop.between(0.76, 0.88), shop.between(0.55, 0.65)
    cloth, feet, label = shop.cloth(0 if seats > 1 else None), shop.wood(), Label.SEAT
    w, rear, front = width / 2, -depth / 2, depth / 2
    parts = [
        box(label, cloth, (-inner / 2, inner / 2), (rear + 0.02, front - 0.03), (0.12, 0.28)),
        box(label, cloth, (-inner / 2, inner / 2), (rear, rear + 0.16), (0.12, back)),
        box(label, cloth, (-w, -inner / 2), (rear, front), (0.12, arm_top)),
        box(label, cloth, (inner / 2, w), (rear, front), (0.12, arm_top)),
    ]
    for index in range(seats):
        x = (index - (seats - 1) / 2) * pitch
        sides = (x - pitch / 2 + 0.008, x + pitch / 2 - 0.008)
        parts.append(box(label, cloth, sides, (rear + 0.16, front), (0.285, seat)))
        upright = rotation(pitch=0.16)
        size = (pitch / 2 - 0.012, 0.075, 0.2)
        parts.append(slab(label, cloth, (x, rear + 0.25, seat + 0.2), size, upright))
    parts += four_legs(shop, label, feet, (width, depth), 0.12, 0.07)
    parts += _cushions(shop, seats, pitch, rear + 0.4, seat + 0.19)
    return Piece(parts, width, depth, back + 0.06, 0.12)


def chair(shop: Shop, wood: Look, cloth: Look) -> Piece:
    """A dining chair with a padded seat and a slatted or solid, slightly reclined back."""
    width, depth, seat = 0.45, 0.46, 0.46
    label, w, rear = Label.SEAT, 0.225, -0.23
    parts = four_legs(shop, label, wood, (width, depth), seat - 0.06, 0.035)
    parts.append(box(label, wood, (-w, w), (rear, -rear), (seat - 0.06, seat - 0.025)))
    pad = (rear + 0.03, -rear - 0.01)
    parts.append(box(label, cloth, (-w + 0.015, w - 0.015), pad, (seat - 0.025, seat + 0.02)))
    tilt = rotation(pitch=0.12)
    for x in (-w + 0.022, w - 0.022):
        post = (0.018, 0.016, 0.24)
        parts.append(slab(label, wood, (x, rear - 0.005, seat + 0.2), post, tilt))
    rest = (w - 0.01, 0.018, 0.13 if shop.chance(0.5) else 0.07)
    parts.append(slab(label, cloth, (0.0, rear - 0.015, seat + 0.33), rest, tilt))
    return Piece(parts, width, depth + 0.1, seat + 0.46, seat - 0.06)


def table(shop: Shop, width: float, depth: float, height: float) -> Piece:
    """A table on four legs, or a round one on a single stem if it is nearly square."""
    wood, label = shop.wood(), Label.TABLE
    legs = wood if shop.chance(0.6) else shop.metal()
    if abs(width - depth) < 0.12:
        radius = min(width, depth) / 2
        parts = [
            tube(label, wood, (0.0, 0.0), radius, (height - 0.035, height)),
            tube(label, legs, (0.0, 0.0), 0.045, (0.02, height - 0.035)),
            tube(label, legs, (0.0, 0.0), radius * 0.55, (0.0, 0.03), 0.85),
        ]
        return Piece(parts, radius * 2, radius * 2, height, height * 0.8)
    w, d = width / 2, depth / 2
    parts = [box(label, wood, (-w, w), (-d, d), (height - 0.04, height))]
    rim = (height - 0.1, height - 0.04)
    parts.append(box(label, legs, (-w + 0.06, w - 0.06), (-d + 0.06, d - 0.06), rim))
    parts += four_legs(shop, label, legs, (width, depth), height - 0.04, 0.06)
    return Piece(parts, width, depth, height, height - 0.1)


def bowl(shop: Shop, z: float) -> list[Part]:
    """A vase or a fruit bowl to stand on a table top at height z."""
    look = Look(Stuff.PAINT, vary(shop.rng, shop.palette.third, 0.15), gloss=0.45)
    if shop.chance(0.5):
        parts = [tube(Label.TABLE, look, (0.0, 0.0), 0.07, (z, z + 0.07), 1.9)]
        for angle in (0.4, 2.5, 4.6):
            fruit = Look(Stuff.PAINT, vary(shop.rng, shop.palette.second, 0.2), gloss=0.3)
            at = (0.06 * math.cos(angle), 0.06 * math.sin(angle), z + 0.085)
            parts.append(ball(Label.TABLE, fruit, at, (0.042, 0.042, 0.042)))
        return parts
    parts = [tube(Label.TABLE, look, (0.0, 0.0), 0.045, (z, z + 0.2), 1.3)]
    return parts + all_moved(_leaves(shop, 8, 0.16, 0.14), 0.0, (0.0, 0.0, z + 0.2))


def _books(shop: Shop, x: Span, y: Span, z: Span) -> list[Part]:
    """A row of books that leaves part of the shelf free."""
    parts: list[Part] = []
    at = x[0] + 0.02
    end = x[1] - shop.between(0.02, 0.35) * (x[1] - x[0])
    while True:
        thick = shop.between(0.025, 0.06)
        if at + thick > end:
            return parts
        base = shop.palette.fabrics[int(shop.rng.integers(3))]
        look = Look(Stuff.PAINT, vary(shop.rng, mix(base, _LINEN, shop.between(0, 0.6)), 0.15))
        tall = z[0] + (z[1] - z[0]) * shop.between(0.6, 0.92)
        deep = y[1] - shop.between(0.02, 0.06)
        sides = (at, at + thick - 0.003)
        parts.append(box(Label.CABINET, look, sides, (y[0], deep), (z[0], tall), casts=False))
        at += thick


def bookcase(shop: Shop) -> Piece:
    """An open bookcase: sides, back, shelves and rows of books."""
    width, depth, height = shop.between(0.8, 1.3), 0.32, shop.between(1.5, 2.05)
    wood, label = shop.wood(), Label.CABINET
    w, rear, front = width / 2, -depth / 2, depth / 2
    inner = Look(Stuff.PAINT, mix(wood.colour, shop.palette.wall, 0.35))
    parts = [
        box(label, wood, (-w, -w + 0.03), (rear, front), (0.0, height)),
        box(label, wood, (w - 0.03, w), (rear, front), (0.0, height)),
        box(label, inner, (-w + 0.03, w - 0.03), (rear, rear + 0.02), (0.05, height)),
    ]
    levels = np.linspace(0.06, height - 0.03, 5 if height < 1.75 else 6)
    for low, high in pairwise(levels):
        board = (float(low), float(low) + 0.03)
        parts.append(box(label, wood, (-w + 0.03, w - 0.03), (rear, front), board))
        room = (board[1], float(high))
        parts += _books(shop, (-w + 0.03, w - 0.03), (rear + 0.03, front), room)
    top = (height - 0.03, height)
    parts.append(box(label, wood, (-w + 0.03, w - 0.03), (rear, front), top))
    return Piece(parts, width, depth, height)


def cabinet(shop: Shop, width: float, height: float, rows: int, columns: int) -> Piece:
    """A chest, sideboard or wardrobe: a carcass on feet with a grid of fronts and knobs."""
    depth = shop.between(0.42, 0.5) if height < 1.2 else shop.between(0.52, 0.6)
    wood, knob, label = shop.wood(), shop.metal(), Label.CABINET
    front_look = wood
    if shop.chance(0.45):
        tint = mix(shop.palette.fabrics[int(shop.rng.integers(3))], _LINEN, 0.35)
        front_look = Look(Stuff.PAINT, vary(shop.rng, tint), gloss=0.15)
    w, rear, front, foot = width / 2, -depth / 2, depth / 2 - 0.03, 0.1
    parts = [box(label, wood, (-w, w), (rear, front), (foot, height))]
    parts += four_legs(shop, label, wood, (width, depth - 0.03), foot, 0.06)
    wide, tall = width / columns, (height - foot - 0.04) / rows
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        x, z = -w + column * wide, foot + 0.02 + row * tall
        gap = 0.012
        sides, levels = (x + gap, x + wide - gap), (z + gap / 2, z + tall - gap / 2)
        parts.append(box(label, front_look, sides, (front, front + 0.02), levels))
        hinge = 0.82 if column % 2 == 0 else 0.18
        at = x + wide * (0.5 if rows > 1 else hinge)
        centre = (at, front + 0.03, z + tall / 2)
        parts.append(ball(label, knob, centre, (0.016, 0.016, 0.016), casts=False))
    return Piece(parts, width, depth, height, foot)


def _shade(shop: Shop) -> Look:
    """A lit lampshade of warm cloth."""
    colour = mix((1.0, 0.78, 0.5), shop.palette.second, 0.12)
    return Look(Stuff.SHADE, colour, glow=shop.between(1.1, 1.6))


def lamp(shop: Shop, height: float) -> Piece:
    """A standing lamp (over a metre) or a table lamp: base, pole and tapered shade."""
    metal, label = shop.metal(), Label.LAMP
    radius = 0.2 if height > 1 else 0.145
    tall = radius * shop.between(1.25, 1.6)
    parts = [tube(label, _shade(shop), (0.0, 0.0), radius, (height - tall, height), 0.68)]
    if height > 1:
        parts.append(tube(label, metal, (0.0, 0.0), 0.15, (0.0, 0.025)))
        parts.append(tube(label, metal, (0.0, 0.0), 0.014, (0.025, height - tall)))
        return Piece(parts, radius * 2, radius * 2, height, 0.3)
    look = Look(Stuff.PAINT, vary(shop.rng, shop.palette.third, 0.1), gloss=0.4)
    body = (height - tall) * 0.36
    parts.append(ball(label, look, (0.0, 0.0, body), (0.085, 0.085, body)))
    parts.append(tube(label, metal, (0.0, 0.0), 0.012, (body, height - tall)))
    return Piece(parts, radius * 2, radius * 2, height)


def pendant(shop: Shop, drop: float) -> Piece:
    """A ceiling lamp; its piece hangs down from z = 0."""
    radius = shop.between(0.2, 0.28)
    tall = shop.between(0.18, 0.26)
    parts = [
        tube(Label.LAMP, shop.metal(), (0.0, 0.0), 0.008, (-drop, 0.0)),
        tube(Label.LAMP, shop.metal(), (0.0, 0.0), 0.06, (-0.03, 0.0)),
        tube(Label.LAMP, _shade(shop), (0.0, 0.0), radius, (-drop - tall, -drop), 0.5),
    ]
    return Piece(parts, radius * 2, radius * 2, drop + tall)


def _leaves(shop: Shop, count: int, length: float, spread: float) -> list[Part]:
    """Leaves that fan out from the origin, the outer ones bent lower."""
    parts = []
    hue = vary(shop.rng, (0.07, 0.2, 0.055), 0.2)
    for index in range(count):
        yaw = index * 2.399963 + shop.between(-0.2, 0.2)
        rise = math.radians(85 - 62 * (index + 0.5) / count + shop.between(-6, 6))
        reach = length * shop.between(0.8, 1.1)
        look = Look(Stuff.LEAF, vary(shop.rng, hue, 0.16), gloss=0.25)
        out = math.cos(rise) * (reach + spread * 0.4)
        centre = (-math.sin(yaw) * out, math.cos(yaw) * out, math.sin(rise) * reach)
        half = (reach * 0.3, reach, reach * 0.05)
        parts.append(ball(Label.PLANT, look, centre, half, rotation(yaw, pitch=rise)))
    return parts


def plant(shop: Shop, height: float) -> Piece:
    """A potted plant: a tapered pot, soil, a stem when tall, and a crown of leaves."""
    tint = mix(shop.palette.fabrics[int(shop.rng.integers(3))], _LINEN, 0.3)
    pot = Look(Stuff.PAINT, vary(shop.rng, tint), gloss=0.3)
    radius = 0.09 + 0.06 * height
    rim = 0.12 + 0.18 * height
    soil = Look(Stuff.PAINT, (0.05, 0.035, 0.025))
    label, crown = Label.PLANT, rim + (height - rim) * 0.42
    parts = [
        tube(label, pot, (0.0, 0.0), radius, (0.0, rim), 1.3),
        tube(label, soil, (0.0, 0.0), radius * 1.18, (rim - 0.01, rim + 0.004)),
        tube(label, Look(Stuff.PAINT, (0.12, 0.09, 0.04)), (0.0, 0.0), 0.014, (rim, crown)),
    ]
    length = (height - crown) * 0.6
    parts += all_moved(_leaves(shop, 17, length, 0.12), 0.0, (0.0, 0.0, crown - 0.05))
    parts += all_moved(_leaves(shop, 7, length * 0.75, 0.1), 1.0, (0.0, 0.0, rim))
    return Piece(parts, 0.62 * height + 0.1, 0.62 * height + 0.1, height)
