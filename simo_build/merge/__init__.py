"""Merging methods: METHODS holds one short function each, deltas in, one delta out.

A delta is tuned - base, name to tensor, of one task; the merged encoder is base + delta. A
function's keyword arguments are the recipe's `merge.params`. Functions compute in float32, may
pass over the deltas several times, and never write to them. docs/merging.md has them in a table.
"""

from simo_build.merge.combined import by_weight, combined, rehearse
from simo_build.merge.depth import ByLayer, by_layer, depths
from simo_build.merge.disentangle import awd
from simo_build.merge.elementwise import (
    average,
    breadcrumbs,
    consensus,
    dare,
    magmax,
    task_arithmetic,
)
from simo_build.merge.information import fisher, fisher_labelled
from simo_build.merge.inputs import lot, regmean, regmean_plusplus
from simo_build.merge.iterative import doge, wudi
from simo_build.merge.layers import (
    balanced_alpha,
    check_lines,
    lines,
    lines_on_top,
    scaled_by_layer,
)
from simo_build.merge.parameters import number
from simo_build.merge.ranked import dare_ties, della, pcb, ties
from simo_build.merge.reading import Delta, Moved, total
from simo_build.merge.registry import (
    METHODS,
    Evidence,
    MergeMethod,
    candidates,
    method,
    method_named,
)
from simo_build.merge.spectral import iso_c, iso_cts, tsv_m
from simo_build.merge.subspace import esm

__all__ = [
    "METHODS",
    "ByLayer",
    "Delta",
    "Evidence",
    "MergeMethod",
    "Moved",
    "average",
    "awd",
    "balanced_alpha",
    "breadcrumbs",
    "by_layer",
    "by_weight",
    "candidates",
    "check_lines",
    "combined",
    "consensus",
    "dare",
    "dare_ties",
    "della",
    "depths",
    "doge",
    "esm",
    "fisher",
    "fisher_labelled",
    "iso_c",
    "iso_cts",
    "lines",
    "lines_on_top",
    "lot",
    "magmax",
    "method",
    "method_named",
    "number",
    "pcb",
    "regmean",
    "regmean_plusplus",
    "rehearse",
    "scaled_by_layer",
    "task_arithmetic",
    "ties",
    "total",
    "tsv_m",
    "wudi",
]
