"""Where images and truths lie, as a recipe writes it."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from simo_build.parts import Part, Seed

# What splits serve: to train experts, to re-align, to choose, to re-align without truths, and to
# measure in the end.
ROLES = ("train", "realign", "select", "unlabelled", "test")
LEARNING = ROLES[:-1]  # those that something is learnt or chosen from
# Kinds whose truth is the image itself, so that no file holds it.
UNTARGETED = frozenset({"autoencoding"})
# Keys of `target` that mean something for some kinds only.
KEYS_OF = {
    "map": {"segmentation", "parts"},
    "classes": {"segmentation", "parts"},
    "scale": {"depth", "log_depth", "disparity"},
    "range": {"edges", "keypoints"},
    "signs": {"normals"},
    "invalid": {"segmentation", "parts", "depth", "log_depth", "disparity", "edges", "keypoints"},
}

Sign = Literal[-1, 1]


class Target(Part):
    """Where the truth of a task lies, and how it is stored; each format reads keys of its own."""

    folder: str
    map: str | None = None  # a table from stored classes to the recipe's
    suffix: str | None = None  # how the name of a map ends, after the image's name
    classes: tuple[Annotated[int, Field(ge=0, lt=65536)], ...] | None = None  # stored, by label
    scale: Annotated[float, Field(gt=0)] | None = None  # stored * scale = value
    invalid: float | None = None  # the stored number of a pixel without truth
    range: tuple[float, float] | None = None  # the stored numbers that become -1 and 1
    signs: tuple[Sign, Sign, Sign] | None = None  # what stored normals are multiplied with

    @field_validator("range")
    @classmethod
    def _rises(cls, span: tuple[float, float] | None) -> tuple[float, float] | None:
        if span is not None and not span[0] < span[1]:
            raise ValueError("must be two numbers, the smaller first")
        return span

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not given: experts' names depend on it, and newer keys must not."""
        every: dict[str, Any] = handler(self)
        return {k: v for k, v in every.items() if k in ("folder", "map") or v is not None}

    def given(self) -> frozenset[str]:
        """Name the keys that are given beside `folder`."""
        return frozenset(k for k, v in self if v is not None) - {"folder"}


class DataPart(Part):
    """The labelled multi-task images."""

    format: str = "folder"
    root: str
    train: str = "train"  # the splits' names in the data set, by what they serve
    realign: str = "realign"
    select: str = "select"
    test: str = "test"
    unlabelled: str | None = None  # further images for steps with `unlabelled`; no truth is read
    images: str = "images"  # format images: the folder of the images
    splits: dict[str, float | str] = Field(default={})  # format images: shares, or files of names
    seed: Seed = 0  # format images: of shares
    skip_unreadable: bool = False  # leave out images that cannot be read, and their truths

    @model_validator(mode="after")
    def _test_is_apart(self) -> "DataPart":
        for role in LEARNING:
            if getattr(self, role) == self.test:
                raise ValueError(
                    f"{role}: is {self.test!r}, which `test` names too; "
                    "nothing may learn or choose from what is measured in the end"
                )
        return self

    @model_validator(mode="after")
    def _of_images(self) -> "DataPart":
        given = sorted(self.model_fields_set & {"images", "splits", "seed"})
        if self.format != "images":
            if given:
                raise ValueError(f"{given[0]}: is a key of the format images, not {self.format}")
            return self
        shares = [value for value in self.splits.values() if isinstance(value, float)]
        if not self.splits or len(shares) not in (0, len(self.splits)):
            raise ValueError(
                "splits: must give each split a share, as in {train: 0.8, select: 0.2}, "
                "or each a file of names"
            )
        if shares and not (min(shares) > 0 and sum(shares) < 1 + 1e-9):
            raise ValueError("splits: shares must be over 0 and not more than 1 together")
        return self
