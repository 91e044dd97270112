"""What is fixed to walls or lies on the floor: windows, doors, pictures, skirting, rugs."""

from __future__ import annotations

from dataclasses import replace

from samples.rooms.furniture import Shop
from samples.rooms.palette import Rgb, mix, vary
from samples.rooms.shapes import Kind, Label, Look, Part, Piece, Span, Stuff, box, rotation, tube

_WHITE: Rgb = (0.86, 0.85, 0.82)


def _frame(
    label: Label, look: Look, x: Span, z: Span, thick: float, deep: tuple[float, float]
) -> list[Part]:
    """Four bars around the opening (x, z), outside of it."""
    left, right, low, high = x[0], x[1], z[0], z[1]
    return [
        box(label, look, (left - thick, left), deep, (low, high)),
        box(label, look, (right, right + thick), deep, (low, high)),
        box(label, look, (left - thick, right + thick), deep, (high, high + thick)),
        box(label, look, (left - thick, right + thick), deep, (low - thick, low)),
    ]


def _curtain(look: Look, x: Span, z: Span) -> list[Part]:
    """Hanging folds: a row of overlapping upright tubes of two thicknesses."""
    count = max(3, round((x[1] - x[0]) / 0.055))
    pitch = (x[1] - x[0]) / count
    parts = []
    for index in range(count):
        radius = 0.042 if index % 2 == 0 else 0.032
        at = (x[0] + (index + 0.5) * pitch, 0.1 - 0.012 * (index % 2))
        parts.append(tube(Label.WINDOW, look, at, radius, z))
    return parts


def window(shop: Shop, width: float, height: float, curtains: bool, floor: float) -> Piece:
    """A window of the given glass size, z = 0 at the glass's lower edge.

    ``floor`` is how far the curtains hang below that edge.
    """
    trim = Look(Stuff.PAINT, shop.palette.trim, gloss=0.2)
    w = width / 2
    label = Label.WINDOW
    sky = Look(Stuff.SKY, (1.0, 1.0, 1.0), glow=1.0)
    parts = [box(label, sky, (-w, w), (0.0, 0.01), (0.0, height), casts=False)]
    parts += _frame(label, trim, (-w, w), (0.0, height), 0.06, (0.0, 0.045))
    columns = 2 if width < 1.5 else 3
    for index in range(1, columns):
        x = -w + width * index / columns
        parts.append(box(label, trim, (x - 0.02, x + 0.02), (0.0, 0.035), (0.0, height)))
    bar = height * (0.5 if shop.chance(0.5) else 0.68)
    parts.append(box(label, trim, (-w, w), (0.0, 0.03), (bar - 0.016, bar + 0.016)))
    parts.append(box(label, trim, (-w - 0.09, w + 0.09), (0.0, 0.085), (-0.09, -0.06)))
    reach = w + 0.09
    if curtains:
        tint = shop.palette.fabrics[int(shop.rng.integers(3))]
        look = Look(Stuff.FABRIC, vary(shop.rng, mix(tint, _WHITE, shop.between(0.1, 0.8))))
        fall, drawn = (-floor, height + 0.13), shop.between(0.26, 0.4)
        inside = shop.between(0.02, 0.12)
        parts += _curtain(look, (-w - drawn + inside, -w + inside), fall)
        parts += _curtain(look, (w - inside, w + drawn - inside), fall)
        reach = w + drawn + 0.1
        half, at = (0.014, 0.014, reach), (0.0, 0.1, height + 0.15)
        along = rotation(roll=1.5707963)
        parts.append(Part(Kind.TUBE, label, shop.metal(), at, half, along))
    return Piece(parts, reach * 2, 0.16, height + 0.16)


def door(shop: Shop) -> Piece:
    """A panelled door in its casing, with a knob."""
    width, height = shop.between(0.8, 0.95), shop.between(1.98, 2.1)
    tint = shop.palette.trim if shop.chance(0.45) else mix(shop.palette.wood, _WHITE, 0.1)
    look = Look(Stuff.PAINT, vary(shop.rng, tint), gloss=0.2)
    if shop.chance(0.35):
        look = Look(Stuff.PAINT, vary(shop.rng, mix(shop.palette.accent, _WHITE, 0.1)), gloss=0.2)
    trim = Look(Stuff.PAINT, shop.palette.trim, gloss=0.2)
    # The panels are a shade darker, or a white door far away would be a blank sheet.
    inset = replace(look, colour=mix(look.colour, (0.0, 0.0, 0.0), 0.14))
    w, label = width / 2, Label.DOOR
    parts = [box(label, look, (-w, w), (0.0, 0.03), (0.0, height))]
    parts += _frame(label, trim, (-w, w), (0.0, height), 0.08, (0.0, 0.05))[:3]
    for low, high in ((0.15, 0.86), (1.02, height - 0.14)):
        for left in (-w + 0.1, 0.04):
            span = (left, left + w - 0.14)
            parts.append(box(label, inset, span, (0.03, 0.042), (low, high), casts=False))
    knob = (w - 0.06, 0.065)
    parts.append(tube(label, shop.metal(), knob, 0.03, (0.95, 1.01)))
    return Piece(parts, width + 0.16, 0.08, height + 0.08)


def picture(shop: Shop, width: float, height: float) -> Piece:
    """A framed picture, z = 0 at its lower edge."""
    wood = shop.wood() if shop.chance(0.6) else shop.metal()
    one, other = (shop.palette.fabrics[int(i)] for i in shop.rng.permutation(3)[:2])
    art = Look(Stuff.ART, vary(shop.rng, one, 0.1), vary(shop.rng, other, 0.1))
    w, thick, label = width / 2, 0.025, Label.PICTURE
    parts = [box(label, art, (-w, w), (0.0, 0.015), (0.0, height), casts=False)]
    parts += _frame(label, wood, (-w, w), (0.0, height), thick, (0.0, 0.035))
    return Piece(parts, width + 2 * thick, 0.035, height + thick)


def rug(shop: Shop, width: float, depth: float) -> Piece:
    """A patterned rug, rectangular or round; it counts as floor."""
    one, other = (shop.palette.fabrics[int(i)] for i in shop.rng.permutation(3)[:2])
    pale = mix(other, _WHITE, shop.between(0.45, 0.85))
    colours = (one, pale) if shop.chance(0.5) else (pale, one)
    look = Look(Stuff.RUG, vary(shop.rng, colours[0]), vary(shop.rng, colours[1]))
    if shop.chance(0.25):
        radius = min(width, depth) / 2 * 1.1
        part = tube(Label.FLOOR, look, (0.0, 0.0), radius, (0.0, 0.015))
        return Piece([part], radius * 2, radius * 2, 0.015)
    w, d = width / 2, depth / 2
    return Piece([box(Label.FLOOR, look, (-w, w), (-d, d), (0.0, 0.015))], width, depth, 0.015)


def skirting(shop: Shop, width: float, depth: float) -> list[Part]:
    """Skirting boards along the walls in view of a (width, depth) room."""
    look = Look(Stuff.PAINT, shop.palette.trim, gloss=0.2)
    tall, thick = (0.0, shop.between(0.07, 0.12)), 0.015
    label = Label.WALL
    return [
        box(label, look, (0.0, thick), (0.0, depth), tall, casts=False),
        box(label, look, (width - thick, width), (0.0, depth), tall, casts=False),
        box(label, look, (0.0, width), (depth - thick, depth), tall, casts=False),
    ]
