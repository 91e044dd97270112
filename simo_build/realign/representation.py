"""`representation`: a map of low rank beside every block, trained with the heads or without.

From arXiv 2504.11268: f(x) + B A x for every block f; or, as the paper's released code has it,
y - U ReLU(D y) of the block's output y = f(x). A block is not linear, so that its weights cannot
take the map in: two small products a block stay in the graph, R / 6 D of a block's own work where
its MLP is four times as wide as it is. The released form has a ReLU of R numbers a token beside.

Shapes: R rank, D width.
"""

from typing import cast

from simo_build.adapters import AnyAdapter, begin
from simo_build.encoder import Encoder
from simo_build.realign.bench import Bench, Log, SharedModel, seeded
from simo_build.realign.joint import joined, train_jointly
from simo_build.statedict import on_cpu
from simo_build.steps import RepresentationStep


def representation(
    bench: Bench, model: SharedModel, step: RepresentationStep
) -> tuple[SharedModel, Log]:
    """Train maps, and heads if the step says so; the best epoch stays, the blocks as they are."""
    joint = joined(bench, model, step)
    beside(joint.encoder, step)
    joint.heads.requires_grad_(step.heads == "all")
    trained = sum(p.numel() for p in joint.encoder.parameters() if p.requires_grad)
    log = train_jointly(bench, joint, step)
    joint.heads.requires_grad_(True)  # for the steps that follow
    encoder = on_cpu(joint.encoder.weights())
    return SharedModel(encoder, joint.by_task()), {**log, "adapter_weights": trained}


def beside(encoder: Encoder, step: RepresentationStep) -> None:
    """Put maps that start at zero beside all blocks; only they are trained."""
    encoder.requires_grad_(False)
    encoder.adapt((step.variant, step.rank))
    generator = seeded(step.seed)
    for block in encoder.vit.blocks:
        adapter = cast("AnyAdapter", block.adapter)
        begin(adapter, generator)
        adapter.requires_grad_(True)
