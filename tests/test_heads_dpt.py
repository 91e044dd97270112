"""DPT heads: the paper's map in every order of operations, folded, exported and counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simo_build.encoder import make_vit
from simo_build.export import FinishedHead
from simo_build.heads import HEADS, DptHead, DptSizes, FeatureShape, make_head
from simo_build.heads.dropout import SeededDropout
from simo_build.losses import TORCH_KINDS
from simo_build.recipe import EncoderPart
from simo_export.check import Graph
from simo_export.fold import PlainEncoder
from simo_export.geometry import Geometry
from simo_export.graph import export_graph
from simo_export.resizing import enlarge_aligned
from simo_runtime.errors import RecipeError, UnknownNameError
from simo_runtime.tasks import KINDS, TaskSpec
from tests.test_export import UNWANTED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
ADD = DptSizes(channels=12, levels=(4, 6, 8, 10), project=False)
PROJECT = DptSizes(channels=12, levels=(4, 6, 8, 10), project=True)
WIDTH, PREFIX = 16, 3  # CLS and two registers
# Even and odd grids, of one patch, with and without padding, patches larger and smaller than 8
PLACES = [
    Geometry(image_size=(32, 64), patch=(16, 16)),  # 2 x 4
    Geometry(image_size=(42, 70), patch=(14, 14)),  # 3 x 5
    Geometry(image_size=(41, 66), patch=(14, 14)),  # 3 x 5, padded on all sides
    Geometry(image_size=(30, 40), patch=(10, 5)),  # 3 x 8, patches that are not square
    Geometry(image_size=(13, 14), patch=(14, 14)),  # 1 x 1
]


def spec_of(kind: str, classes: int = 5) -> TaskSpec:
    channels = KINDS[kind].channels or classes
    return TaskSpec(name="one", kind=kind, channels=channels, metric=KINDS[kind].metrics[0])


def shape_at(geometry: Geometry, *, width: int = WIDTH, prefix: int = PREFIX) -> FeatureShape:
    return FeatureShape(geometry=geometry, taps=4, width=width, prefix=prefix)


def trained_looking(kind: str, sizes: DptSizes, geometry: Geometry) -> DptHead:
    """Make a head none of whose numbers is zero or one by chance."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        head = DptHead(spec_of(kind), shape_at(geometry), sizes)
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return head.eval()


def taps_at(geometry: Geometry, images: int = 2, *, width: int = WIDTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = geometry.grid[0] * geometry.grid[1] + PREFIX
    return [torch.randn(images, tokens, width, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("geometry", PLACES, ids=str)
@pytest.mark.parametrize("sizes", [ADD, PROJECT], ids=["add", "project"])
@pytest.mark.parametrize("kind", ["depth", "segmentation"])
@torch.inference_mode()
def test_the_folded_head_equals_the_original(
    kind: str, sizes: DptSizes, geometry: Geometry
) -> None:
    head, taps = trained_looking(kind, sizes, geometry), taps_at(geometry)
    raw = head(taps)
    assert raw.shape == (2, spec_of(kind).channels, *geometry.image_size)
    assert float(raw.std()) > 0
    torch.testing.assert_close(head.folded()(*taps), raw, rtol=1e-4, atol=1e-4)
    head, taps = head.double(), [tap.double() for tap in taps]
    torch.testing.assert_close(head.folded()(*taps), head(taps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["disparity", "normals"])
def test_only_plain_layers_are_left(kind: str) -> None:
    folded = trained_looking(kind, PROJECT, PLACES[0]).folded()
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in folded.modules())
    assert not list(folded.buffers())


def test_folding_leaves_the_head_as_it_was() -> None:
    head = trained_looking("normals", ADD, PLACES[0])
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    folded = head.folded()
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("sizes", [ADD, PROJECT], ids=["add", "project"])
@pytest.mark.parametrize("kind", ["depth", "edges"])
@torch.inference_mode()
def test_a_head_is_what_the_paper_computes(kind: str, sizes: DptSizes) -> None:
    """Where the grid is even; the paper's order of operations, written once more."""
    geometry = Geometry(image_size=(63, 56), patch=(16, 14))  # 4 x 4, padded by a row
    head, taps = trained_looking(kind, sizes, geometry), taps_at(geometry)
    paper = Paper(head.state_dict())
    maps = [paper.read(tap, f"readouts.{n}", geometry.grid) for n, tap in enumerate(taps)]
    finish = paper.values if kind == "depth" else paper.classes
    coarse = finish(paper.joined(maps))
    padded = F.interpolate(coarse, size=geometry.padded_size, mode="bilinear")
    torch.testing.assert_close(head(taps), padded[:, :, :63], rtol=1e-4, atol=1e-5)


class Paper:
    """The paper's operations on a head's weights, by the names that these have in it."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def widened(self, x: Tensor, name: str, stride: int) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride=stride)

    def dense(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def residual(self, x: Tensor, name: str) -> Tensor:
        return x + self.conv(self.conv(x.relu(), f"{name}.first").relu(), f"{name}.second")

    def doubled(self, x: Tensor) -> Tensor:
        size = (2 * x.shape[2], 2 * x.shape[3])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def read(self, tap: Tensor, name: str, grid: tuple[int, int]) -> Tensor:
        patches = tap[:, PREFIX:]
        cls = tap[:, :1].expand_as(patches)
        if f"{name}.project.weight" in self.state:
            read = F.gelu(self.dense(torch.cat((patches, cls), dim=-1), f"{name}.project"))
        else:
            read = patches + cls
        return self.dense(read, f"{name}.reduce").transpose(1, 2).unflatten(2, grid)

    def joined(self, maps: Sequence[Tensor]) -> Tensor:
        sized = [
            self.widened(maps[0], "trunk.resize.0", 4),
            self.widened(maps[1], "trunk.resize.1", 2),
            maps[2],
            self.conv(maps[3], "trunk.resize.3", stride=2),
        ]
        levels = [self.conv(one, f"trunk.widen.{level}") for level, one in enumerate(sized)]
        joined = levels[3]
        for level in (3, 2, 1, 0):
            name = f"trunk.fusions.{level}"
            if level < 3:
                joined = joined + self.residual(levels[level], f"{name}.own")
            upsampled = self.doubled(self.residual(joined, f"{name}.both"))
            joined = self.conv(upsampled, f"{name}.project")
        return self.conv(joined, "trunk.smooth").relu()

    def values(self, joined: Tensor) -> Tensor:
        narrow = self.conv(self.doubled(self.conv(joined, "layers.0")), "layers.2").relu()
        return self.conv(narrow, "final").relu()

    def classes(self, joined: Tensor) -> Tensor:
        mean, variance, weight, bias = (
            self.state[f"layers.1.{name}"]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        normed = F.batch_norm(self.conv(joined, "layers.0"), mean, variance, weight, bias)
        return self.conv(normed.relu(), "final")


def test_a_graph_gives_what_pytorch_gives_at_an_odd_grid() -> None:
    geometry = PLACES[2]
    head = trained_looking("depth", PROJECT, geometry)
    module = FinishedHead(head.folded(), TORCH_KINDS["depth"].finish)
    names = ["tap1", "tap2", "tap3", "tap4"]
    model = export_graph(module, taps_at(geometry), inputs=names, outputs=["raw", "one"])
    counts = Counter(node.op_type for node in model.graph.node)
    assert not UNWANTED & set(counts)
    assert counts["Gather"] == 1  # the one channel, taken at the end
    for images in (1, 3):
        taps = taps_at(geometry, images)
        found = Graph(model)({n: tap.numpy() for n, tap in zip(names, taps, strict=True)})
        with torch.inference_mode():
            raw = head(taps)
        np.testing.assert_allclose(found["raw"], raw.numpy(), rtol=1e-4, atol=1e-4)
        assert found["one"].shape == (images, *geometry.image_size)


@pytest.mark.parametrize("old", [1, 2, 7, 14, 19, 81])
def test_corners_stay_corners_at_every_size(old: int) -> None:
    maps = torch.randn(1, 1, old, 3, generator=torch.Generator().manual_seed(0))
    for new in range(old, 2 * old + 1):
        wanted = F.interpolate(maps, size=(new, 6), mode="bilinear", align_corners=True)
        assert torch.equal(enlarge_aligned(maps, (old, 3), (new, 6)), wanted)


@pytest.mark.parametrize("kind", ["log_depth", "normals"])
def test_every_weight_is_trained(kind: str) -> None:
    head = trained_looking(kind, PROJECT, PLACES[1]).train()
    raw = head(taps_at(PLACES[1]))
    (raw * torch.randn(raw.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_new_head_says_what_its_kind_starts_with(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        head = DptHead(spec_of(kind), shape_at(PLACES[1]), ADD).eval()
    start = TORCH_KINDS[kind].start
    torch.testing.assert_close(
        head(taps_at(PLACES[1])).mean(), torch.tensor(start), rtol=0, atol=0.05
    )


def test_a_head_follows_from_the_seed_in_training_too() -> None:
    def trained(seed: int) -> tuple[Tensor, Tensor]:
        torch.rand(seed + 1)  # nothing may hang on the global random state
        head = make_head("dpt_small", spec_of("normals"), shape_at(PLACES[0]), seed=seed).train()
        with torch.no_grad():
            return head(taps_at(PLACES[0])), head(taps_at(PLACES[0]))

    state = torch.get_rng_state()
    one, next_ = trained(0)
    again, other = trained(0)[0], trained(1)[0]
    torch.set_rng_state(state)
    assert torch.equal(one, again)
    assert not torch.equal(one, next_)  # other values are dropped
    assert not torch.equal(one, other)


def test_dropout_keeps_the_mean_and_ends_with_training() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropout = SeededDropout(0.1)
    ones = torch.ones(100_000)
    dropped = dropout(ones)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)


@pytest.mark.parametrize("taps", [1, 3, 5])
def test_another_number_of_taps_is_refused(taps: int) -> None:
    shape = FeatureShape(geometry=PLACES[0], taps=taps, width=8, prefix=1)
    told = rf"tasks\.one\.head: .* exactly 4 taps, and `encoder\.taps` has {taps}\. Give 4 blocks"
    with pytest.raises(RecipeError, match=told):
        make_head("dpt_small", spec_of("depth"), shape, seed=0)


def test_a_cls_token_is_needed() -> None:
    with pytest.raises(RecipeError, match="a DPT head needs an encoder with a CLS token"):
        make_head("dpt", spec_of("depth"), shape_at(PLACES[0], prefix=0), seed=0)


def test_the_closest_head_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"tasks\.one\.head 'dpt_smal'; did you mean 'dpt_s"):
        make_head("dpt_smal", spec_of("depth"), shape_at(PLACES[0]), seed=0)


VITB = shape_at(Geometry(image_size=(280, 378), patch=(14, 14)), width=768, prefix=1)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "classes", "expected"),
    [
        ("depth", 1, 3_412_337),
        ("segmentation", 19, 3_470_211),
        ("segmentation", 10, 3_469_050),
        ("normals", 3, 3_468_147),
        ("keypoints", 1, 3_467_889),
    ],
)
def test_the_small_head_has_the_paper_s_parameters(kind: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        head = HEADS["dpt_small"](spec_of(kind, classes), VITB)
    assert isinstance(head, DptHead)
    assert count(head) == expected
    assert count(head.readouts) + count(head.trunk) == 3_320_048


def multiply_adds(module: nn.Module, *given: Tensor) -> int:
    """Count the multiply-adds of linear layers, convolutions and attention; nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(*given)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("name", HEADS)
def test_the_page_says_what_a_head_costs(name: str) -> None:
    cells = []
    taps = [torch.empty(1, 541, 768, device="meta") for _ in range(4)]
    for kind in ("depth", "segmentation"):
        with torch.device("meta"):
            head = HEADS[name](spec_of(kind, 13), VITB)
            folded = head.folded()
            folded.to_image = torch.nn.Identity()  # nothing of it is learnt; most of it is zeros
        cells += [f"{count(head):,}", f"{multiply_adds(folded, *taps) / 1e9:.3g}"]
    assert f"| `{name}` | {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8")


def test_the_page_says_what_the_encoder_costs() -> None:
    part = EncoderPart(model="vit_base_patch14_dinov2")
    with torch.device("meta"):
        vit = make_vit(part)
        vit.set_input_size(img_size=VITB.geometry.image_size)
        plain = PlainEncoder(
            vit,
            geometry=VITB.geometry,
            taps=part.taps,
            norm=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
        pixels = torch.empty(1, 280, 378, 3, dtype=torch.uint8)
    billions = multiply_adds(plain, pixels) / 1e9
    assert f"ViT-B/14 itself has {billions:.3g} of these" in PAGE.read_text(encoding="utf-8")
