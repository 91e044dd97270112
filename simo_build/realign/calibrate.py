"""`calibrate`: solve the shared encoder's layers in closed form, on images without labels.

The experts see the same images, and no gradient is taken: seconds to minutes on a CPU. Heads stay.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from simo_build.data import Samples
from simo_build.devices import device
from simo_build.evidence import grams
from simo_build.merge import METHODS, Moved
from simo_build.realign.bench import Bench, Log, SharedModel, looked_at
from simo_build.realign.featcal import Problem, Settings, featcal
from simo_build.realign.joint import joined, lessons_of, units_of
from simo_build.realign.sidebyside import distances
from simo_build.statedict import StateDict, add, subtract
from simo_build.steps import CalibrateStep, DistillStep
from simo_runtime.errors import RecipeError

Params = Mapping[str, float]
Solve = Callable[[Params], StateDict]


def calibrate(bench: Bench, model: SharedModel, step: CalibrateStep) -> tuple[SharedModel, Log]:
    """Calibrate the encoder to the experts; of candidates the best stays, the start included."""
    samples = bench.work.unlabelled(step.images, "realign.images")
    solve = solver(bench, model.encoder, samples, step.method)
    used = looked_at(step.images, 0, 0, 0)
    log: Log = {"method": step.method, "updates": 0}  # nothing is trained
    if step.choose.given():
        found, told = best(bench, model, step, solve)
        used |= looked_at(step.images, 0, *told.pop("select"))
        log |= told
    else:
        log["params"] = step.candidates()[0]
        found = solve(log["params"])
    log["distances"] = told_distances(bench, [model.encoder, found], samples)
    return SharedModel(found, model.heads), {**used, **log}


def solver(bench: Bench, shared: StateDict, samples: Samples, method: str) -> Solve:
    """Give what solves an encoder on some images by a method, for parameters that come later."""
    work = bench.work
    if method == "featcal":
        # in an order of their own: sums must not depend on how a recipe orders its tasks
        experts = [one.encoder for one in sorted(work.experts.values(), key=lambda one: one.hash)]

        def featcalibrated(params: Params) -> StateDict:
            problem = Problem(experts, shared, work.base, Settings(**params))
            return featcal(work.encoder, problem, samples, progress=bench.progress)

        return featcalibrated
    merging = METHODS[method]
    deltas = [subtract(one.encoder, shared) for one in work.experts.values()]
    evidence = [grams(work, task, samples) for task in work.experts]

    def solve(params: Params) -> StateDict:
        """Merge what still parts the experts from the shared encoder."""
        near, seen = ([Moved(one, device()) for one in many] for many in (deltas, evidence))
        try:
            delta = merging(near, seen, **params)
        except RecipeError as error:  # it takes itself for a merge
            told = str(error).removeprefix("merge: ")
            raise RecipeError(f"realign: calibrate by {method}: {told}") from error
        return add(shared, {name: tensor.cpu() for name, tensor in delta.items()})

    return solve


def best(
    bench: Bench, model: SharedModel, step: CalibrateStep, solve: Solve
) -> tuple[StateDict, Log]:
    """Judge the start and every candidate, and give the best; on a tie the first."""
    metric, judge = judge_of(bench, model, step.by)
    found, score = model.encoder, judge(model.encoder)
    rows: list[Log] = [{"params": None, "score": score}]
    for params in step.candidates():
        weights = solve(params)
        rows.append({"params": params, "score": judge(weights)})
        bench.progress.say(f"calibrate: {params}: {metric} {rows[-1]['score']:.4f}")
        if rows[-1]["score"] > score or math.isnan(score):
            found, score = weights, rows[-1]["score"]
    taken = next(row["params"] for row in rows if row["score"] == score)
    select = len(bench.bare("select"))
    labels = select if step.by == "select" else 0
    log = {"params": taken, "by": step.by, "metric": score, "tried": rows}
    return found, {**log, "select": (select, labels)}


def judge_of(bench: Bench, model: SharedModel, by: str) -> tuple[str, Callable[[StateDict], float]]:
    """Give what judges an encoder with the heads as they are, the higher the better, and its name.

    By the select split it is equation 1; by teachers, which need no labels, how near the heads'
    outputs are to the experts' on the same images, 0 at best, -1 where the base is.
    """
    if by == "select":
        return "eq. 1", lambda weights: bench.performance(
            model.heads, bench.features(weights, bench.labelled("select"), "select")
        )
    like = DistillStep(step="distill", by="teachers", views=1)
    lessons = lessons_of(bench, like, bench.bare("select"))
    units = units_of(bench, like, lessons, len(lessons.images))

    def closeness(weights: StateDict) -> float:
        joint = joined(bench, SharedModel(weights, model.heads), like)
        return lessons.closeness(joint, units)

    return "closeness", closeness


def told_distances(bench: Bench, states: Sequence[StateDict], samples: Samples) -> Log:
    """Tell how far every block's tokens were from the experts' before and are now (`distances`)."""
    experts = [one.encoder for one in bench.work.experts.values()]
    before, after = distances(bench.work.encoder, states, experts, samples)
    bench.progress.say(
        f"calibrate: last block's distance from the experts {before[-1]:.4f} -> {after[-1]:.4f}"
    )
    return {"before": before, "after": after}
