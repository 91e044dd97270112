"""Recipes from files: find one, read its YAML, and say in plain words what is wrong with it."""

import difflib
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from simo_build.parts import Part
from simo_build.recipe import Recipe
from simo_runtime.errors import RecipeError, listing

DATA_VARIABLE = "SIMO_DATA"
Whole = TypeVar("Whole", bound=Part)


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe, the text it was read from, and where the things it names lie."""

    recipe: Recipe
    text: str
    folder: Path  # relative paths start here
    shown: str  # the recipe as the user named it, for messages
    data: Path | None  # what $DATA stands for
    experts: Path  # where simo-train keeps experts

    def locate(self, value: str) -> Path:
        """Turn a path of the recipe into one of this machine."""
        first, _, rest = value.partition("/")
        if not first.startswith("$"):
            return self.folder / value
        if first != "$DATA":
            raise RecipeError(
                f"{self.shown}: {value}: {first} stands for nothing; only $DATA does, "
                "the folder given with --data"
            )
        if self.data is None:
            raise RecipeError(
                f"{self.shown}: {value} needs the data folder: "
                f"give --data DIR or set {DATA_VARIABLE}"
            )
        return self.data / rest.lstrip("/")


def find_recipe(name: str) -> Path:
    """Find a recipe: a file of that name first, then one that ships, with or without `.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(str(files("simo_build.recipes")))
    names = sorted(entry.name for entry in shipped.glob("*.yaml"))
    for candidate in (name, f"{name}.yaml"):
        if candidate in names:
            return shipped / candidate
    stems = [known.removesuffix(".yaml") for known in names]
    close = difflib.get_close_matches(path.name.removesuffix(".yaml"), stems, n=1)
    hint = f"; did you mean '{close[0]}.yaml'?" if close else ""
    raise RecipeError(f"{name}: there is no such recipe{hint} (shipped: {', '.join(names)})")


def check_truths(loaded: LoadedRecipe, what: str) -> None:
    """Raise RecipeError if a task has no `target`, which `what` cannot do without."""
    if loaded.recipe.blind:
        task = f"{loaded.shown}: tasks.{loaded.recipe.blind[0]}"
        raise RecipeError(f"{task}: `target` says where its truth lies in `data`; {what} needs it")


def load_recipe(
    name: str, *, data: Path | None = None, experts: Path = Path("experts")
) -> LoadedRecipe:
    """Read and check a recipe; RecipeError names the file, the key and what is allowed."""
    path = find_recipe(name)
    recipe, text = read_part(path, Recipe, shown=name)
    if data is None and os.environ.get(DATA_VARIABLE):
        data = Path(os.environ[DATA_VARIABLE])
    return LoadedRecipe(
        recipe=recipe, text=text, folder=path.parent, shown=name, data=data, experts=experts
    )


def read_part(path: Path, kind: type[Whole], *, shown: str | None = None) -> tuple[Whole, str]:
    """Read a YAML file as a part, and give its text; RecipeError names the file and the key."""
    name = shown or str(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates can be impossible
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    return checked(content, kind, shown=name), text


def checked(content: object, kind: type[Whole], *, shown: str) -> Whole:
    """Make a part of what a file holds; RecipeError has a line a fault, the key first."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{shown}:\n{listing(_faults(error, kind))}") from error


def _faults(error: ValidationError, kind: type[Part]) -> list[str]:
    """Turn pydantic's report into one line a fault, the key first."""
    lines = []
    for fault in error.errors(include_url=False):
        key = _key(fault["loc"], kind)
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            names = list(_part_at(fault["loc"], kind).model_fields)
            text = f"unknown key{_told(str(fault['loc'][-1]), names)}"
        elif fault["type"] == "union_tag_invalid":
            given, names = str(fault["ctx"]["tag"]), list(_tagged(kind, str(fault["loc"][0])))
            key, text = f"{key}.step", f"there is no step {given!r}{_told(given, names)}"
        elif fault["type"] == "union_tag_not_found":
            key, text = f"{key}.step", "Field required"
        elif fault["type"] in {"model_type", "dict_type", "model_attributes_type"}:
            text = "must be keys with values, `key: value`"
            key = key or "the file"
        lines.append(f"{key}: {text}" if key else text)
    return lines


def _told(given: str, names: Sequence[str]) -> str:
    """Give the closest of the names that there are, and all of them."""
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (there are: {', '.join(names)})"


def _key(location: tuple[int | str, ...], kind: type[Part]) -> str:
    """Write the path of a key as people do: without the tag that tells a list's parts apart."""
    tagged = len(location) > 2 and location[2] in _tagged(kind, str(location[0]))
    return ".".join(str(step) for step in (location[:2] + location[3:] if tagged else location))


def _part_at(location: tuple[int | str, ...], kind: type[Part]) -> type[Part]:
    """Follow the path of a key, over lists and names of tasks, to the part that holds it."""
    part = kind
    tags: Mapping[str, type[Part]] = {}
    for step in location[:-1]:
        if step in tags:
            part = tags[str(step)]
        elif step in part.model_fields:
            tags = _tagged(part, str(step))
            part = next(_parts_in(part.model_fields[str(step)].annotation), part)
    return part


def _tagged(part: type[Part], name: str) -> dict[str, type[Part]]:
    """Give the parts that a list of a part may hold, by the value of their `step`."""
    if name not in part.model_fields:
        return {}
    found = _parts_in(part.model_fields[name].annotation)
    steps = {one: one.model_fields.get("step") for one in found}
    return {get_args(field.annotation)[0]: one for one, field in steps.items() if field}


def _parts_in(annotation: object) -> Iterator[type[Part]]:
    """Find the parts in an annotation such as `dict[str, TaskPart]`."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts_in(inner)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without two traps: a key given twice means its last value, and 1e-3 is a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):  # a tag can claim it of any node
            plain = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=True) for key in plain]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(twice[0])!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)
