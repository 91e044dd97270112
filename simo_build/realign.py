"""Re-align what merging bent out of shape: the recipe's `realign` steps, one after another.

`head` (arXiv 2504.11268, section 4): freeze the shared encoder, compute the features of the
re-alignment images once, and train every head on them, from the expert's weights on.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simo_build.data import Samples
from simo_build.evaluate import measure_head
from simo_build.features import take
from simo_build.fit import Outcome, fit
from simo_build.heads import Head
from simo_build.losses import TORCH_KINDS
from simo_build.progress import Progress
from simo_build.recipe import HeadStep
from simo_runtime.tasks import TaskSpec


def realign_head(
    head: Head,
    spec: TaskSpec,
    *,
    step: HeadStep,
    images: int,
    features: Mapping[str, Sequence[Tensor]],
    samples: Mapping[str, Samples],
    progress: Progress,
) -> Outcome:
    """Train one head in place on the features of `realign`; its best epoch on `select` stays.

    `images` is how many of them count: mirrored images come last and are left out without `flip`.
    """
    kind = TORCH_KINDS[spec.kind]
    where = next(head.parameters()).device
    truth = torch.from_numpy(samples["realign"].truths[spec.name])

    def loss_of(index: Tensor) -> Tensor:
        raw = head(take(features["realign"], index, where))
        return kind.loss(raw, truth[index].to(where))

    return fit(
        head,
        spec=spec,
        schedule=step,
        limits=step,
        images=images,
        generator=torch.Generator().manual_seed(step.seed),
        loss_of=loss_of,
        measure=lambda: measure_head(
            head, spec, features=features["select"], samples=samples["select"]
        ),
        label=f"re-align {spec.name}",
        progress=progress,
    )
