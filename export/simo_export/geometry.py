"""Where pixels, patches and padding lie: the fixed sizes that every graph is made for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The image size of a recipe on the encoder's grid of patches.

    An image that is not a multiple of the patch is padded in normalised space with zeros, evenly
    on both sides, the odd pixel at the bottom and right; predictions are made for the padded
    image and cropped. (The paper's released code resizes instead of cropping, which squeezes
    every prediction a little; cropping is exact.)
    """

    image_size: tuple[int, int]  # height, width in pixels
    patch: tuple[int, int]  # height, width in pixels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (high, wide), (tall, broad) = self.image_size, self.patch
        return -(-high // tall), -(-wide // broad)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the padded image in pixels."""
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Pixels added at the left, right, top and bottom, in the order of torch's F.pad."""
        down = self.padded_size[0] - self.image_size[0]
        across = self.padded_size[1] - self.image_size[1]
        return across // 2, across - across // 2, down // 2, down - down // 2
