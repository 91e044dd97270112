"""Train the sample's base encoder and its three experts again, from nothing but drawn rooms.

    python samples/rooms/train.py        # or `make rooms`; about half an hour on 2 CPU cores

The base learns all three tasks at once on rooms of its own (`pretrain`), briefly; each expert then
learns one task on other rooms (`train`). Results replace base.safetensors and experts/.
"""

import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from samples.rooms.render import write_dataset  # noqa: E402  # found through the path above
from simo_build.augment import flipped  # noqa: E402
from simo_build.checkpoints import write_tensors  # noqa: E402
from simo_build.data import Samples, load_split  # noqa: E402
from simo_build.encoder import Encoder, randomise  # noqa: E402
from simo_build.fit import shuffled  # noqa: E402
from simo_build.heads import make_head  # noqa: E402
from simo_build.loading import LoadedRecipe, load_recipe  # noqa: E402
from simo_build.losses import TORCH_KINDS  # noqa: E402
from simo_build.progress import Bars  # noqa: E402
from simo_build.train import feature_shape, train_expert  # noqa: E402

DATA = ROOT / "data"
SIZE = (120, 160)
JOBS = os.cpu_count() or 1
SPLITS = {"pretrain": 700, "train": 900, "realign": 96, "select": 32, "test": 48}
EPOCHS, BATCH, RATE = 30, 32, 1e-3


def main() -> None:
    """Draw the rooms, train the base, then the experts."""
    progress = Bars()
    write_dataset(DATA / "rooms", SIZE, SPLITS, 0, processes=JOBS)
    loaded = load_recipe(str(HERE / "rooms.yaml"), data=DATA)
    base = loaded.locate(loaded.recipe.base)
    if not base.is_file():
        pretrain(loaded, base, progress)
    for task in loaded.recipe.tasks:
        progress.say(str(train_expert(loaded, task, progress)))


def pretrain(loaded: LoadedRecipe, path: Path, progress: Bars) -> None:
    """Train encoder and heads on all tasks together; keep the encoder, in float16."""
    recipe = loaded.recipe
    samples = load_pretrain(loaded, progress)
    encoder = Encoder(recipe.encoder, recipe.image)
    randomise(encoder, 0)
    shape = feature_shape(encoder)
    heads = nn.ModuleDict(
        {task: make_head("linear", spec, shape, seed=0) for task, spec in recipe.specs().items()}
    )
    parameters = [*encoder.vit.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    steps = EPOCHS * math.ceil(len(samples) / BATCH)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    order, mirror = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for index in progress.track(list(shuffled(len(samples), BATCH, order)), f"base, {epoch}"):
            optimiser.zero_grad(set_to_none=True)
            loss = joint_loss(loaded, encoder, heads, samples, index, mirror)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimiser.step()
            cycle.step()
            total += loss.item()
        progress.say(f"base: epoch {epoch}/{EPOCHS}, loss {total * BATCH / len(samples):.3f}")
    weights = {name: tensor.half() for name, tensor in encoder.weights().items()}
    write_tensors(path, weights, {"trained_by": "samples/rooms/train.py"})


def joint_loss(
    loaded: LoadedRecipe,
    encoder: Encoder,
    heads: nn.ModuleDict,
    samples: Samples,
    index: Tensor,
    mirror: torch.Generator,
) -> Tensor:
    """Add up the losses of all tasks on one batch, mirrored at random."""
    images = torch.from_numpy(samples.images)[index]
    state = mirror.get_state()
    pixels, _ = flipped(images, images, "", mirror)
    with torch.autocast("cpu", torch.bfloat16):
        taps = encoder(pixels)
    loss = torch.zeros(())
    for task, part in loaded.recipe.tasks.items():
        mirror.set_state(state)  # truths are mirrored as the pixels were
        truth = torch.from_numpy(samples.truths[task])[index]
        _, truth = flipped(images, truth, part.kind, mirror)
        raw = heads[task]([tap.float() for tap in taps])
        loss = loss + TORCH_KINDS[part.kind].loss(raw, truth)
    return loss


def load_pretrain(loaded: LoadedRecipe, progress: Bars) -> Samples:
    """Read the base's own rooms."""
    assert loaded.recipe.data is not None
    data = loaded.recipe.data.model_copy(update={"train": "pretrain"})
    recipe = loaded.recipe.model_copy(update={"data": data})
    other = LoadedRecipe(**{**vars(loaded), "recipe": recipe})
    return load_split(other, "train", tasks=list(recipe.tasks), progress=progress)


if __name__ == "__main__":
    main()
