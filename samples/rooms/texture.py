"""Procedural materials: what colour a surface point has before light falls on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from samples.rooms.scene import Scene
from samples.rooms.shapes import F32, Kind, Look, Stuff
from samples.rooms.trace import Ints, Solids, Surface

_TILE = 512


@dataclass(frozen=True)
class Looks:
    """The looks of a scene's P parts and six shell faces as arrays."""

    stuff_P: Ints
    colour_P3: F32
    second_P3: F32
    scale_P: F32
    gloss_P: F32
    glow_P: F32
    label_P: Ints


@dataclass(frozen=True)
class Patch:
    """Points that share a material: texture coordinates in metres and their parts' colours.

    ``foot_N`` is the size of a pixel on the surface in metres: finer detail must fade.
    """

    uv_2N: F32
    unit_3N: F32
    local_3N: F32
    colour_3N: F32
    second_3N: F32
    scale_N: F32
    foot_N: F32
    part_N: Ints


def looks_of(scene: Scene) -> Looks:
    """The arrays of a scene's looks."""
    looks: list[Look] = [part.look for part in scene.parts] + [look for _, look in scene.shell]
    labels = [part.label for part in scene.parts] + [label for label, _ in scene.shell]
    return Looks(
        np.array([look.stuff for look in looks], np.int32),
        np.array([look.colour for look in looks], np.float32),
        np.array([look.second for look in looks], np.float32),
        np.array([look.scale for look in looks], np.float32),
        np.array([look.gloss for look in looks], np.float32),
        np.array([look.glow for look in looks], np.float32),
        np.array(labels, np.int32),
    )


@cache
def _noise_tile() -> F32:
    """A tileable (512, 512) sum of octaves of value noise, zero mean and unit deviation."""
    rng = np.random.default_rng(20240601)
    total = np.zeros((_TILE, _TILE))
    for cells in (8, 16, 32, 64, 128):
        lattice = rng.standard_normal((cells, cells))
        at = np.arange(_TILE) / _TILE * cells
        low, part = at.astype(int), at % 1
        ease = part * part * (3 - 2 * part)
        rows = lattice[low] * (1 - ease)[:, None] + lattice[(low + 1) % cells] * ease[:, None]
        total += (rows[:, low] * (1 - ease) + rows[:, (low + 1) % cells] * ease) / cells**0.7
    return np.asarray((total - total.mean()) / total.std(), np.float32)


def noise(u_N: F32, v_N: F32) -> F32:
    """Value noise at (u, v); its coarsest cells are one unit wide."""
    count = u_N.size
    rows = max(1, -(-count // 4096))
    maps = np.zeros((2, rows * 4096), np.float32)
    maps[0, :count], maps[1, :count] = u_N * 64 % _TILE, v_N * 64 % _TILE
    x, y = maps.reshape(2, rows, 4096)
    found = cv2.remap(_noise_tile(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(found.reshape(-1)[:count], np.float32)


def _hash(*keys: F32 | Ints) -> F32:
    """A repeatable number in 0..1 for each tuple of whole numbers."""
    mixed = np.zeros(keys[0].shape, np.uint32)
    for key in keys:
        mixed = (mixed ^ key.astype(np.int64).astype(np.uint32)) * np.uint32(2654435761)
        mixed ^= mixed >> np.uint32(15)
    return (mixed >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)


def _fade(period: F32 | float, foot_N: F32) -> F32:
    """1 where a pattern of this period is resolved by the pixels, 0 where it would alias."""
    return np.clip(period / (2 * foot_N + 1e-9) - 0.5, 0, 1).astype(np.float32)


def _line(at_N: F32, half: F32 | float, foot_N: F32) -> F32:
    """Coverage 0..1 of a thin line at whole numbers of ``at``; sizes in the units of ``at``."""
    away = np.abs(at_N - np.round(at_N))
    wide = np.maximum(half, foot_N * 0.5)
    cover = np.clip((wide - away) / (foot_N + 1e-6) + 0.5, 0, 1)
    return np.asarray(cover * np.minimum(half / wide, 1), np.float32)


def _paint(patch: Patch) -> F32:
    grain = noise(patch.uv_2N[0] * 2, patch.uv_2N[1] * 2)
    return patch.colour_3N * (1 + 0.012 * grain)


def _plaster(patch: Patch) -> F32:
    u, v = patch.uv_2N
    fine = noise(u * 5, v * 5) * _fade(0.06, patch.foot_N)
    return patch.colour_3N * (1 + 0.014 * noise(u * 0.6, v * 0.6) + 0.012 * fine)


def _grain(u: F32, v: F32, foot_N: F32) -> F32:
    """Wood figure along u: broad bands and fine fibres."""
    bend = noise(u * 0.5, v * 2)
    broad = np.sin(v * 90 + bend * 4.5) * _fade(0.07, foot_N)
    fibre = noise(u * 1.6, v * 36) * _fade(0.03, foot_N)
    return np.asarray(0.06 * broad + 0.07 * fibre + 0.06 * bend, np.float32)


def _wood(patch: Patch) -> F32:
    u, v = patch.uv_2N
    shift = _hash(patch.part_N) * 7
    tone = 1 + 0.75 * _grain(u + shift, v + shift, patch.foot_N)
    return patch.colour_3N * tone


def _board(patch: Patch, u: F32, v: F32, row: F32, length: F32) -> F32:
    """Boards in rows across v: each has its own tone and figure, with dark joints."""
    board = np.floor(u / length)
    tone = _hash(row, board)
    grain = _grain(u + tone * 13, v + tone * 5, patch.foot_N)
    joint = np.maximum(
        _line(v / patch.scale_N, 0.0022 / patch.scale_N, patch.foot_N / patch.scale_N),
        _line(u / length, 0.0018 / length, patch.foot_N / length),
    )
    shade = (0.84 + 0.32 * tone) * (1 + grain) * (1 - 0.62 * joint)
    warm = 1 + (tone - 0.5) * np.array([[0.08], [0.0], [-0.1]], np.float32)
    return patch.colour_3N * shade * warm


def _planks(patch: Patch) -> F32:
    u, v = patch.uv_2N
    row = np.floor(v / patch.scale_N)
    return _board(patch, u + _hash(row) * 9, v, row, np.full_like(u, 1.3))


def _chevron(patch: Patch) -> F32:
    """Boards that meet at an angle along the lines between columns."""
    u, v = patch.uv_2N
    wide = np.float32(0.55)
    column = np.floor(u / wide)
    side = 1 - 2 * (column % 2)
    across = v + side * (u - column * wide - wide * (column % 2 > 0)) * 0.8
    row = np.floor(across / patch.scale_N) + column * 977
    along = u + 0 * v
    return _board(patch, along, across, row, np.full_like(u, wide))


def _tiles(patch: Patch) -> F32:
    u, v = patch.uv_2N / patch.scale_N
    foot = patch.foot_N / patch.scale_N
    cell_u, cell_v = np.round(u), np.round(v)
    checked = ((cell_u + cell_v) % 2 > 0).astype(np.float32)
    base = patch.colour_3N * (1 - checked) + patch.second_3N * checked
    tone = 0.95 + 0.1 * _hash(cell_u, cell_v)
    marble = 0.03 * noise(u * 0.8 + cell_u * 3, v * 0.8 + cell_v * 5)
    grout = np.maximum(_line(u + 0.5, 0.008, foot), _line(v + 0.5, 0.008, foot))
    return np.asarray(base * (tone + marble) * (1 - 0.42 * grout), np.float32)


def _carpet(patch: Patch) -> F32:
    u, v = patch.uv_2N
    pile = noise(u * 30, v * 30) * _fade(0.012, patch.foot_N)
    return patch.colour_3N * (1 + 0.035 * noise(u * 2.5, v * 2.5) + 0.11 * pile)


def _weave(patch: Patch) -> F32:
    """The threads of a cloth, a factor around one."""
    u, v = patch.uv_2N
    threads = np.sin(u * 900) * np.sin(v * 900) * _fade(0.007, patch.foot_N)
    slub = noise(u * 9, v * 26) * _fade(0.03, patch.foot_N)
    return np.asarray(1 + 0.07 * threads + 0.045 * slub + 0.02 * noise(u * 2, v * 2), np.float32)


def _fabric(patch: Patch) -> F32:
    return patch.colour_3N * _weave(patch)


def _soft_wave(at_N: F32, foot_N: F32) -> F32:
    """An anti-aliased 0/1 square wave of period one."""
    triangle = np.abs(at_N % 1 - 0.5) * 2 - 0.5
    return np.asarray(np.clip(triangle / (2 * foot_N + 0.02) + 0.5, 0, 1), np.float32)


def _stripes(patch: Patch) -> F32:
    u, v = patch.uv_2N / patch.scale_N / 2
    foot = np.asarray(patch.foot_N / patch.scale_N / 2, np.float32)
    across = _soft_wave(v, foot)
    checked = _hash(patch.part_N // 64) > 0.5
    share = np.where(checked, 0.5 * (across + _soft_wave(u, foot)), across)
    mixed = patch.colour_3N * (1 - share) + patch.second_3N * share
    return np.asarray(mixed * _weave(patch), np.float32)


def _rug(patch: Patch) -> F32:
    """A border and a field of diamonds or stripes, or rings on a round rug."""
    x, y = patch.local_3N[:2]
    foot = patch.foot_N
    edge = (1 - np.abs(patch.unit_3N[:2])) * np.abs(patch.local_3N[:2])
    edge = edge / np.maximum(np.abs(patch.unit_3N[:2]), 1e-3)
    inset = edge.min(axis=0)
    style = _hash(patch.part_N, patch.part_N + 3)
    diamonds = _soft_wave((np.abs(x % 0.5 - 0.25) + np.abs(y % 0.5 - 0.25)) * 4, foot * 4)
    share = np.where(style < 0.4, diamonds, _soft_wave(y / 0.22, foot / 0.22))
    share = np.where(style > 0.75, _soft_wave(np.hypot(x, y * 1.2) / 0.3, foot / 0.3), share)
    border = np.clip((0.14 - inset) / (foot + 0.004) + 0.5, 0, 1)
    rim = np.clip((0.09 - inset) / (foot + 0.004) + 0.5, 0, 1)
    share = share * 0.8 * (1 - border) + (border - rim)
    pile = 1 + 0.09 * noise(x * 26, y * 26) * _fade(0.014, foot) + 0.03 * noise(x * 2, y * 2)
    return np.asarray((patch.colour_3N * (1 - share) + patch.second_3N * share) * pile, np.float32)


def _art(patch: Patch) -> F32:
    """A small abstract picture on a white mount: hills under a sun, blocks, or arcs."""
    x, y = patch.unit_3N[0] / 0.72, patch.unit_3N[2] / 0.76
    seed = _hash(patch.part_N)
    third = patch.colour_3N[[1, 2, 0]] * 0.45 + patch.second_3N * 0.25
    paper = np.full_like(third, 0.74)
    hill = y < 0.3 * np.sin(x * 2.2 + seed * 20) - 0.05
    near = y < 0.25 * np.sin(x * 3.1 + seed * 50) - 0.5
    sun = np.hypot(x - seed + 0.4, y - 0.42) < 0.27
    scene = np.where(
        sun, patch.second_3N, np.where(hill, patch.colour_3N, paper * [[1], [0.93], [0.8]])
    )
    scene = np.where(near, third, scene)
    cell = _hash(np.floor(x * 1.5 + seed * 3), np.floor(y * 1.5 + seed * 5), patch.part_N)
    blocks = np.where(cell < 0.35, patch.colour_3N, np.where(cell < 0.7, patch.second_3N, third))
    ring = np.floor(np.hypot(x + 0.5, y + 1.0) * 3.2)
    arcs = np.where(ring % 3 < 1, patch.second_3N, np.where(ring % 3 < 2, paper, patch.colour_3N))
    image = np.where(seed < 0.45, scene, np.where(seed < 0.72, blocks, arcs))
    mount = (np.abs(x) > 1) | (np.abs(y) > 1)
    return np.where(mount, 0.8, image).astype(np.float32)


def _leaf(patch: Patch) -> F32:
    rib = np.exp(-((patch.unit_3N[0] / 0.12) ** 2))
    tip = 0.82 + 0.3 * patch.unit_3N[1] ** 2
    return np.asarray(patch.colour_3N * (tip + 0.25 * rib), np.float32)


_PAINTERS: dict[Stuff, Callable[[Patch], F32]] = {
    Stuff.PAINT: _paint,
    Stuff.PLASTER: _plaster,
    Stuff.WOOD: _wood,
    Stuff.PLANKS: _planks,
    Stuff.CHEVRON: _chevron,
    Stuff.TILES: _tiles,
    Stuff.CARPET: _carpet,
    Stuff.FABRIC: _fabric,
    Stuff.STRIPES: _stripes,
    Stuff.RUG: _rug,
    Stuff.ART: _art,
    Stuff.LEAF: _leaf,
}


def _coordinates(solids: Solids, part_N: Ints, surface: Surface) -> F32:
    """Texture coordinates (2, N): on flat faces u runs along the longer side of the face."""
    extent = np.concatenate([solids.half_P3, np.tile(solids.size_3, (6, 1))])[part_N]
    columns = np.arange(len(part_N))
    one, other = (surface.axis_N + 1) % 3, (surface.axis_N + 2) % 3
    swap = extent[columns, one] < extent[columns, other]
    along, across = np.where(swap, other, one), np.where(swap, one, other)
    uv = np.stack([surface.local_3N[along, columns], surface.local_3N[across, columns]])
    kind = np.concatenate([solids.kind_P, np.zeros(6, np.int32)])[part_N]
    side = np.flatnonzero((kind == Kind.TUBE) & (surface.axis_N == 0))
    x, y, z = surface.local_3N[:, side]
    uv[0, side], uv[1, side] = z, np.arctan2(y, x) * extent[side, 0]
    return uv


def albedo_at(solids: Solids, looks: Looks, part_N: Ints, surface: Surface, foot_N: F32) -> F32:
    """Diffuse reflectance (3, N) of surface points; sky and lampshades are left black."""
    uv = _coordinates(solids, part_N, surface)
    stuff = looks.stuff_P[part_N]
    result = np.zeros_like(surface.normal_3N)
    for which, painter in _PAINTERS.items():
        at = np.flatnonzero(stuff == which)
        if not at.size:
            continue
        part = part_N[at]
        patch = Patch(
            uv[:, at],
            surface.unit_3N[:, at],
            surface.local_3N[:, at],
            looks.colour_P3[part].T,
            looks.second_P3[part].T,
            looks.scale_P[part],
            foot_N[at],
            part,
        )
        result[:, at] = painter(patch)
    return np.clip(result, 0.002, 0.93)
