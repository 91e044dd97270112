"""Random, plausible furnished rooms: what stands where, the light, and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from samples.rooms import fittings, furniture
from samples.rooms.furniture import Shop
from samples.rooms.layout import Footprint, Layout, Wall
from samples.rooms.palette import Palette, Rgb, draw_palette, mix, vary
from samples.rooms.shapes import F32, Label, Look, Part, Piece, Stuff, Vec, all_moved

_VISIBLE = [Wall.LEFT, Wall.RIGHT, Wall.FAR]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; angles in radians, yaw 0 looks along +y, positive pitch looks up."""

    position: Vec
    yaw: float
    pitch: float
    hfov: float

    def axes(self) -> F32:
        """Rows are the camera's x (right), y (down), z (forward) axes in the world, (3, 3)."""
        cy, sy, cp, sp = (f(a) for a in (self.yaw, self.pitch) for f in (math.cos, math.sin))
        right, forward = (cy, -sy, 0.0), (sy * cp, cy * cp, sp)
        return np.array([right, np.cross(forward, right), forward], np.float32)


@dataclass(frozen=True)
class Pane:
    """A window's glass: wall, extent along the wall, extent in height (metres)."""

    wall: Wall
    along: tuple[float, float]
    up: tuple[float, float]


@dataclass(frozen=True)
class Mood:
    """The light of the hour; colours are linear, powers relative to each other."""

    sun: Rgb
    sky: Rgb
    zenith: Rgb
    lamps: float
    ambient: float
    sun_way: Vec


@dataclass(frozen=True)
class Scene:
    """A finished room. P parts, then the six faces of the shell (x, y, z; low, high)."""

    size: Vec
    parts: list[Part]
    shell: list[tuple[Label, Look]]
    panes: list[Pane]
    standing: list[Footprint]
    mood: Mood
    camera: Camera


_MOODS: tuple[tuple[float, Rgb, Rgb, Rgb, float, float], ...] = (
    # share, sun, sky at the horizon, sky above, lamps, ambient
    (0.46, (6.0, 5.3, 4.3), (0.95, 1.0, 1.06), (0.36, 0.60, 0.98), 0.35, 0.32),
    (0.28, (6.4, 4.3, 2.3), (1.15, 0.88, 0.66), (0.50, 0.58, 0.80), 0.7, 0.28),
    (0.14, (0.0, 0.0, 0.0), (0.98, 1.0, 1.04), (0.80, 0.87, 0.98), 0.6, 0.4),
    (0.12, (1.6, 0.75, 0.42), (0.95, 0.62, 0.52), (0.20, 0.28, 0.56), 1.6, 0.22),
)


def _mood(shop: Shop, wall: Wall) -> Mood:
    """The hour, with the sun (if any) shining in through the given wall."""
    kind = _MOODS[int(shop.rng.choice(len(_MOODS), p=[mood[0] for mood in _MOODS]))]
    rise = math.radians(shop.between(24, 42))
    aside = math.radians(shop.between(-38, 38))
    out = {Wall.LEFT: math.pi, Wall.RIGHT: 0.0, Wall.FAR: math.pi / 2}[wall] + aside
    flat = math.cos(rise)
    way = (math.cos(out) * flat, math.sin(out) * flat, math.sin(rise))
    return Mood(kind[1], kind[2], kind[3], kind[4], kind[5], way)


def _windows(room: Layout) -> list[Pane]:
    """One or two windows on a wall in view, sometimes one more on another wall."""
    shop, panes = room.shop, []
    first = _VISIBLE[int(shop.rng.choice(3, p=[0.36, 0.36, 0.28]))]
    second = _VISIBLE[int(shop.rng.integers(3))]
    walls = [first, first, second] if shop.chance(0.5) else [first, second]
    tall = shop.between(1.15, 1.5)
    sill = shop.between(0.72, 0.95)
    curtains = shop.chance(0.62)
    for wall in walls:
        wide = shop.between(0.95, 1.7)
        made = fittings.window(shop, wide, tall, curtains, sill - 0.03)
        low = made.width / 2 + (0.15 if wall is Wall.FAR else 1.2)
        high = room.length(wall) - made.width / 2 - 0.15
        along = shop.between(low, high) if high > low else -1.0
        if not room.hang(made, wall, along, sill):
            continue
        panes.append(Pane(wall, (along - wide / 2, along + wide / 2), (sill, sill + tall)))
        if curtains:
            for side in (-1, 1):
                at = along + side * (wide / 2 + 0.14)
                room.reserve(wall, at, 0.5, 0.17)
                room.hung.append((wall, (at - 0.25, at + 0.25), (0.0, sill)))
    return panes


def _door(room: Layout) -> None:
    """A door on a wall in view, with its swing kept free."""
    made = fittings.door(room.shop)
    for _ in range(8):
        wall = _VISIBLE[int(room.shop.rng.integers(3))]
        low = 0.6 if wall is Wall.FAR else 1.7
        along = room.shop.between(low, room.length(wall) - 0.6)
        if room.hang(made, wall, along, 0.0):
            room.reserve(wall, along, made.width, 0.8)
            return


def _on_top(room: Layout, base: Footprint, item: str) -> None:
    """A lamp, a plant or a vase on a piece of furniture."""
    shop = room.shop
    reach = max(base.half_w - 0.2, 0.0)
    shift = shop.between(-reach, reach) * 0.8
    x = base.x + math.cos(base.yaw) * shift
    y = base.y + math.sin(base.yaw) * shift
    if item == "lamp":
        room.add(furniture.lamp(shop, shop.between(0.42, 0.58)), x, y, 0.0, base.height)
    elif item == "plant":
        room.add(furniture.plant(shop, shop.between(0.34, 0.5)), x, y, 0.0, base.height)
    else:
        room.parts += all_moved(furniture.bowl(shop, 0.0), 0.0, (x, y, base.height))


def _bedroom(room: Layout) -> None:
    """A bed with its head to a wall, night stands beside it, a rug under its foot."""
    shop = room.shop
    made = furniture.bed(shop)
    base = room.against(made, _VISIBLE) or room.against(furniture.bed(shop), _VISIBLE)
    if base is None:
        return
    cos, sin = math.cos(base.yaw), math.sin(base.yaw)
    height = shop.between(0.42, 0.56)
    for side in (-1, 1):
        stand = furniture.cabinet(shop, shop.between(0.4, 0.52), height, 2, 1)
        across = side * (base.half_w + stand.width / 2 + 0.06)
        back = -(base.half_d - stand.depth / 2)
        x, y = base.x + cos * across - sin * back, base.y + sin * across + cos * back
        if room.stand(stand, x, y, base.yaw, 0.01):
            _on_top(room, room.standing[-1], "lamp" if shop.chance(0.75) else "plant")
    if shop.chance(0.75):
        mat = fittings.rug(shop, base.half_w * 2 + 0.9, 1.7)
        forward = base.half_d * 0.55
        _lay(room, mat, base.x - sin * forward, base.y + cos * forward, base.yaw)


def _lay(room: Layout, mat: Piece, x: float, y: float, yaw: float) -> None:
    """The room's one rug, moved as little as needed to stay within the walls."""
    flat = abs(math.sin(yaw)) > 0.5
    w, d = (mat.depth, mat.width) if flat else (mat.width, mat.depth)
    if room.has_rug:
        return
    room.has_rug = True
    x = min(max(x, w / 2 + 0.12), room.width - w / 2 - 0.12)
    y = min(max(y, d / 2 + 0.12), room.depth - d / 2 - 0.12)
    room.add(mat, x, y, yaw)


def _living(room: Layout) -> None:
    """A sofa, a low table before it, an armchair turned towards them, a rug below."""
    shop = room.shop
    base = room.against(furniture.sofa(shop, int(shop.rng.integers(2, 4))), _VISIBLE)
    base = base or room.against(furniture.sofa(shop, 2), _VISIBLE)
    if base is None:
        return
    cos, sin = math.cos(base.yaw), math.sin(base.yaw)
    wide = shop.between(0.75, 1.15)
    low = furniture.table(shop, wide, wide if shop.chance(0.35) else 0.56, shop.between(0.36, 0.45))
    out = base.half_d + low.depth / 2 + shop.between(0.32, 0.45)
    x, y = base.x - sin * out, base.y + cos * out
    if shop.chance(0.85):
        _lay(room, fittings.rug(shop, base.half_w * 2 + 0.4, 1.9), x, y, base.yaw)
    if room.stand(low, x, y, base.yaw):
        _on_top(room, room.standing[-1], "bowl" if shop.chance(0.7) else "plant")
    for side in (-1, 1):
        across, forward = side * (base.half_w * 0.6 + 0.75), out + 0.35
        at = (base.x + cos * across - sin * forward, base.y + sin * across + cos * forward)
        turn = base.yaw + side * shop.between(1.1, 1.7)
        if shop.chance(0.6) and room.stand(furniture.sofa(shop, 1), *at, turn):
            return


def _dining(room: Layout) -> None:
    """A dining table with chairs around it and a lamp above."""
    shop = room.shop
    round_top = shop.chance(0.3)
    wide = shop.between(1.0, 1.2) if round_top else shop.between(1.3, 1.8)
    deep = wide if round_top else shop.between(0.8, 0.95)
    made = furniture.table(shop, wide, deep, shop.between(0.72, 0.77))
    yaw = float(shop.rng.choice([0.0, math.pi / 2])) + shop.between(-0.15, 0.15)
    for _ in range(14):
        x = shop.between(1.4, room.width - 1.4)
        y = shop.between(2.2, room.depth - 1.3)
        if room.stand(made, x, y, yaw, 0.5):
            break
    else:
        return
    base = room.standing[-1]
    _chairs(room, base)
    _on_top(room, base, "bowl")
    if shop.chance(0.8):
        hanging = furniture.pendant(shop, shop.between(0.5, 0.8))
        room.add(hanging, x, y, 0.0, room.height)
    if shop.chance(0.6):
        _lay(room, fittings.rug(shop, base.half_w * 2 + 1.1, base.half_d * 2 + 1.1), x, y, yaw)


def _chairs(room: Layout, base: Footprint) -> None:
    """Chairs of one make, pushed part of the way under the table's long and short sides."""
    shop = room.shop
    wood, cloth = shop.wood(), shop.cloth()
    cos, sin = math.cos(base.yaw), math.sin(base.yaw)
    spread = base.half_w * 0.48 if base.half_w > 0.62 else 0.0
    seats = [(s * spread, side) for side in (-1, 1) for s in ((-1, 1) if spread else (0,))]
    for across, side in seats:
        made = furniture.chair(shop, wood, cloth)
        forward = side * (base.half_d + made.depth / 2 + shop.between(0.03, 0.14))
        turn = base.yaw + (math.pi if side > 0 else 0.0) + shop.between(-0.2, 0.2)
        x, y = base.x + cos * across - sin * forward, base.y + sin * across + cos * forward
        if shop.chance(0.92):
            room.stand(made, x, y, turn, 0.0)


def _desk(room: Layout) -> None:
    """A desk at a wall with a lamp on it and a chair before it."""
    shop = room.shop
    made = furniture.table(shop, shop.between(1.1, 1.5), shop.between(0.58, 0.7), 0.74)
    base = room.against(made, _VISIBLE)
    if base is None:
        return
    _on_top(room, base, "lamp" if shop.chance(0.7) else "bowl")
    seat = furniture.chair(shop, shop.wood(), shop.cloth())
    out = base.half_d + seat.depth / 2 + 0.04
    x, y = base.x - math.sin(base.yaw) * out, base.y + math.cos(base.yaw) * out
    room.stand(seat, x, y, base.yaw + math.pi + shop.between(-0.35, 0.35), 0.0)


def _storage(room: Layout) -> None:
    """A bookcase, a wardrobe, a chest or a sideboard."""
    shop = room.shop
    kind = int(shop.rng.integers(4))
    if kind == 0:
        made = furniture.bookcase(shop)
    elif kind == 1:
        made = furniture.cabinet(shop, shop.between(1.0, 1.5), shop.between(1.85, 2.1), 1, 2)
    elif kind == 2:
        made = furniture.cabinet(shop, shop.between(0.8, 1.1), shop.between(0.8, 0.98), 3, 2)
    else:
        made = furniture.cabinet(shop, shop.between(1.3, 1.8), shop.between(0.62, 0.8), 1, 3)
    base = room.against(made, _VISIBLE)
    if base is not None and made.height < 1.2:
        _on_top(room, base, str(shop.rng.choice(["lamp", "plant", "bowl"], p=[0.4, 0.4, 0.2])))


def _extras(room: Layout) -> None:
    """Plants and standing lamps in what is left of the floor, preferably in corners."""
    shop = room.shop
    plants = int(shop.rng.integers(1, 3))
    lamps = int(shop.rng.random() < 0.6)
    for index in range(plants + lamps):
        lit = index >= plants
        tall = shop.between(1.4, 1.7) if lit else shop.between(0.8, 1.45)
        made = furniture.lamp(shop, tall) if lit else furniture.plant(shop, tall)
        room.against(made, _VISIBLE, 0.03)


def _pictures(room: Layout) -> None:
    """Pictures, alone or as a pair, centred on free stretches of wall at eye height."""
    shop, wanted = room.shop, int(room.shop.rng.integers(3, 6))
    for _ in range(24):
        wall = _VISIBLE[int(shop.rng.integers(3))]
        tall = shop.between(0.45, 0.85)
        made = fittings.picture(shop, tall * float(shop.rng.choice([0.72, 1.0, 1.4])), tall)
        along = shop.between(0.6 if wall is Wall.FAR else 1.6, room.length(wall) - 0.6)
        wanted -= room.hang(made, wall, along, shop.between(1.6, 1.68) - tall / 2)
        if wanted <= 0:
            return


def _floor(shop: Shop) -> Look:
    """Planks, chevrons, tiles or carpet."""
    wood = shop.palette.floor
    kind = int(shop.rng.choice(4, p=[0.42, 0.24, 0.18, 0.16]))
    if kind < 2:
        stuff = Stuff.PLANKS if kind == 0 else Stuff.CHEVRON
        return Look(stuff, vary(shop.rng, wood, 0.08), scale=shop.between(0.1, 0.17), gloss=0.4)
    pale = mix(wood, (0.75, 0.73, 0.69), 0.7)
    if kind == 2:
        other = mix(pale, shop.palette.accent, 0.35) if shop.chance(0.5) else pale
        return Look(Stuff.TILES, pale, other, shop.between(0.3, 0.5), 0.5)
    return Look(Stuff.CARPET, mix(pale, shop.palette.second, 0.12))


def _shell(shop: Shop, palette: Palette) -> list[tuple[Label, Look]]:
    """Walls (one of them often in the accent colour), floor and ceiling, in face order."""
    plain = Look(Stuff.PLASTER, palette.wall)
    accent = Look(Stuff.PLASTER, palette.accent)
    walls = [plain] * 4
    if shop.chance(0.6):
        walls[int(_VISIBLE[int(shop.rng.integers(3))])] = accent
    ceiling = Look(Stuff.PLASTER, mix(palette.wall, (0.9, 0.9, 0.89), 0.75))
    faces = [(Label.WALL, look) for look in walls]
    return [*faces, (Label.FLOOR, _floor(shop)), (Label.CEILING, ceiling)]


def _camera(shop: Shop, width: float) -> Camera:
    """A standing viewer near the near wall, who looks across the room and a little down."""
    aside = shop.between(-1.0, 1.0)
    x = width / 2 - aside * (width / 2 - 0.75)
    yaw = aside * math.radians(shop.between(22, 36))
    pitch = -math.radians(shop.between(4, 13))
    at = (x, shop.between(0.3, 0.6), shop.between(1.3, 1.75))
    return Camera(at, yaw, pitch, math.radians(shop.between(62, 78)))


def draw_scene(rng: np.random.Generator) -> Scene:
    """One furnished room; it uses the generator and nothing else."""
    shop = Shop(rng, draw_palette(rng))
    width, depth, height = shop.between(3.9, 5.6), shop.between(4.2, 6.0), shop.between(2.45, 2.9)
    camera = _camera(shop, width)
    room = Layout(shop, width, depth, height, (camera.position[0], camera.position[1]))
    panes = _windows(room)
    if shop.chance(0.72):
        _door(room)
    plans = [_bedroom, _living, _dining, _desk]
    order = rng.choice(4, 2, replace=False, p=[0.36, 0.27, 0.22, 0.15])
    for index in order:
        plans[int(index)](room)
    for _ in range(int(rng.integers(2, 4))):
        _storage(room)
    _extras(room)
    _pictures(room)
    parts = room.parts + fittings.skirting(shop, width, depth)
    mood = _mood(shop, panes[0].wall if panes else Wall.LEFT)
    shell = _shell(shop, shop.palette)
    solid = [foot for foot in room.standing if foot.clearance < 9]
    return Scene((width, depth, height), parts, shell, panes, solid, mood, camera)
