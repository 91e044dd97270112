"""What of a recipe asks for labels. A recipe of which nothing does needs no truth at all.

Its tasks may then leave out `target`: nothing is measured, and the best epoch of a step, a
method's parameters and the precisions of the graphs are told by the experts and the model itself.
"""

from collections.abc import Iterator

from simo_build.evidence import KINDS
from simo_build.learned import LEARNED
from simo_build.loading import LoadedRecipe
from simo_build.merge import METHODS
from simo_build.proxies import SELECT
from simo_build.recipe import Recipe
from simo_build.steps import AnyStep, CalibrateStep
from simo_runtime.errors import RecipeError, listing


def check_labels(loaded: LoadedRecipe) -> None:
    """Raise RecipeError if a task has no `target` and the recipe asks for labels; it says where."""
    blind, asking = loaded.recipe.blind, list(asks_for_labels(loaded.recipe))
    if blind and asking:
        raise RecipeError(
            f"{loaded.shown}: tasks.{blind[0]}: `target` says where its truth lies in `data`. It "
            f"can be left out only where nothing asks for labels, and this does:\n{listing(asking)}"
        )


def asks_for_labels(recipe: Recipe) -> Iterator[str]:
    """Say what asks for labels, and how to do without."""
    if recipe.train_missing:
        yield "train_missing: training needs labels"
    choice = recipe.merge
    if choice.choose and choice.by == SELECT:
        yield "merge.choose, by the select split; merge.by may be a proxy, which needs none"
    kind = KINDS.get(METHODS[choice.method].needs) if choice.method in METHODS else None
    if kind is not None and kind.labels:
        yield f"merge.method {choice.method} looks at labels"
    learned = LEARNED.get(choice.method)
    if learned is not None and learned.settings(**choice.params).loss == "labels":
        yield f"merge.method {choice.method} learns from labels; `loss` may be another"
    for number, step in enumerate(recipe.realign):
        yield from (f"realign.{number} ({step.step}): {what}" for what in _of_step(step))


def _of_step(step: AnyStep) -> Iterator[str]:
    if not isinstance(step, CalibrateStep) and step.labels:
        yield "labels is true"
    chooses = not isinstance(step, CalibrateStep) or step.choose.given()
    if chooses and step.by == SELECT:
        yield "by is select; teachers need none"
