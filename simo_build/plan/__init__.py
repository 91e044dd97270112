"""What a build would do: its stages, what each reads, and how large it is.  Nothing is computed.

Weights and images that are there are opened, since a build would refuse some of them; what is not
there is told, and the rest is planned without it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from simo_build.loading import LoadedRecipe
from simo_build.merging import check_recipe
from simo_build.plan.inputs import data, model, weights
from simo_build.plan.memory import room
from simo_build.plan.site import Site
from simo_build.plan.words import many
from simo_build.plan.work import exporting, merging, realigning

__all__ = ["Plan", "many", "plan"]

# The parts of a plan in their order.
SECTIONS: tuple[Callable[[Site], Iterator[str]], ...] = (
    model,
    weights,
    data,
    merging,
    realigning,
    exporting,
    room,
)


@dataclass(frozen=True)
class Plan:
    """Lines for people, and what stands in the way of the build, empty if nothing does."""

    lines: Sequence[str]
    faults: Sequence[str]


def plan(loaded: LoadedRecipe, out: Path) -> Plan:
    """Plan a build; RecipeError for a recipe that no data and no weights could help."""
    check_recipe(loaded)
    site = Site(loaded, out)
    lines = [line for section in SECTIONS for line in section(site)]
    return Plan(lines, site.faults)
