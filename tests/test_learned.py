"""Learned methods: what every one of them promises, on a tiny recipe, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from simo_build.learned import LEARNED, LearnedMethod, Learning, Partitioned, Scaled
from simo_build.learned.learning import Learnt
from simo_build.learned.ranked import straight_through
from simo_build.learned.settings import NAMES, Settings
from simo_build.losses import TORCH_KINDS
from simo_build.merge import METHODS
from simo_build.merging import Learner, any_method, merge
from simo_build.several import SEVERAL
from simo_build.stages import Result
from simo_build.workshop import Workshop
from simo_runtime.errors import RecipeError, UnknownNameError
from tests.merging import SHAPES, delta
from tests.tiny import opened, write_recipe, write_workplace

DOCS = Path(__file__).resolve().parents[1] / "docs"
SHORT: dict[str, Any] = {"epochs": 2, "batch": 2}
# Parameters under which a single expert comes back, if nothing is learnt.
IDENTITY: dict[str, dict[str, Any]] = {
    "adamerging": {"start": 1.0},
    "tint": {"start": 1.0, "loss": "outputs"},
    "adarank": {"start": 1.0, "rank": 1.0},
    "atlas": {"start": 1.0, "loss": "outputs"},
}
CLASSES = {"seg": TORCH_KINDS["segmentation"].teaching}
VALUES = {"depth": TORCH_KINDS["depth"].teaching, "normals": TORCH_KINDS["normals"].teaching}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny recipe's data, base and experts, which no test changes."""
    return write_workplace(tmp_path_factory.mktemp("learned")).parent


Work = Callable[..., Workshop]


@pytest.fixture
def work(place: Path) -> Work:
    """Open the tiny recipe with other merging, and with some tasks of it."""

    def open_with(
        method: str,
        tasks: tuple[str, ...] = ("depth", "normals"),
        images: int = 6,
        **params: Any,
    ) -> Workshop:
        merging = {"method": method, "params": {**SHORT, **params}, "images": images}
        return opened(write_recipe(place, tasks, merge=merging, realign=[]))

    return open_with


def learnt(workshop: Workshop) -> Result:
    """Merge anew, whatever an earlier test has left."""
    for kept in workshop.stages.root.glob("*"):
        kept.unlink()
    return merge(workshop)


@pytest.mark.parametrize("method", LEARNED.values(), ids=lambda method: method.name)
class TestEveryMethod:
    def test_keeps_names_and_shapes(self, method: LearnedMethod) -> None:
        merged = method.mixture([delta(0), delta(1)])()
        assert {name: tuple(tensor.shape) for name, tensor in merged.items()} == SHAPES

    def test_gives_finite_values(self, method: LearnedMethod) -> None:
        still = {name: torch.zeros_like(tensor) for name, tensor in delta(0).items()}
        merged = method.mixture([delta(0), still])()
        assert all(bool(tensor.isfinite().all()) for tensor in merged.values())

    def test_every_gradient_goes_to_its_parameters(self, method: LearnedMethod) -> None:
        deltas = [delta(0), delta(1)]
        mixture = method.mixture(deltas)
        torch.stack([(one - 1).square().sum() for one in mixture().values()]).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in mixture.parameters())
        assert all(t.grad is None and not t.requires_grad for d in deltas for t in d.values())

    def test_its_state_holds_no_deltas(self, method: LearnedMethod) -> None:
        mixture = method.mixture([delta(0), delta(1)])
        state = sum(tensor.numel() for tensor in mixture.state_dict().values())
        assert state < sum(tensor.numel() for tensor in delta(0).values())

    def test_describes_what_was_learnt_of_every_delta(self, method: LearnedMethod) -> None:
        assert len(method.mixture([delta(0), delta(1)]).told()) == 2

    def test_can_be_rehearsed(self, method: LearnedMethod) -> None:
        method.rehearse(SHAPES, VALUES)

    def test_refuses_an_unknown_parameter(self, method: LearnedMethod) -> None:
        told = f"parameter of merge.method {method.name} 'epoch'; did you mean 'epochs'"
        with pytest.raises(UnknownNameError, match=told):
            method.rehearse(SHAPES, VALUES, epoch=1)

    def test_refuses_a_wrong_value_of_any_parameter(self, method: LearnedMethod) -> None:
        for name in method.known():
            with pytest.raises(RecipeError, match=rf"merge\.{name} is <object"):
                method.rehearse(SHAPES, VALUES, **{name: object()})

    def test_refuses_entropy_where_there_is_none(self, method: LearnedMethod) -> None:
        method.rehearse(SHAPES, CLASSES, loss="entropy")
        with pytest.raises(RecipeError, match=r"predictions of tasks\.depth are no distribution"):
            method.rehearse(SHAPES, {**CLASSES, **VALUES}, loss="entropy")

    def test_lowers_the_loss_on_images_it_has_not_seen(
        self, method: LearnedMethod, work: Work
    ) -> None:
        found = learnt(work(method.name, loss="outputs", epochs=6)).log["learned"]
        assert found["epoch"] > 0
        assert found["history"][found["epoch"]] == min(found["history"]) < found["history"][0]
        assert len(found["history"]) == 7

    def test_gives_the_same_twice(self, method: LearnedMethod, work: Work) -> None:
        one, other = (learnt(work(method.name)).tensors for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_does_not_depend_on_the_order_of_tasks(self, method: LearnedMethod, work: Work) -> None:
        one, other = (
            learnt(work(method.name, tasks))
            for tasks in (("depth", "normals"), ("normals", "depth"))
        )
        assert all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
        assert one.log == other.log

    def test_changes_neither_base_nor_experts_nor_heads(
        self, method: LearnedMethod, work: Work
    ) -> None:
        workshop = work(method.name)
        before = [dict(workshop.base), *(dict(one.encoder) for one in workshop.experts.values())]
        copies = [{name: t.clone() for name, t in state.items()} for state in before]
        learnt(workshop)
        for state, copy in zip(before, copies, strict=True):
            assert all(torch.equal(state[name], tensor) for name, tensor in copy.items())
        assert all(p.grad is None for p in workshop.encoder.parameters())

    def test_names_its_paper(self, method: LearnedMethod) -> None:
        assert method.paper.startswith("https://")

    def test_has_a_row_in_the_documentation(self, method: LearnedMethod) -> None:
        rows = (DOCS / "merging.md").read_text(encoding="utf-8").splitlines()
        own = [row for row in rows if row.startswith(f"| `{method.name}` |")]
        assert sum(method.paper in row for row in own) == 1


@pytest.mark.parametrize("name", IDENTITY)
def test_a_single_expert_comes_back(name: str, work: Work) -> None:
    workshop = work(name, ("depth",), **IDENTITY[name])
    found = learnt(workshop)
    assert found.log["learned"]["epoch"] == 0
    for tensor_name, tensor in workshop.experts["depth"].encoder.items():
        assert_close(found.tensors[tensor_name], tensor, rtol=1e-5, atol=1e-6)


def test_the_names_of_all_registries_differ() -> None:
    every = [*METHODS, *LEARNED, *SEVERAL]
    assert len(every) == len(set(every))


# What is learnt from


def test_no_label_is_used_unless_the_loss_is_of_labels(work: Work) -> None:
    used = {
        loss: learnt(work("adamerging", loss=loss)).log["learned"]["labels"]
        for loss in ("outputs", "pseudo", "features", "labels")
    }
    assert used == {"outputs": 0, "pseudo": 0, "features": 0, "labels": 6}


def test_truths_are_not_even_read_without_need(place: Path, tmp_path: Path, work: Work) -> None:
    for folder in ("depth", "normals"):
        (place / "data" / folder).rename(tmp_path / folder)
    try:
        assert learnt(work("adamerging")).log["learned"]["images"] == 6
    finally:
        for folder in ("depth", "normals"):
            (tmp_path / folder).rename(place / "data" / folder)


@pytest.mark.parametrize("loss", ["outputs", "pseudo", "features"])
def test_one_is_the_distance_of_the_base_from_the_experts(loss: str, work: Work) -> None:
    found = learnt(work("adamerging", loss=loss, start=0.0, lr=1e-6)).log["learned"]
    assert found["history"][0] == pytest.approx(1.0, rel=1e-5)


def test_one_is_the_experts_own_loss_on_labels(work: Work) -> None:
    workshop = work("adamerging", ("depth",), loss="labels", start=1.0, lr=1e-6)
    assert learnt(workshop).log["learned"]["history"][0] == pytest.approx(1.0, rel=1e-4)


def test_another_seed_gives_other_weights(work: Work) -> None:
    one, other = (learnt(work("adamerging", seed=seed)).tensors for seed in (0, 1))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_half_precision_comes_near_to_single(work: Work) -> None:
    one, other = (learnt(work("adamerging", precision=p)).tensors for p in ("fp32", "bf16"))
    assert all(torch.allclose(tensor, other[name], atol=0.02) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_share_of_sure_pixels_teaches_something_else(work: Work) -> None:
    one, other = (learnt(work("adamerging", confidence=c)).tensors for c in (1.0, 0.5))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_candidates_are_each_learnt_once(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    from simo_build.learned import learning

    counted: list[float] = []
    real = learning.learn

    def counting(mixture: Any, course: Any, settings: Settings, **others: Any) -> Learnt:
        counted.append(settings.lr)
        return real(mixture, course, settings, **others)

    monkeypatch.setattr(learning, "learn", counting)
    workshop = work("adamerging")
    learner = Learner(workshop, LEARNED["adamerging"])
    first = learner({**SHORT, "lr": 0.1})
    learner({**SHORT, "lr": 0.2})
    again = learner({**SHORT, "lr": 0.1})
    assert counted == [0.1, 0.2]
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_the_best_candidate_tells_how_it_was_learnt(place: Path) -> None:
    merging = {"method": "adamerging", "params": SHORT, "choose": {"lr": [0.001, 0.03]}}
    found = learnt(opened(write_recipe(place, merge={**merging, "images": 6}, realign=[])))
    assert [row["params"]["lr"] for row in found.log["tried"]] == [0.001, 0.03]
    assert found.log["learned"]["settings"]["lr"] == found.log["params"]["lr"]


def test_lines_scale_what_was_learnt_by_depth(work: Work) -> None:
    learner = Learner(work("adamerging"), LEARNED["adamerging"])
    plain, scaled = learner(SHORT), learner({**SHORT, "lines.alpha": 0.5, "lines.beta": 0.25})
    base, name = learner.work.base, "blocks.1.mlp.fc1.weight"
    assert_close(scaled[name] - base[name], 0.75 * (plain[name] - base[name]), atol=1e-6, rtol=1e-4)


# Scaling by hand


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("task", {"all"}),
        ("layer", {"before", "block 0", "block 1"}),
        ("tensor", set(SHAPES)),
    ],
)
def test_tensors_share_coefficients_by_granularity(granularity: str, groups: set[str]) -> None:
    mixture = LEARNED["adamerging"].mixture([delta(0)], granularity=granularity)
    assert set(mixture.told()[0]) == groups


def test_what_lies_after_the_blocks_is_a_layer_of_its_own() -> None:
    tensors = {name: torch.ones(1) for name in ("pos_embed", "blocks.0.norm1.weight", "norm.bias")}
    mixture = LEARNED["adamerging"].mixture([tensors], granularity="layer")
    assert list(mixture.told()[0]) == ["before", "block 0", "after"]


def by_hand(weights: list[list[float]]) -> dict[str, Tensor]:
    given = [{"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])} for _ in weights]
    mixture = Scaled(given, ["a", "b"], start=0.0)
    with torch.no_grad():
        mixture.weights.copy_(torch.tensor(weights))
    return mixture()


def test_a_sum_of_scaled_deltas_by_hand() -> None:
    # a: (0.5 + 2) * (1, 2), b: (-1 + 3) * 3
    merged = by_hand([[0.5, -1.0], [2.0, 3.0]])
    assert merged["a"].tolist() == [2.5, 5.0]
    assert merged["b"].tolist() == [6.0]


def test_coefficients_are_brought_back_into_their_bounds() -> None:
    mixture = LEARNED["adamerging"].mixture([delta(0)], granularity="task")
    with torch.no_grad():
        next(mixture.parameters()).fill_(1.5)
    mixture.project()
    assert mixture.told() == [{"all": 1.0}]


# What is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "output"}, r"merge\.loss is 'output'; it must be one of: labels, outputs"),
        ({"confidence": 0}, r"merge\.confidence is 0; it must be above 0 and at most 1"),
        ({"loss": "features", "confidence": 0.5}, r"merge\.confidence is 0\.5, but loss: features"),
        ({"epochs": 1.5}, r"merge\.epochs is 1\.5; it must be a whole number"),
        ({"lr": 0}, r"merge\.lr is 0; it must be above 0"),
        ({"hold": 1}, r"merge\.hold is 1; it must be above 0 and below 1"),
        ({"start": 1.5}, r"merge\.start is 1\.5; it must be at least 0 and at most 1"),
        ({"granularity": "row"}, r"merge\.granularity is 'row'; it must be one of: task"),
        ({"loss": "entropy"}, r"merge\.loss is entropy, but the predictions of tasks\.depth"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_before_experts_are_read(
    place: Path, params: dict[str, Any], message: str
) -> None:
    refused({"method": "adamerging", "params": params, "images": 6}, place, message)


def refused(merging: dict[str, Any], place: Path, message: str) -> None:
    path = write_recipe(place, merge=merging, realign=[])
    content = yaml.safe_load(path.read_text())
    content["tasks"]["depth"]["expert"] = "there-is-no-such-expert.safetensors"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        merge(opened(path))


def test_more_images_than_there_are_are_refused_before_experts_are_read(place: Path) -> None:
    told = r"merge\.images is 7, but the split for re-alignment has 6 images"
    refused({"method": "adamerging", "images": 7}, place, told)


def test_one_image_is_too_few(place: Path) -> None:
    told = r"merge\.images is 1; adamerging needs at least 2"
    refused({"method": "adamerging", "images": 1}, place, told)


def test_a_learned_method_needs_data(place: Path) -> None:
    path = write_recipe(place, merge={"method": "adamerging"}, realign=[])
    content = yaml.safe_load(path.read_text())
    del content["data"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="adamerging learns on images, so it needs `data`"):
        opened(path)


def test_the_closest_name_of_all_methods_is_told() -> None:
    with pytest.raises(UnknownNameError, match="'adamergin'; did you mean 'adamerging'"):
        any_method("adamergin")
    with pytest.raises(UnknownNameError, match="'tie'; did you mean 'ties'"):
        any_method("tie")


def test_settings_and_methods_share_no_names() -> None:
    for method in LEARNED.values():
        assert len(method.known()) == len(set(method.known())) > len(NAMES)


def test_learning_keeps_one_copy_of_the_deltas(work: Work) -> None:
    learning = Learning(work("adamerging"), LEARNED["adamerging"])
    mixture = learning.method.mixture(list(learning.deltas.values()))
    assert isinstance(mixture, Scaled)
    for mine, theirs in zip(mixture.deltas, learning.deltas.values(), strict=True):
        assert all(mine[name].data_ptr() == tensor.data_ptr() for name, tensor in theirs.items())


def test_supermerge_squashes_its_coefficients_but_starts_where_it_is_told() -> None:
    mixture = LEARNED["supermerge"].mixture([delta(0)], start=0.3, granularity="task")
    assert isinstance(mixture, Scaled)
    assert mixture.told()[0]["all"] == pytest.approx(0.3)
    with torch.no_grad():
        mixture.weights.fill_(0.7)
    # tanh 0.7 = (e^1.4 - 1) / (e^1.4 + 1)
    expected = (math.exp(1.4) - 1) / (math.exp(1.4) + 1)
    assert mixture.told()[0]["all"] == pytest.approx(expected, abs=1e-6)
    assert_close(mixture()["cls_token"], expected * delta(0)["cls_token"])


def test_atlas_starts_at_the_base() -> None:
    merged = LEARNED["atlas"].mixture([delta(0), delta(1)])()
    assert all(not tensor.any() for tensor in merged.values())


def test_parts_of_a_tensor_have_coefficients_of_their_own() -> None:
    mixture = LEARNED["atlas"].mixture([delta(0), delta(1)], parts=3)
    assert isinstance(mixture, Partitioned)
    name = "blocks.1.mlp.fc1.weight"
    with torch.no_grad():
        mixture.weights[:] = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]).unsqueeze(1)
    part = mixture.members[name].view_as(delta(0)[name]).long()
    ones, tens = torch.tensor([1.0, 2.0, 3.0])[part], torch.tensor([10.0, 20.0, 30.0])[part]
    assert_close(mixture()[name], ones * delta(0)[name] + tens * delta(1)[name])
    assert torch.bincount(part.flatten()).tolist() == [24, 24, 24]


def test_parts_do_not_depend_on_the_task() -> None:
    one, other = (LEARNED["atlas"].mixture([delta(seed)], parts=2) for seed in (0, 1))
    assert isinstance(one, Partitioned)
    assert isinstance(other, Partitioned)
    assert all(torch.equal(index, other.members[name]) for name, index in one.members.items())


def test_too_many_parts_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"merge\.parts is 257; it must be at most 256"):
        LEARNED["atlas"].rehearse(SHAPES, VALUES, parts=257)


# Masks by hand


def test_adarank_takes_the_strongest_components_by_hand() -> None:
    # singular values 3 and 1; a half of two components is the first one, 0.5 times of it
    matrix = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
    mixture = LEARNED["adarank"].mixture([matrix], start=0.5, rank=0.5)
    assert_close(mixture()["w"], torch.tensor([[1.5, 0.0], [0.0, 0.0]]), atol=1e-6, rtol=0)
    assert mixture.told() == [{"coefficients": {"w": 0.5}, "components": {"w": 1}}]


def test_a_mask_is_binary_but_has_the_gradient_of_a_soft_one() -> None:
    score = torch.tensor([0.1, -0.1, 25.0], dtype=torch.float64, requires_grad=True)
    mask = straight_through(score)
    mask.sum().backward()
    soft = [1 / (1 + math.exp(-value / 10)) for value in (0.1, -0.1, 25.0)]
    assert mask.tolist() == [1.0, 0.0, 1.0]
    assert score.grad is not None
    assert score.grad.tolist() == pytest.approx([s * (1 - s) / 10 for s in soft])


def test_a_component_that_is_not_taken_can_be_learnt_to_be() -> None:
    matrix = {"w": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}
    mixture = LEARNED["adarank"].mixture([matrix], start=1.0, rank=0.5)
    optimiser = torch.optim.Adam(mixture.parameters(), lr=0.02)
    for _ in range(12):
        optimiser.zero_grad()
        (mixture()["w"] - matrix["w"]).square().sum().backward()
        optimiser.step()
    assert mixture.told()[0]["components"] == {"w": 2}


def test_thirds_of_a_fused_weight_are_decomposed_by_themselves() -> None:
    name = "blocks.0.attn.qkv.weight"
    mixture = LEARNED["adarank"].mixture([delta(0)], start=1.0, rank=0.5, split_qkv=True)
    thirds = []
    for third in delta(0)[name].double().chunk(3):
        u, s, v = torch.linalg.svd(third, full_matrices=False)
        thirds.append((u[:, :3] * s[:3]) @ v[:3])
    assert_close(mixture()[name], torch.cat(thirds).float(), atol=1e-5, rtol=1e-5)
