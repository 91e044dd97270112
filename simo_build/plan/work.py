"""The sections of a plan on what a build does: merge, re-align, export."""

from collections.abc import Iterator, Sequence

from simo_build.build import opened, provenance_of
from simo_build.evidence import KINDS, Gathered
from simo_build.fit import steps_of
from simo_build.learned import LearnedMethod
from simo_build.learned.settings import held_out
from simo_build.merge import MergeMethod, candidates
from simo_build.merging import any_method, merger_of
from simo_build.plan.site import Site
from simo_build.plan.words import many, with_labels
from simo_build.proxies import SELECT
from simo_build.stages import Result
from simo_build.steps import AnyStep, CalibrateStep, HeadStep, JointStep
from simo_export.bundle import check_folder


def merging(site: Site) -> Iterator[str]:
    """Say how experts are merged, and what is looked at for that."""
    if site.recipe.random_seed is not None:
        yield "1 merge   nothing: the encoder is the random base"
        return
    choice, method = site.recipe.merge, any_method(site.recipe.merge.method)
    tried = candidates(choice.fixed(), choice.choose)
    work = site.complete
    if work is not None:
        site.attempt(lambda: merger_of(work).rehearse(tried))
    yield f"1 merge   {method.name}, {_chosen(site, len(tried))}{_kept(site, site.merged)}"
    if isinstance(method, LearnedMethod):
        yield from _learnt(site, method, tried)
    elif method.needs:
        yield _evidence(site, method)


def _chosen(site: Site, count: int) -> str:
    choice = site.recipe.merge
    if not choice.choose:
        return "no choice"
    names = " and ".join(choice.choose)
    by = f"by {site.images('select')} of select with labels"
    if choice.by != SELECT:
        by = f"by {choice.by} on {choice.images} images of realign without labels"
    return f"{many(count, 'candidate')} of {names}, chosen {by}"


def _learnt(site: Site, method: LearnedMethod, tried: Sequence[dict[str, object]]) -> Iterator[str]:
    images = site.recipe.merge.images
    for params in tried:
        own = {k: v for k, v in params.items() if not k.startswith("lines.")}
        settings = method.settings(**own)
        learns = images - held_out(images, settings.hold)
        steps = steps_of(int(settings.epochs), learns, int(settings.batch))
        labels = "with" if settings.loss == "labels" else "without"
        yield f"  learns  {many(steps, 'step')} on {images} images of realign {labels} labels"


def _evidence(site: Site, method: MergeMethod) -> str:
    images, kind = site.recipe.merge.images, method.needs
    told = f"  gathers {kind} of every expert on {images} images of realign"
    labels = "with" if not method.walks and KINDS[kind].labels else "without"
    work = site.complete
    kept = work is not None and not method.walks and Gathered(work, kind).kept()
    return f"{told} {labels} labels{' [kept from an earlier build]' if kept else ''}"


def realigning(site: Site) -> Iterator[str]:
    """Say what every step trains, for how long and on what."""
    steps = site.recipe.realign
    if site.recipe.random_seed is not None or not steps:
        yield f"2 realign nothing: heads stay as they are{_advice(site)}"
        return
    yield f"2 realign {many(len(steps), 'step')}{_kept(site, site.aligned)}"
    for step in steps:
        yield f"  {step.step}: {_step(site, step)}"


def _advice(site: Site) -> str:
    if site.recipe.random_seed is not None or site.recipe.data is None:
        return ""
    return ", and lose what merging cost; `realign: [{step: distill}]` needs no labels"


def _step(site: Site, step: AnyStep) -> str:
    if isinstance(step, CalibrateStep):
        judged = f"{site.images('select')} of select {with_labels(step.by == 'select')} labels"
        by = f"chosen by {judged}, " if step.choose.given() else ""
        return f"the encoder, {by}on {step.images} images of realign, without labels"
    mirrored = " and their mirror images" if step.flip else ""
    seen = f"{site.images('realign')} of realign{mirrored}, {with_labels(step.labels)} labels"
    if isinstance(step, JointStep):
        fresh = ", fresh in every epoch" if step.fresh else ""
        seen += f", {step.views} views of each{fresh}" if step.views > 1 else ""
        seen += f"; {site.images('unlabelled')} of unlabelled" if step.unlabelled else ""
    labels = with_labels(step.by == "select")
    best = f"the best epoch by {site.images('select')} of select, {labels} labels"
    heads = many(len(site.recipe.tasks), "head")
    both = "the encoder" if getattr(step, "heads", "all") == "none" else f"the encoder and {heads}"
    what = f"{heads}, each" if isinstance(step, HeadStep) else f"{both},"
    return f"{what} {_steps(site, step)} in {many(step.epochs, 'epoch')} on {seen}; {best}"


def _steps(site: Site, step: HeadStep | JointStep) -> str:
    if "realign" not in site.counts:
        return "an unknown number of steps"
    return many(steps_of(step.epochs, site.learnt_from(step), step.batch), "step")


def exporting(site: Site) -> Iterator[str]:
    """Say what is exported and compared, and whether it is there already."""
    asked = site.recipe.export.images
    count = min(asked, site.counts.get("select", asked))
    gate = many(count, "image") + (" of noise" if site.recipe.data is None else " of select")
    site.attempt(lambda: check_folder(site.out))
    precisions = ", ".join(site.recipe.export.precisions)
    graphs = f"{2 + len(site.recipe.tasks)} graphs in {precisions}"
    yield (f"3 export  {graphs} to {site.out}, compared with PyTorch on {gate}{_there(site)}")


def _there(site: Site) -> str:
    work, bundle = site.complete, opened(site.out)
    if work is None or bundle is None or site.merged is None or site.aligned is None:
        return " [a bundle is there, and would be replaced]" if bundle is not None else ""
    key = provenance_of(work, site.merged, site.aligned)["key"]
    same = bundle.manifest.provenance.get("key") == key
    return " [is there]" if same else " [a bundle is there, and would be replaced]"


def _kept(site: Site, result: Result | None) -> str:
    return " [kept from an earlier build]" if result is not None else ""
