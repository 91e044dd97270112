"""The merge stage: gather what the method needs, merge, and choose its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simo_build.checkpoints import encoder_file, merged_description
from simo_build.choice import judge
from simo_build.devices import device
from simo_build.evidence import Gathered
from simo_build.hashing import digest
from simo_build.learned import LEARNED, LearnedMethod, Learning
from simo_build.loading import LoadedRecipe
from simo_build.merge import (
    METHODS,
    Delta,
    Evidence,
    MergeMethod,
    Moved,
    candidates,
    check_lines,
    combined,
    lines_on_top,
    rehearse,
)
from simo_build.merge.combined import apart
from simo_build.needs import check_labels
from simo_build.progress import Progress
from simo_build.several import refuse_several
from simo_build.stages import Result, Stages
from simo_build.statedict import StateDict, add, subtract
from simo_build.walk import walked
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError, unknown


def any_method(name: str) -> MergeMethod | LearnedMethod:
    """Look up the method that a recipe names, or say which ones give one encoder for all tasks."""
    refuse_several(name)
    found = METHODS.get(name) or LEARNED.get(name)
    if found is None:
        raise unknown("merge.method", name, [*METHODS, *LEARNED])
    return found


def check_recipe(loaded: LoadedRecipe) -> None:
    """Refuse, before any heavy work, what the recipe cannot do."""
    recipe = loaded.recipe
    method = any_method(recipe.merge.method)
    if recipe.random_seed is None:
        chosen = [name for name in recipe.merge.choose if not name.startswith("lines.")]
        method.check([*recipe.merge.params, *chosen])
        check_labels(loaded)
        if (isinstance(method, LearnedMethod) or method.needs) and recipe.data is None:
            does = "learns on" if isinstance(method, LearnedMethod) else "looks at"
            raise RecipeError(
                f"{loaded.shown}: merge.method {method.name} {does} images, so it needs `data`"
            )
    elif recipe.realign or recipe.merge.choose:
        raise RecipeError(
            f"{loaded.shown}: base {recipe.base} is for measuring speed; "
            "`realign` and `merge.choose` need a real base"
        )


def merge(work: Workshop) -> Result:
    """Merge the experts' encoders; parameters in `choose` are chosen as `merge.by` says.

    The result's tensors are the shared encoder's. The log has every candidate's row.
    """
    if work.recipe.random_seed is not None:
        return Result(work.base, {"random": True}, digest({"random": work.base_hash}))
    choice = work.recipe.merge
    merger = merger_of(work)
    tried = candidates(choice.fixed(), choice.choose)
    merger.rehearse(tried)
    return work.stages.run(
        "merge",
        merge_inputs(work),
        lambda: _merge(merger, tried),
    )


def merge_inputs(work: Workshop) -> dict[str, Any]:
    """Give everything that the merged encoder depends on."""
    return {**work.inputs(), "merge": work.recipe.merge.model_dump(mode="json")}


def merge_to(loaded: LoadedRecipe, out: Path, *, progress: Progress) -> None:
    """Merge with a model and write the shared encoder; `streamed` does it without one if it can."""
    check_recipe(loaded)
    work = Workshop(loaded, Stages(out.parent / ".stages", progress))
    merged = merge(work)
    hashes = {} if loaded.recipe.random_seed is not None else work.inputs()["experts"]
    about = merged_description(loaded.recipe, work.base_hash, hashes, merged.log.get("params", {}))
    with encoder_file(out, merged.tensors, about) as file:
        for name, tensor in merged.tensors.items():
            file.put(f"encoder.{name}", 0, tensor)


def merger_of(work: Workshop) -> "Merger | Learner":
    """Give what merges as the recipe says."""
    method = any_method(work.recipe.merge.method)
    return Learner(work, method) if isinstance(method, LearnedMethod) else Merger(work, method)


@dataclass
class Merger:
    """A method and what it merges; what the method needs is gathered when it is first called."""

    work: Workshop
    method: MergeMethod

    def rehearse(self, tried: Sequence[Mapping[str, Any]]) -> None:
        """Refuse parameters out of range before any heavy work."""
        for params in tried:
            rehearse(self.method, [*self.work.base], len(self.work.recipe.tasks), params)
        if self.method.needs:
            self.work.check_images(self.work.recipe.merge.images)

    @cached_property
    def deltas(self) -> list[Delta]:
        """The experts' differences from the base, on the GPU if there is one and it saves time."""
        deltas = [subtract(one.encoder, self.work.base) for one in self.work.experts.values()]
        return [Moved(delta, device()) for delta in deltas] if self.method.heavy else [*deltas]

    @cached_property
    def evidence(self) -> list[Evidence] | None:
        """What the method needs beside the deltas, gathered once for all candidates."""
        if not self.method.needs:
            return None
        every = Gathered(self.work, self.method.needs).read()
        return [Moved(one, device()) for one in every] if self.method.heavy else [*every]

    def merged(self, params: Mapping[str, Any]) -> Delta:
        """Give the merged delta; `lines` on top of a method that walks see all of its walk."""
        if not self.method.walks:
            return combined(self.method, self.deltas, self.evidence, params=params)
        own, lines = apart(params)
        merged = walked(self.work, self.method, self.deltas, own)
        return lines_on_top(merged, self.deltas, **lines) if lines else merged

    def __call__(self, params: Mapping[str, Any]) -> StateDict:
        """Give the weights of the shared encoder."""
        merged = self.merged(params)
        with torch.inference_mode():
            delta = {name: merged[name].cpu() for name in merged}
        return add(self.work.base, delta)

    def about(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Say which images the method itself has looked at; nothing if it needs none."""
        if not self.method.needs:
            return {}
        return {"evidence": Gathered(self.work, self.method.needs).about()}


@dataclass
class Learner:
    """As `Merger`, of a method that learns its coefficients on images."""

    work: Workshop
    method: LearnedMethod

    @cached_property
    def learning(self) -> Learning:
        """The method on the workshop's experts and images; remembers what was learnt."""
        return Learning(self.work, self.method)

    def rehearse(self, tried: Sequence[Mapping[str, Any]]) -> None:
        """Refuse parameters out of range, and too few images, before any heavy work."""
        for params in tried:
            own, lines = apart(params)
            self.learning.rehearse(own)
            if lines:
                check_lines(self.work.base, **lines)

    def __call__(self, params: Mapping[str, Any]) -> StateDict:
        """Give the weights of the shared encoder; the same parameters are learnt once."""
        own, lines = apart(params)
        merged: Delta = self.learning.delta(own)
        if lines:
            merged = lines_on_top(merged, list(self.learning.deltas.values()), **lines)
        return add(self.work.base, merged)

    def about(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Say how a candidate was learnt, and from how many images and labels."""
        return {"learned": self.learning.about(apart(params)[0])}


def _merge(
    merger: Merger | Learner, tried: Sequence[Mapping[str, Any]]
) -> tuple[StateDict, dict[str, Any]]:
    """Merge the one candidate, or judge them all and merge the best."""
    work, choice = merger.work, merger.work.recipe.merge
    if not choice.choose:
        return merger(tried[0]), {"params": tried[0], **merger.about(tried[0])}
    judged, rows = judge(work), []
    for params in tried:
        rows.append({"params": params, **judged(merger(params))})
        work.stages.progress.say(f"merge: {params}: {choice.by}: {rows[-1]['score']:.4f}")
    best = max(rows, key=lambda row: np.nan_to_num(row["score"], nan=-np.inf))
    log = {"params": best["params"], "by": choice.by, **judged.about(), "tried": rows}
    return merger(best["params"]), {**log, **merger.about(best["params"])}
