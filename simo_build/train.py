"""Train an expert as the paper does: the head on the frozen encoder, then both together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simo_build.base import load_base
from simo_build.checkpoints import description, write_expert
from simo_build.data import Samples, fingerprint, load_split, say_overlaps
from simo_build.devices import device
from simo_build.encoder import Encoder
from simo_build.features import compute_features
from simo_build.fit import Outcome, snapshot
from simo_build.hashing import code_hash, digest
from simo_build.heads import FeatureShape, make_head
from simo_build.joint import Joint
from simo_build.loading import LoadedRecipe, check_truths
from simo_build.phases import own_metric, train_all, train_head
from simo_build.progress import Progress
from simo_build.saved import States
from simo_build.scalars import Scalars
from simo_build.statedict import StateDict
from simo_build.took import beside, note
from simo_build.workers import workers
from simo_runtime.errors import RecipeError, unknown
from simo_runtime.tasks import TaskSpec


def feature_shape(encoder: Encoder) -> FeatureShape:
    """Say what heads must know of an encoder."""
    return FeatureShape(
        geometry=encoder.geometry,
        taps=len(encoder.part.taps),
        width=encoder.width,
        prefix=encoder.prefix,
    )


def expert_key(loaded: LoadedRecipe, task: str, base_hash: str) -> str:
    """Hash everything that an expert's weights depend on."""
    recipe = loaded.recipe
    assert recipe.data is not None  # training has checked
    return digest(
        {
            **description(recipe, task, base_hash),
            "train": recipe.training(task).model_dump(mode="json", exclude_defaults=True),
            "target": recipe.tasks[task].model_dump(mode="json")["target"],
            **({"loss": own} if (own := recipe.tasks[task].own_loss()) else {}),
            "splits": [recipe.data.train, recipe.data.select],
            "data": fingerprint(loaded, [task]),
        }
    )


def expert_path(loaded: LoadedRecipe, task: str, base_hash: str) -> Path:
    """Say where the expert of a task is: the recipe's file, or the one that training writes."""
    named = loaded.recipe.tasks[task].expert
    if named is not None:
        return loaded.locate(named)
    if loaded.recipe.data is None:
        raise RecipeError(
            f"{loaded.shown}: tasks.{task}: give `expert`, a checkpoint, "
            "or `data` so that one can be trained"
        )
    key = expert_key(loaded, task, base_hash)
    return loaded.experts / loaded.recipe.name / f"{task}-{key[:12]}.safetensors"


def train_expert(
    loaded: LoadedRecipe, task: str, progress: Progress, scalars: Scalars | None = None
) -> Path:
    """Train the expert of one task, unless it is there already; give its file.

    The file's name carries the hash of everything that the weights depend on. What a killed
    training has done lies beside it, and is gone on with; so do the seconds that training took.
    """
    recipe = loaded.recipe
    if task not in recipe.tasks:
        raise unknown(f"task of {loaded.shown}", task, recipe.tasks)
    if recipe.data is None:
        raise RecipeError(f"{loaded.shown}: training needs `data`")
    check_truths(loaded, "training")
    encoder = Encoder(recipe.encoder, recipe.image)
    base_hash = load_base(loaded, encoder)
    path, key = expert_path(loaded, task, base_hash), expert_key(loaded, task, base_hash)
    code = {"expert": key, "code": code_hash(), "torch": torch.__version__}
    states = States(path, digest(code), progress)
    if workers().from_main(path.is_file):
        progress.say(f"{task}: kept {path}")
        return path
    clock = states.clock()
    say_overlaps(loaded, progress)
    spec = recipe.specs()[task]
    seed = recipe.train.seed
    head = make_head(recipe.tasks[task].head, spec, feature_shape(encoder), seed=seed)
    samples = {
        role: load_split(loaded, role, tasks=[task], progress=progress)
        for role in ("train", "select")
    }
    joint = Joint(encoder, {task: head}, bf16=recipe.train.precision == "bf16").to(device())
    room = Training(loaded, spec, joint, samples, states, progress, scalars)
    phases = {"head": _train_head(room), "full": _train_all(room)}
    about = description(recipe, task, base_hash) | {
        "key": key,
        "select": {name: _plain(outcome) for name, outcome in phases.items()},
        "images": {role: len(split) for role, split in samples.items()},
    }

    def write() -> None:
        note(beside(path), clock())
        write_expert(
            path,
            encoder=encoder.weights(),
            head=head.state_dict(),
            about=about,
            half=recipe.train.store == "fp16",
        )
        states.remove()

    workers().from_main(write)  # no process goes on to read what is not there yet
    return path


@dataclass(frozen=True)
class Training:
    """What both phases work with."""

    loaded: LoadedRecipe
    spec: TaskSpec
    joint: Joint
    samples: Mapping[str, Samples]
    states: States
    progress: Progress
    scalars: Scalars | None


def _plain(outcome: Outcome) -> dict[str, Any]:
    return dict(json.loads(json.dumps(vars(outcome))))


def _train_head(work: Training) -> Outcome:
    """Phase 1: the head alone, on features that are computed once, in the main process."""
    spec, encoder, head = work.spec, work.joint.encoder, work.joint.by_task()[work.spec.name]

    @cache
    def features(role: str) -> list[Tensor]:
        return compute_features(encoder, work.samples[role], label=role, progress=work.progress)

    def trained() -> tuple[Outcome, StateDict]:
        outcome = train_head(
            head,
            spec,
            work.loaded.recipe.tasks[spec.name],
            features=features,
            samples=work.samples,
            train=work.loaded.recipe.training(spec.name),
            progress=work.progress,
            saved=work.states.of("head"),
            scalars=work.scalars,
        )
        return outcome, snapshot(head)

    outcome, weights = workers().from_main(trained)
    head.load_state_dict(weights)
    return outcome


def _train_all(work: Training) -> Outcome:
    """Phase 2: encoder and head together, on images that are changed at random."""
    spec = work.spec
    train = work.loaded.recipe.training(spec.name)
    return train_all(
        work.joint,
        {spec.name: spec},
        work.loaded.recipe.tasks,
        samples=work.samples,
        train=train,
        phase=train.full,
        score=own_metric(spec),
        label=f"{spec.name}, all",
        progress=work.progress,
        saved=work.states.of("full"),
        scalars=work.scalars,
    )
