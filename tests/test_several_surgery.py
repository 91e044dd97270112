"""Representation surgery on a tiny encoder."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from simo_build.merge import METHODS
from simo_build.several import SEVERAL, SeveralPass, Sight
from simo_build.several.surgery import Correction, Surgery, Trainer, places
from simo_build.statedict import StateDict, add
from simo_runtime.errors import RecipeError
from tests.several import features, moved, sight

AT = ["taps", "blocks"]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return sum(float((a - b).abs().mean()) for a, b in zip(one, other, strict=True))


def operated(seen: Sight, result: SeveralPass, task: int) -> list[Tensor]:
    with result.on(task, seen.encoder):
        return features(seen, add(seen.base, result.deltas[task]))


def test_a_correction_by_hand() -> None:
    # down gives 1 * 2 - 1 * 3 = -1, which the ReLU drops, and 0 * 2 + 2 * 3 = 6;
    # up takes 0.5 * 6 off the first, -1 * 6 off the second
    correct = Correction(2, 2, torch.Generator())
    with torch.no_grad():
        correct.down_RD.copy_(torch.tensor([[1.0, -1.0], [0.0, 2.0]]))
        correct.up_DR.copy_(torch.tensor([[7.0, 0.5], [7.0, -1.0]]))
    assert correct(torch.tensor([[2.0, 3.0]])).tolist() == [[-1.0, 9.0]]


@pytest.mark.parametrize("at", AT)
def test_before_training_nothing_is_corrected(at: str) -> None:
    seen = sight()
    result = SEVERAL["surgery"]([moved(seen, 1), moved(seen, 2)], seen, alpha=0.5, at=at, steps=0)
    merged = METHODS["task_arithmetic"]([moved(seen, 1), moved(seen, 2)], alpha=0.5)
    plain = features(seen, add(seen.base, merged))
    for task in (0, 1):
        assert all(map(torch.equal, operated(seen, result, task), plain))


def test_the_first_step_by_hand() -> None:
    # Adam's first step has the length of the rate in every weight, against the sign of the slope.
    # `up` starts at zero, so that `down` stays, and up[d, r] has the slope
    # -sum(sign(z_d - target_d) * relu(down z)_r): it goes up by the rate where the sum is positive
    seen = sight(taps=(2,))
    merged, expert = (add(seen.base, moved(seen, seed)) for seed in (1, 2))
    found = Surgery(seen.encoder, "taps", rank=2, seed=5)
    down = found.corrections[0].down_RD.detach().double().numpy()
    Trainer(seen, merged, expert, found).train(steps=1, lr=0.01, batch=4, seed=5)
    found_taps = (features(seen, weights)[0] for weights in (merged, expert))
    plain, target = (one.double().numpy().reshape(-1, 8) for one in found_taps)
    slope = -np.sign(plain - target).T @ np.maximum(plain @ down.T, 0)
    after = found.corrections[0]
    assert np.array_equal(after.down_RD.detach().double().numpy(), down)
    np.testing.assert_allclose(after.up_DR.detach().numpy(), -0.01 * np.sign(slope), rtol=1e-3)


@pytest.mark.parametrize("at", AT)
def test_surgery_brings_the_features_nearer_to_those_of_every_expert(at: str) -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    before = SEVERAL["surgery"](deltas, seen, alpha=0.5, at=at, steps=0)
    after = SEVERAL["surgery"](deltas, seen, alpha=0.5, at=at, rank=4, steps=150, lr=0.02)
    for task, delta in enumerate(deltas):
        wanted = features(seen, add(seen.base, delta))
        far, near = (distance(operated(seen, one, task), wanted) for one in (before, after))
        assert near < 0.8 * far


def test_corrections_of_taps_change_no_later_tap() -> None:
    seen = sight()
    merged = add(seen.base, moved(seen, 1))
    plain = features(seen, merged)
    for at, other in (("taps", False), ("blocks", True)):
        found = Surgery(seen.encoder, at, rank=2, seed=0)
        with torch.no_grad():
            found.corrections[0].up_DR.fill_(1.0)  # the first tap is after the first block
        with found.attached(seen.encoder):
            corrected = features(seen, merged)
        assert_close(corrected[0], found.corrections[0](plain[0]))
        assert torch.equal(corrected[1], plain[1]) is not other


def test_corrections_come_off_again() -> None:
    seen = sight()
    found = Surgery(seen.encoder, "blocks", rank=2, seed=0)
    with torch.no_grad():
        found.corrections[2].up_DR.fill_(1.0)
    plain = features(seen, seen.base)
    with found.attached(seen.encoder):
        assert not torch.equal(features(seen, seen.base)[1], plain[1])
    assert all(map(torch.equal, features(seen, seen.base), plain))


@pytest.mark.parametrize("at", AT)
def test_surgery_is_deterministic_and_every_task_has_its_own(at: str) -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]

    def run(given: list[StateDict]) -> list[list[Tensor]]:
        result = SEVERAL["surgery"](given, seen, alpha=0.5, at=at, rank=2, steps=5, batch=3)
        return [operated(seen, result, task) for task in (0, 1)]

    state = torch.random.get_rng_state()
    one, again, swapped = run(deltas), run(deltas), run(deltas[::-1])
    for task in (0, 1):
        assert all(map(torch.equal, one[task], again[task]))
        assert all(map(torch.equal, one[task], swapped[1 - task]))
    assert not torch.equal(one[0][0], one[1][0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_trains_otherwise() -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    results = [SEVERAL["surgery"](deltas, seen, alpha=0.5, steps=3, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*(operated(seen, one, 0)[0] for one in results))


def test_an_expert_that_is_the_merged_encoder_needs_no_correction() -> None:
    seen = sight()
    result = SEVERAL["surgery"]([moved(seen, 1)], seen, alpha=1.0, steps=3)
    assert all(
        map(torch.equal, operated(seen, result, 0), features(seen, add(seen.base, moved(seen, 1))))
    )


def test_surgery_leaves_the_encoder_it_is_given_as_it_is() -> None:
    seen = sight()
    Trainer(
        seen,
        seen.base,
        add(seen.base, moved(seen, 1)),
        Surgery(seen.encoder, "blocks", rank=2, seed=0),
    )
    assert all(torch.equal(t, seen.base[n]) for n, t in seen.encoder.weights().items())
    assert all(parameter.requires_grad for parameter in seen.encoder.vit.parameters())


@pytest.mark.parametrize(("at", "passes"), [("taps", 1.0), ("blocks", (1 + 2 + 2) / 3)])
def test_stored_are_one_encoder_and_the_corrections(at: str, passes: float) -> None:
    seen = sight()
    deltas = [moved(seen, 1), moved(seen, 2)]
    result = SEVERAL["surgery"](deltas, seen, alpha=0.5, at=at, rank=3)
    corrections = {"taps": 2, "blocks": 3}[at]
    assert places(seen.encoder, at) == corrections
    encoder = sum(tensor.numel() for tensor in seen.base.values())
    assert result.bytes == 4 * (encoder + 2 * corrections * 2 * 8 * 3)
    assert result.passes == passes


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"at": "layers"}, r"merge\.at is 'layers'; it must be one of: taps, blocks"),
        ({"rank": 0}, r"merge\.rank is 0; it must be at least 1"),
        ({"steps": 2.5}, r"merge\.steps is 2\.5; it must be a whole number"),
        ({"lr": 0}, r"merge\.lr is 0; it must be above 0 and at most 1"),
        ({"batch": 0}, r"merge\.batch is 0; it must be at least 1"),
        ({"seed": -1}, r"merge\.seed is -1; it must be at least 0"),
        ({"alpha": "big"}, r"merge\.alpha is 'big'; it must be a number"),
    ],
)
def test_wrong_parameters_are_refused_in_rehearsal(params: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SEVERAL["surgery"].rehearse(sight(images=0), tasks=2, **{"alpha": 0.5, **params})


def test_surgery_without_sight_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="surgery looks at images, but there is no sight"):
        SEVERAL["surgery"]([moved(sight(), 1)], alpha=0.5)
