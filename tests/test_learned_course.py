"""The course of learning: losses and gradients against float64, what is held out, what is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simo_build.encoder import Encoder
from simo_build.fit import snapshot
from simo_build.learned import LEARNED, Learning, Scaled, Settings
from simo_build.learned.course import Course, learn, split_rows
from simo_build.learned.lessons import by_features, by_itself
from simo_build.learned.settings import held_out
from simo_build.names import Name
from simo_build.progress import Silent
from simo_build.recipe import EncoderPart, ImagePart
from simo_build.teaching import uncertainty
from simo_runtime.errors import TrainError
from tests.tiny import opened, write_recipe, write_workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("course")).parent


def course_of(place: Path, **params: Any) -> tuple[Learning, Course, Scaled]:
    merging = {"method": "adamerging", "params": params, "images": 6}
    workshop = opened(write_recipe(place, merge=merging, realign=[]))
    learning = Learning(workshop, LEARNED["adamerging"])
    settings = learning.method.settings(**params)
    mixture = learning.method.mixture(list(learning.deltas.values()), **params)
    assert isinstance(mixture, Scaled)
    return learning, learning.course(settings), mixture


def in_float64(
    learning: Learning, mixture: Scaled, rows: Sequence[int], loss: str
) -> dict[str, float]:
    """Work the losses out by task, with a float64 model whose weights are the merged ones."""
    work, found = learning.work, {}
    images = torch.from_numpy(work.unlabelled(6).images)[list(rows)]
    merged = {n: t.double() + mixture()[n].detach().double() for n, t in work.base.items()}
    for task, expert in work.experts.items():
        encoder = Encoder(work.recipe.encoder, work.recipe.image).double().eval()
        head, raws, taps = work.expert_heads()[task].double().eval(), [], []
        for weights in (merged, expert.encoder):
            encoder.vit.load_state_dict(weights)
            with torch.no_grad():
                taps.append([tap.numpy() for tap in tapped64(encoder, images)])
                raws.append(head([torch.from_numpy(tap) for tap in taps[-1]]).numpy())
        if loss == "features":
            gaps = [np.abs(a - b).mean() for a, b in zip(*taps, strict=True)]
            found[task] = float(np.mean(gaps))
        elif task == "depth":
            found[task] = float(np.abs(raws[0] - raws[1]).mean())
        else:
            unit = [raw / np.linalg.norm(raw, axis=1, keepdims=True) for raw in raws]
            found[task] = float((1 - (unit[0] * unit[1]).sum(axis=1)).mean())
    return found


def tapped64(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Run an encoder in float64: its own forward pass turns pixels into float32."""
    unit = (images.double() / 255 - encoder.mean.double()) / encoder.std.double()
    taps = encoder.vit.forward_intermediates(
        unit.permute(0, 3, 1, 2),
        indices=[tap - 1 for tap in encoder.part.taps],
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return [torch.cat((prefix, patches), dim=1) for patches, prefix in taps]


@pytest.mark.parametrize("loss", ["outputs", "features"])
def test_losses_are_those_of_a_float64_model_of_the_merged_weights(loss: str, place: Path) -> None:
    learning, course, mixture = course_of(place, loss=loss, start=0.4)
    rows = [0, 3, 5]
    with torch.no_grad():
        plain = course.measured(course.merged(mixture()), torch.tensor(rows)) * course.units
    expected = in_float64(learning, mixture, rows, loss)
    for task, found in zip(learning.deltas, plain.tolist(), strict=True):
        assert found == pytest.approx(expected[task], rel=1e-4)


@pytest.mark.parametrize("loss", ["outputs", "features", "labels"])
def test_gradients_are_those_of_finite_differences(loss: str, place: Path) -> None:
    _, course, mixture = course_of(place, loss=loss, granularity="layer", start=0.4)
    index = torch.arange(6)

    def value() -> Tensor:
        return course.losses(course.merged(mixture()), index).mean()

    value().backward()
    slope, step = mixture.weights.grad, 5e-3
    assert slope is not None
    for place_TG in ((0, 0), (1, 1), (0, 2)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                mixture.weights[place_TG] += sign * step
                ends.append(float(value()))
                mixture.weights[place_TG] -= sign * step
        assert float(slope[place_TG]) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=0.05, abs=2e-4
        )


def test_the_mean_loss_of_many_images_is_that_of_all_at_once(place: Path) -> None:
    _, course, mixture = course_of(place, loss="features")
    rows = torch.arange(6).repeat(4)[:20]  # more than one batch
    with torch.no_grad():
        weights = course.merged(mixture())
        whole = course.losses(weights, rows)
    torch.testing.assert_close(course.measured(weights, rows), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("images", "share", "held"), [(2, 0.25, 1), (2, 0.9, 1), (8, 0.25, 2), (128, 0.25, 32)]
)
def test_a_share_of_the_images_is_held_out(images: int, share: float, held: int) -> None:
    rows, others = split_rows(images, share)
    assert len(others) == held == held_out(images, share)
    assert sorted([*rows.tolist(), *others.tolist()]) == list(range(images))


def test_held_out_images_are_spread_evenly() -> None:
    assert split_rows(8, 0.25)[1].tolist() == [2, 6]


def tiny_course(lessons: Sequence[Any]) -> tuple[Course, Scaled]:
    part = EncoderPart(
        model="vit_tiny_patch16_224",
        options={"embed_dim": 8, "depth": 1, "num_heads": 1},
        taps=(1,),
    )
    encoder = Encoder(part, ImagePart(size=(16, 16)))
    base = snapshot(encoder.vit)
    images = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    delta = {name: torch.ones_like(tensor) for name, tensor in base.items()}
    mixture = Scaled([delta], ["all"] * len(delta), start=0.5)
    course = Course(
        encoder=encoder,
        base=base,
        images=images,
        names=[Name("tiny", f"{row:04d}") for row in range(len(images))],
        lessons=lessons,
        units=torch.ones(len(lessons)),
    )
    return course, mixture


def scripted(values: Sequence[float]) -> Any:
    """A lesson that is as a list says when the one held-out image is measured, and flat else."""
    told = iter(values)

    def lesson(taps: Sequence[Tensor], index: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return taps[0].mean()
        return torch.tensor(next(told))

    return lesson


SETTINGS = Settings(epochs=3, batch=4, lr=0.1)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([5.0, 3.0, 2.0, 4.0], 2),
        ([1.0, 3.0, 2.0, 4.0], 0),
        ([5.0, 3.0, 3.0, 3.0], 1),  # the first of equals
        ([float("nan"), 3.0, 2.0, 4.0], 2),
        ([5.0, 3.0, float("nan"), 4.0], 1),
    ],
)
def test_the_epoch_of_the_lowest_held_out_loss_is_kept(values: list[float], best: int) -> None:
    course, mixture = tiny_course([scripted(values)])
    seen = [mixture.weights.item()]
    mixture.project = lambda: seen.append(mixture.weights.item())  # type: ignore[method-assign]  # one step an epoch
    found = learn(mixture, course, SETTINGS, label="tiny", progress=Silent())
    assert found.epoch == best
    assert mixture.weights.item() == found.state["weights"].item() == seen[best]
    assert len(set(seen)) == len(seen)


def test_a_loss_that_is_not_finite_names_epoch_and_images() -> None:
    def broken(taps: Sequence[Tensor], _: Tensor) -> Tensor:
        return taps[0].mean() * (torch.nan if torch.is_grad_enabled() else 1)

    course, mixture = tiny_course([broken])
    told = r"tiny: the loss is nan in epoch 1, on the images 000\d, .* of the split 'tiny'"
    with pytest.raises(TrainError, match=told):
        learn(mixture, course, SETTINGS, label="tiny", progress=Silent())


def test_the_loss_of_features_by_hand() -> None:
    # two taps: |1 - 0| and |1 - 4| on average over their numbers
    lesson = by_features([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 4.0)])
    ones = torch.ones(1, 2, 2)
    assert lesson([ones, ones], torch.tensor([2])).item() == 2.0


def test_entropy_needs_no_teacher() -> None:
    lesson = by_itself(lambda taps: taps[0], uncertainty)  # type: ignore[arg-type]  # a head is a callable
    flat = torch.zeros(1, 4, 2, 2)
    assert lesson([flat], torch.tensor([0])).item() == pytest.approx(np.log(4))
