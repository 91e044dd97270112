"""Curated colour schemes, and the small variation that keeps two rooms from sharing one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]

# wall, accent wall, floor, furniture wood, main fabric, second fabric, third fabric, door and trim
_SCHEMES: dict[str, str] = {
    "nordic": "ece7de c9d3d2 cfa878 d9b88c 8fa3ad d98f5c 3f5e6b f6f3ec",
    "terracotta": "f0e2d0 cf7f5a b98a5e a9744a d9b79a b5523b 3f6b5f f8f1e6",
    "sage": "e3e7d8 9fb18f c49a6c b88455 7f9673 e0c9a0 c46f4a f7f5ec",
    "ocean": "e2eaee 4f7f99 d3b48c b98f63 2f5d7c f0c46c e4ece9 f8fafa",
    "mustard": "f1e9d8 d8a63c a8764a 8a5a36 d9a431 466b78 e9dcc4 faf5ea",
    "blush": "f3e4de d8a79a cfae86 c69a6b d78f86 7d8f83 f0d3b8 fbf5f1",
    "forest": "e6e4d6 3f5f50 a4764c 7a5234 2f5a4a d7a35a b9633f f2efe4",
    "lavender": "e9e5ee a79ac0 cbb08c c9a679 8d7fae e7b96b 5d7f8a f8f6fa",
    "clay": "ebddcd b3785c 9c6b45 6f4a30 c7a88b 5d7a78 dba25a f5ece0",
    "mint": "e5f0ea 8cc0ad d6b892 caa071 5fa08e f0a07c f3e2b8 fbfdfb",
    "indigo": "e8e6e3 46527f b78d60 94683f 3d4a7d e0a458 c05f52 f5f4f1",
    "olive": "ece8d6 8a8a52 bd9160 9a6b3f 7b7d48 c9743f e8d5a5 f7f4e8",
    "coral": "f5ebe2 e58a73 c9a27a b07f54 e27d66 3f8088 f2cf92 fdf8f3",
    "slate": "dfe2e4 6c7d88 b39570 8b6a4a 5c6f7c e3b25f b85c4a f3f5f6",
}


@dataclass(frozen=True)
class Palette:
    """Linear-light colours of one room, each a triple in 0..1."""

    wall: Rgb
    accent: Rgb
    floor: Rgb
    wood: Rgb
    main: Rgb
    second: Rgb
    third: Rgb
    trim: Rgb

    @property
    def fabrics(self) -> tuple[Rgb, Rgb, Rgb]:
        """The three upholstery colours, the dominant one first."""
        return self.main, self.second, self.third


def linear(hex_code: str) -> Rgb:
    """The linear-light triple of an sRGB hex code such as ``"d9a431"``."""
    srgb = [int(hex_code[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (((c + 0.055) / 1.055) ** 2.4 if c > 0.04 else c / 12.92 for c in srgb)
    return red, green, blue


def vary(rng: np.random.Generator, colour: Rgb, amount: float = 0.06) -> Rgb:
    """The colour, a little lighter or darker and a little warmer or cooler."""
    tone = float(np.exp(rng.normal(0.0, amount)))
    warm = float(rng.normal(0.0, amount * 0.35))
    red, green, blue = colour
    warmed = (red * tone * (1 + warm), green * tone, blue * tone * (1 - warm))
    return min(warmed[0], 0.93), min(warmed[1], 0.93), min(warmed[2], 0.93)


def mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    """A blend of two colours; ``share`` is the weight of the other."""
    red, green, blue = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return red, green, blue


def draw_palette(rng: np.random.Generator) -> Palette:
    """One curated scheme with each of its colours slightly varied."""
    codes = _SCHEMES[str(rng.choice(sorted(_SCHEMES)))].split()
    return Palette(*(vary(rng, linear(code)) for code in codes))
