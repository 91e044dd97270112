"""What an engine depends on, as a key, and the folder where it lies."""

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from simo_runtime.engines import (
    BatchRange,
    EngineOptions,
    EngineSpec,
    default_root,
    engine_key,
    engine_path,
)
from simo_runtime.engines import engine_spec as spec_of
from simo_runtime.errors import BackendError, UnknownNameError
from tests.graphs import write_bundle
from tests.tensorrt_stand_in import GPU

BATCHES = BatchRange(smallest=1, tuned=4, largest=8)
OPTIONS = EngineOptions(batches=BATCHES, workspace_mib=1024)
SPEC = EngineSpec(
    graph="a" * 64,
    weights=(("encoder.bin", "b" * 64),),
    tensorrt="11.4.0.106",
    gpu=GPU,
    options=OPTIONS,
)


def other_specs() -> Iterator[tuple[str, EngineSpec]]:
    """Give SPEC with one value changed, once for each value in it."""
    changes: dict[str, Any] = {
        "graph": "c" * 64,
        "weights": (),
        "tensorrt": "10.16.1.11",
        "gpu": {
            "name": "NVIDIA A100",
            "compute_capability": "8.6",
            "multiprocessors": 24,
            "memory": 10 * 2**30,
            "driver": "12.8",
        },
        "options": {
            "batches": BatchRange(smallest=1, tuned=1, largest=8),
            "workspace_mib": 1025,
            "tf32": True,
            "version_compatible": True,
            "hardware": "ampere_plus",
        },
    }
    assert set(changes) == {part.name for part in fields(EngineSpec)}
    for name, value in changes.items():
        if not isinstance(value, dict):
            yield name, replace(SPEC, **{name: value})
            continue
        part = getattr(SPEC, name)
        assert set(value) == {entry.name for entry in fields(part)}
        for inner, changed in value.items():
            yield f"{name}.{inner}", replace(SPEC, **{name: replace(part, **{inner: changed})})


@pytest.mark.parametrize(("what", "other"), list(other_specs()), ids=lambda value: str(value)[:24])
def test_every_ingredient_changes_the_key(what: str, other: EngineSpec) -> None:
    assert engine_key(other) != engine_key(SPEC), what


def test_the_key_of_a_spec_never_changes() -> None:
    # From sha256sum of the JSON, with the keys sorted:
    # {"gpu": {"compute_capability": "8.9", "driver": "13.0", "memory": 21474836480,
    # "multiprocessors": 48, "name": "NVIDIA RTX 4000 SFF Ada Generation"}, "graph": "aa...",
    # "options": {"batches": {"largest": 8, "smallest": 1, "tuned": 4}, "hardware": "this", "tf32":
    # false, "version_compatible": false, "workspace_mib": 1024}, "schema": "simo.engine/2",
    # "tensorrt": "11.4.0.106", "weights": [["encoder.bin", "bb..."]]}
    # Another value leaves everybody's engines behind: count SCHEMA up instead.
    assert engine_key(SPEC) == "dceaa55d6c208d6f5746dd9f382c33b38f1f5f6972a39dfccadee12b86de566c"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 4), (1, 5, 4)])
def test_batches_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    smallest, tuned, largest = sizes
    with pytest.raises(BackendError, match="in the order smallest, tuned, largest"):
        BatchRange(smallest=smallest, tuned=tuned, largest=largest)


@pytest.mark.parametrize(
    ("given", "fault"),
    [({"workspace_mib": 0}, "workspace_mib is 0"), ({"hardware": "any"}, "hardware is 'any'")],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(BackendError, match=fault):
        EngineOptions(**given)


def test_a_spec_takes_its_hashes_from_the_manifest(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    rest: dict[str, Any] = {"tensorrt": "11.4.0.106", "gpu": GPU, "options": OPTIONS}
    encoder, depth = (spec_of(bundle, name, **rest) for name in ("encoder", "depth"))
    files = bundle.manifest.files
    assert encoder.graph == files["encoder.onnx"].sha256
    assert encoder.weights == (("encoder.bin", files["encoder.bin"].sha256),)
    assert (depth.graph, depth.weights) == (files["depth.onnx"].sha256, ())
    with pytest.raises(UnknownNameError, match="did you mean 'depth'"):
        spec_of(bundle, "dept", **rest)


def test_an_engine_lies_in_a_folder_that_only_its_owner_enters(tmp_path: Path) -> None:
    path = engine_path(SPEC, root=tmp_path / "engines")
    assert path.name == f"{engine_key(SPEC)}.plan"
    assert path.parent.name.startswith("nvidia-rtx-4000-sff-ada-generation-")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_machines_never_share_a_folder(tmp_path: Path) -> None:
    places = {
        engine_path(replace(SPEC, gpu=replace(GPU, driver=driver)), root=tmp_path).parent
        for driver in ("12.8", "13.0")
    }
    assert len(places) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = engine_path(SPEC, root=tmp_path).parent
    folder.chmod(0o770)
    with pytest.raises(BackendError, match="chmod 700"):
        engine_path(SPEC, root=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = engine_path(SPEC, root=tmp_path).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="behind a link"):
        engine_path(SPEC, root=tmp_path)


def test_the_root_follows_xdg_unless_it_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = str(Path.home() / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", absolute)
    assert default_root() == Path(absolute, "simo", "engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root() == Path.home() / ".cache" / "simo" / "engines"
