"""A model file: the YAML that names a finished encoder and its heads, for `simo-export`.

Paths are like a recipe's: `$DATA` is the folder given with `--data`, all others are relative to the
file's own folder.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from simo_build.exporting import ExportPart
from simo_build.loading import checked
from simo_build.parts import Part, Positive
from simo_build.recipe import ImagePart, Recipe
from simo_build.sources import DataPart, Target

Entry = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$")]


class OwnEncoderPart(Part):
    """A vision transformer of timm with weights, or a PyTorch module of one's own."""

    model: str | None = None  # a name that timm knows
    weights: str | None = None  # of timm's or DINOv2's names, or one of our own files
    options: dict[str, Any] = Field(default={})
    taps: tuple[Positive, ...] = (3, 6, 9, 12)
    norm: bool = False
    python: Entry | None = None  # module:function, which gives the module

    @model_validator(mode="after")
    def _one_of_both(self) -> "OwnEncoderPart":
        if (self.model is None) == (self.python is None):
            raise ValueError("give `model` and `weights` for one of timm's, or `python`")
        if self.model is not None and self.weights is None:
            raise ValueError("`weights` is missing: the file that has those of `model`")
        idle = sorted(self.model_fields_set - {"python"})
        if self.python is not None and idle:
            raise ValueError(f"`{idle[0]}` has no effect on a module of `python`")
        return self


class OwnTaskPart(Part):
    """One task: what it predicts, with one of our heads and its weights, or one's own module."""

    kind: str
    labels: tuple[str, ...] = ()
    metric: str = ""
    target: Target | None = None
    head: str | None = None  # a head of ours; by default `linear`
    weights: str | None = None
    python: Entry | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "OwnTaskPart":
        if (self.weights is None) == (self.python is None):
            raise ValueError("give `weights` for one of our heads, or `python` for your own")
        if self.python is not None and self.head is not None:
            raise ValueError("`head` has no effect on a module of `python`")
        return self


class ModelFile(Part):
    """A whole model file."""

    name: str
    encoder: OwnEncoderPart
    image: ImagePart
    tasks: dict[str, OwnTaskPart]
    data: DataPart | None = None  # with truths, so that the gate compares metrics too
    images: str | None = None  # a folder of photos for the gate, without truths
    export: ExportPart = ExportPart()

    @model_validator(mode="after")
    def _one_source_of_images(self) -> "ModelFile":
        if self.data is not None and self.images is not None:
            raise ValueError("`images` has no effect beside `data`; give one of them")
        if self.encoder.python is not None:
            ours = [name for name, task in self.tasks.items() if task.python is None]
            if ours:
                raise ValueError(
                    f"tasks.{ours[0]}: our heads need an encoder of timm; with an encoder of "
                    "`python`, give the head by `python` too"
                )
        return self


def as_recipe(file: ModelFile, taps: tuple[int, ...], *, shown: str) -> Recipe:
    """Write a model file as the recipe that such a model would have come from."""
    encoder = file.encoder
    content: dict[str, Any] = {
        "name": file.name,
        "encoder": {
            "model": encoder.model or "own",
            "options": encoder.options,
            "taps": taps,
            "norm": encoder.norm,
        },
        "base": encoder.weights or encoder.python,
        "image": file.image,
        "tasks": {name: _task(task) for name, task in file.tasks.items()},
        "data": file.data,
        "export": file.export,
    }
    return checked(content, Recipe, shown=shown)


def _task(task: OwnTaskPart) -> dict[str, Any]:
    kept = {"kind": task.kind, "labels": task.labels, "target": task.target}
    metric = {"metric": task.metric} if task.metric else {}
    return {**kept, **metric, "head": task.head or "linear"}
