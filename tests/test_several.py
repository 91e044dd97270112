"""Several-pass methods: what every one of them promises, and that a build refuses them."""

import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor
from torch.testing import assert_close

from simo_build.cli import build_command, eval_command, merge_command
from simo_build.learned import LEARNED
from simo_build.loading import load_recipe
from simo_build.merge import METHODS
from simo_build.merging import check_recipe
from simo_build.several import SEVERAL, SeveralMethod, SeveralPass
from simo_build.statedict import StateDict
from simo_runtime.errors import RecipeError, UnknownNameError
from tests.merging import delta
from tests.several import sight

ROOT = Path(__file__).resolve().parents[1]
# Parameters under which a method may be called; a new method with required ones adds a line.
PARAMS: dict[str, dict[str, Any]] = {
    "tall_mask": {"threshold": 0.4},
    "flexmerge": {"size": 1},
    "surgery": {"alpha": 1.0, "rank": 2, "steps": 2},
    "zipit": {"depth": 2},
}

Given = Sequence[Mapping[str, Tensor]]


def given(method: SeveralMethod, seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    """A delta; for a method that looks at images, of the tiny encoder's tensors."""
    if not method.sees:
        return delta(seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in sight().base.items()}
    return {n: 0.1 * torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


def found(method: SeveralMethod, deltas: Given) -> SeveralPass:
    return method(deltas, sight(), **PARAMS.get(method.name, {}))


def read(result: SeveralPass) -> list[StateDict]:
    return [{name: one[name] for name in one} for one in result.deltas]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def still(method: SeveralMethod) -> StateDict:
    return {name: torch.zeros_like(tensor) for name, tensor in given(method, 0).items()}


@pytest.mark.parametrize("method", SEVERAL.values(), ids=lambda method: method.name)
class TestEveryMethod:
    def test_keeps_names_and_shapes(self, method: SeveralMethod) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in given(method, 0).items()}
        for one in read(found(method, [given(method, 0), given(method, 1)])):
            assert {name: tuple(tensor.shape) for name, tensor in one.items()} == shapes

    def test_gives_one_encoder_a_task(self, method: SeveralMethod) -> None:
        for tasks in (1, 2, 3):
            assert (
                len(found(method, [given(method, seed) for seed in range(tasks)]).deltas) == tasks
            )

    def test_leaves_its_inputs_alone(self, method: SeveralMethod) -> None:
        for dtype in (torch.float32, torch.float64):
            deltas = [given(method, seed, dtype) for seed in range(3)]
            read(found(method, deltas))
            assert all(same(one, given(method, seed, dtype)) for seed, one in enumerate(deltas))

    def test_gives_every_task_its_own_whatever_their_order(self, method: SeveralMethod) -> None:
        one = read(found(method, [given(method, 0), given(method, 1), given(method, 2)]))
        for order in itertools.permutations(range(3)):
            other = read(found(method, [given(method, seed) for seed in order]))
            assert all(same(one[seed], other[place]) for place, seed in enumerate(order))

    def test_does_not_depend_on_the_number_of_threads(self, method: SeveralMethod) -> None:
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(read(found(method, [given(method, 0), given(method, 1)])))
        finally:
            torch.set_num_threads(threads)
        for one, other in zip(*results, strict=True):
            for name in one:
                assert_close(one[name], other[name], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_merges_halves_in_float32(self, method: SeveralMethod, dtype: torch.dtype) -> None:
        halves = [given(method, 0, dtype), given(method, 1, dtype)]
        wide = [{name: tensor.float() for name, tensor in half.items()} for half in halves]
        pairs = zip(read(found(method, halves)), read(found(method, wide)), strict=True)
        for one, other in pairs:
            assert {tensor.dtype for tensor in one.values()} == {torch.float32}
            assert same(one, other)

    def test_gives_the_base_for_experts_that_did_not_move(self, method: SeveralMethod) -> None:
        for one in read(found(method, [still(method), still(method)])):
            assert same(one, still(method))

    def test_bears_one_expert_that_did_not_move(self, method: SeveralMethod) -> None:
        for one in read(found(method, [given(method, 0), still(method)])):
            assert all(bool(tensor.isfinite().all()) for tensor in one.values())

    def test_gives_a_single_expert_back(self, method: SeveralMethod) -> None:
        result = found(method, [given(method, 0)])
        assert same(read(result)[0], given(method, 0))
        assert result.passes == 1

    def test_takes_one_to_as_many_passes_as_tasks(self, method: SeveralMethod) -> None:
        assert (
            1 <= found(method, [given(method, 0), given(method, 1), given(method, 2)]).passes <= 3
        )

    def test_refuses_an_unknown_parameter_when_rehearsed(self, method: SeveralMethod) -> None:
        with pytest.raises(UnknownNameError, match=f"parameter of merge.method {method.name}"):
            method.rehearse(sight(), tasks=3, **PARAMS.get(method.name, {}), nonsense=1)

    def test_refuses_a_wrong_value_of_any_parameter_when_rehearsed(
        self, method: SeveralMethod
    ) -> None:
        method.rehearse(sight(), tasks=3, **PARAMS.get(method.name, {}))
        for name in inspect.signature(method.function).parameters:
            if name not in ("deltas", "sight"):
                params = {**PARAMS.get(method.name, {}), name: object()}
                with pytest.raises(RecipeError, match=rf"merge\.{name}"):
                    method.rehearse(sight(), tasks=3, **params)

    def test_has_a_row_in_the_documentation(self, method: SeveralMethod) -> None:
        assert method.paper.startswith("https://")
        rows = (ROOT / "docs" / "merging.md").read_text(encoding="utf-8").splitlines()
        own = [row for row in rows if row.startswith(f"| `{method.name}` |")]
        assert sum(method.paper in row for row in own) == 1

    def test_is_refused_by_a_build_before_any_work(
        self, method: SeveralMethod, tmp_path: Path
    ) -> None:
        # neither base nor experts nor data are there, and its parameters are missing
        content = yaml.safe_load((ROOT / "samples" / "rooms" / "rooms.yaml").read_text())
        content |= {"base": "gone.safetensors", "merge": {"method": method.name}}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(RecipeError, match=rf"^merge\.method {method.name} keeps .*") as caught:
            check_recipe(load_recipe(str(tmp_path / "r.yaml")))
        (line,) = str(caught.value).splitlines()
        assert "a bundle runs one encoder once for all of them" in line
        assert f"use {method.instead}" in line

    def test_its_name_is_that_of_no_other_method(self, method: SeveralMethod) -> None:
        assert method.name not in {**METHODS, **LEARNED}


HASHES = """
import json
from simo_build.several import SEVERAL
from simo_build.statedict import state_hash
from tests.test_several import found, given, read

results = {n: found(m, [given(m, seed) for seed in range(3)]) for n, m in SEVERAL.items()}
print(json.dumps({name: [state_hash(one) for one in read(r)] for name, r in results.items()}))
"""


def test_no_method_depends_on_pythons_hash_seed() -> None:
    hashes = []
    for seed in ("1", "2"):
        given = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.run(
            [sys.executable, "-c", HASHES], env=given, capture_output=True, text=True, check=True
        )
        hashes.append(json.loads(told.stdout))
    assert set(hashes[0]) == set(SEVERAL)
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("command", [build_command, merge_command, eval_command])
def test_the_commands_refuse_with_one_line(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "samples" / "rooms" / "rooms.yaml").read_text())
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**content, "merge": {"method": "emr"}}))
    told = CliRunner().invoke(command, ["--recipe", "r.yaml"])
    assert told.exit_code == 1
    assert told.stdout == ""
    assert told.stderr.startswith("Error: merge.method emr keeps a mask over the encoder's weights")
    assert len(told.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
