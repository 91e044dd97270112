"""LiNeS: shallow layers keep more of the base, deep ones take more of the experts."""

from collections.abc import Iterable, Sequence

from simo_build.merge.depth import block_of, depths
from simo_build.merge.parameters import number
from simo_build.merge.reading import Delta, Lazily, total
from simo_build.merge.registry import method
from simo_runtime.errors import RecipeError


@method(paper="https://arxiv.org/abs/2410.17146", elementwise=True)
def lines(deltas: Sequence[Delta], *, beta: float, alpha: float | None = None) -> Delta:
    """Add the deltas up and scale the sum by layer; alpha is 1 / T unless it is given."""
    slope = number("beta", beta)
    start = 1 / len(deltas) if alpha is None else number("alpha", alpha)
    return scaled_by_layer(
        Lazily(deltas[0], lambda name: total(deltas, name)), alpha=start, beta=slope
    )


def scaled_by_layer(delta: Delta, *, alpha: float, beta: float) -> Delta:
    """Scale block l of L by alpha + beta * l / (L - 1), and what lies outside blocks by alpha.

    The delta may be any method's; `balanced_alpha` gives the paper's alpha for it.
    """
    scales = layer_scales(delta, alpha=alpha, beta=beta)
    return Lazily(delta, lambda name: scales[name] * delta[name].float())


def lines_on_top(
    merged: Delta, deltas: Sequence[Delta], *, beta: float, alpha: float | str = "balanced"
) -> Delta:
    """Scale what a method made of the deltas by layer; alpha is the paper's unless it is given."""
    check_lines(merged, beta=beta, alpha=alpha)
    first = balanced_alpha(deltas, merged) if alpha == "balanced" else float(alpha)
    return scaled_by_layer(merged, alpha=first, beta=float(beta))


def check_lines(names: Iterable[str], *, beta: object, alpha: object = "balanced") -> None:
    """Refuse values of `merge.lines` that are no numbers, and names without a depth."""
    slope = number("lines.beta", beta)
    start = 0.0 if alpha == "balanced" else number("lines.alpha", alpha)
    layer_scales(names, alpha=start, beta=slope)


def layer_scales(names: Iterable[str], *, alpha: float, beta: float) -> dict[str, float]:
    """Give the scale of every tensor by the number of its block."""
    inside = {name: block_of(name) is not None for name in names}
    if not any(inside.values()):
        raise RecipeError(
            "merge: lines scales by depth, but no tensor is named like blocks.3.mlp.fc1.weight"
        )
    return {n: alpha + (beta * depth if inside[n] else 0) for n, depth in depths(inside).items()}


def balanced_alpha(deltas: Sequence[Delta], merged: Delta) -> float:
    """Give the alpha of the paper for a merged delta: |sum of deltas|_1 / |merged|_1 / T."""
    norms = [
        sum(float(read(name).double().abs().sum()) for name in deltas[0])
        for read in (lambda name: total(deltas, name), merged.__getitem__)
    ]
    if norms[1] == 0:
        raise RecipeError("merge: lines cannot balance a merged delta that is zero everywhere")
    return norms[0] / norms[1] / len(deltas)
