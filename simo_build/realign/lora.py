"""`lora`: low-rank changes of the encoder's linear layers, trained with the heads, then folded in.

A layer's weight becomes W + s B A (arXiv 2106.09685), which is a plain weight again.

Shapes: R rank, I inputs, O outputs of a layer.
"""

import torch
from torch import Tensor, nn

from simo_build.encoder import Encoder
from simo_build.realign.bench import Bench, Log, SharedModel
from simo_build.realign.joint import joined, train_jointly
from simo_build.statedict import StateDict, on_cpu
from simo_build.steps import LoraStep


def lora(bench: Bench, model: SharedModel, step: LoraStep) -> tuple[SharedModel, Log]:
    """Train adapters and heads, and fold the adapters into the encoder; the best epoch stays."""
    joint = joined(bench, model, step)
    adapt(joint.encoder, step)
    trained = sum(p.numel() for p in joint.encoder.parameters() if p.requires_grad)
    log = train_jointly(bench, joint, step)
    encoder = on_cpu(folded(joint.encoder))
    return SharedModel(encoder, joint.by_task()), {**log, "adapter_weights": trained}


def adapt(encoder: Encoder, step: LoraStep) -> None:
    """Put adapters beside linear layers of all blocks; only they are trained, and start at zero."""
    # Imported here: peft takes seconds to import, and only this step needs it.
    from peft import LoraConfig, inject_adapter_in_model

    names = [
        name
        for name, module in encoder.vit.named_modules()
        if name.startswith("blocks.")
        and isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in step.layers
    ]
    config = LoraConfig(
        r=step.rank,
        lora_alpha=step.rank * step.scale,  # type: ignore[arg-type]  # it is only divided by r
        target_modules=names,
    )
    with torch.random.fork_rng():
        torch.manual_seed(step.seed)
        inject_adapter_in_model(config, encoder.vit)


@torch.no_grad()
def folded(encoder: Encoder) -> StateDict:
    """Give the weights of an adapted encoder under timm's names; s B A is added in float64."""
    found = dict(encoder.vit.state_dict())
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in found.items()
        if ".lora_" not in name
    }
    for name, module in encoder.vit.named_modules():
        if f"{name}.lora_A.default.weight" in found:
            down_RI, up_OR = (found[f"{name}.lora_{half}.default.weight"] for half in "AB")
            key = f"{name}.weight"
            plain[key] = _added(plain[key], up_OR, down_RI, float(module.scaling["default"]))
    return plain


def _added(weight_OI: Tensor, up_OR: Tensor, down_RI: Tensor, scale: float) -> Tensor:
    change_OI = scale * (up_OR.double() @ down_RI.double())
    return (weight_OI.double() + change_OI).to(weight_OI.dtype)
