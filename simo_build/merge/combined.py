"""A method's parameters as a recipe gives them: its own, and those of `lines` on top of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from simo_build.merge.layers import check_lines, lines_on_top
from simo_build.merge.reading import Delta
from simo_build.merge.registry import Evidence, MergeMethod

LINES = "lines."


def apart(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell a method's own parameters from those of `lines` on top of it."""
    lines = {name: value for name, value in params.items() if name.startswith(LINES)}
    own = {name: value for name, value in params.items() if name not in lines}
    return own, {name.removeprefix(LINES): value for name, value in lines.items()}


def rehearse(
    method: MergeMethod, names: Sequence[str], tasks: int, params: Mapping[str, Any]
) -> None:
    """Refuse parameters out of range before any heavy work; RecipeError says which."""
    own, lines = apart(params)
    method.rehearse(names, tasks=tasks, **own)
    if lines:
        check_lines(names, **lines)


def combined(
    method: MergeMethod,
    deltas: Sequence[Delta],
    evidence: Sequence[Evidence] | None = None,
    *,
    params: Mapping[str, Any],
) -> Delta:
    """Merge deltas by a method, and scale what it gives by `lines` if that has parameters.

    What is elementwise computes when it is read. A merged delta lies where the deltas lie.
    """
    own, lines = apart(params)
    merged = method.lazily(deltas, evidence, **own)
    return lines_on_top(merged, deltas, **lines) if lines else merged


def by_weight(method: MergeMethod, params: Mapping[str, Any]) -> bool:
    """Whether every weight is merged by itself, so that deltas may be pieces of tensors."""
    own, lines = apart(params)
    balanced = bool(lines) and lines.get("alpha", "balanced") == "balanced"  # that needs all norms
    told = method.elementwise
    return not balanced and (told(**own) if callable(told) else told)
