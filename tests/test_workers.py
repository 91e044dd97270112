"""Two processes train to what one does, but for rounding; one alone pays nothing for it."""

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from simo_build.build import realign
from simo_build.checkpoints import read_tensors
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.multitask import train_multitask
from simo_build.progress import Silent
from simo_build.stages import Stages
from simo_build.train import train_expert
from simo_build.workers import Workers, workers
from simo_build.workshop import Workshop
from tests.tiny import write_recipe, write_workplace

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join(str(ROOT / part) for part in ("", "export", "build_engines"))
WORK = "import sys; from tests.test_workers import work; work(*sys.argv[1:])"


def work(place: str, out: str) -> None:
    """Re-align by one recipe and train by the other; say whether this is the main process."""
    main = workers().main  # before anything asks for a device
    loaded = load_recipe(f"{place}/tiny.yaml", experts=Path(out))
    shop = Workshop(loaded, Stages(Path(out), Silent()))
    realign(shop, merge(shop))
    untrained = load_recipe(f"{place}/untrained.yaml", experts=Path(out))
    train_expert(untrained, "depth", Silent())
    train_multitask(untrained, "train", Silent())
    print(main)


def write_recipes(folder: Path) -> None:
    """Write a recipe to re-align by, and one to train by; no batch can be halved."""
    write_workplace(folder)
    quick: dict[str, Any] = {"epochs": 2, "lr": 1e-3, "batch": 5}
    steps = [{"step": "distill", "views": 1, "labels": True, **quick}, {"step": "head", **quick}]
    path = write_recipe(folder, merge={"params": {"alpha": 0.5}}, realign=steps)
    content = yaml.safe_load(path.read_text())
    del content["tasks"]["depth"]["expert"]
    content["data"]["train"] = "realign"
    phases = {name: {"epochs": 2, "lr": 1e-3} for name in ("head", "full")}
    content["train"] = {"batch": 5, "scales": [1.0, 1.5], **phases}
    content["train"]["joint"] = {"loss": "experts", "by": "experts"}
    (folder / "untrained.yaml").write_text(yaml.safe_dump(content))


def run(place: Path, out: Path, count: int) -> list[str]:
    """Do the work in some processes, as a launcher does; give what each has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", WORK, place, out]
    started = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": PATHS,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * count, told
    return [out.strip() for out, _ in told]


def files(folder: Path) -> dict[str, Path]:
    """Give what was made by name; that of joint training follows from the experts' last bits."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    return {
        re.sub("joint-[0-9a-f]+", "joint", str(path.relative_to(folder))): path for path in found
    }


def without_keys_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Leave out the keys' biases: attention does not depend on them, so that only rounding moves
    them, by as much as the learning rate."""
    return torch.cat(tensor.chunk(3)[::2]) if name.endswith("qkv.bias") else tensor


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    write_recipes(tmp_path)
    work(str(tmp_path), str(tmp_path / "one"))
    assert run(tmp_path, tmp_path / "two", 2) == ["True", "False"]
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert set(one) == set(two)
    # what was merged, what was re-aligned, an expert, and of joint training heads and all; no state
    assert len(one) == 5
    base = read_tensors(tmp_path / "base.safetensors")[0]
    for name in one:
        found, wanted = read_tensors(two[name])[0], read_tensors(one[name])[0]
        for key in wanted:
            pair = (without_keys_bias(key, state[key]) for state in (found, wanted))
            torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
        if "merge" not in name and "heads" not in name:
            key = "blocks.0.mlp.fc1.weight"
            moved = wanted[f"encoder.{key}"] - base[key]
            assert moved.abs().max() > 1e-3  # far more than the tolerance


def test_accelerate_is_imported_only_where_processes_are_several() -> None:
    for path in (ROOT / "simo_build").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            assert "accelerate" not in f"{getattr(node, 'module', '')} {names}", path


def test_one_process_alone_shares_nothing() -> None:
    assert type(workers()) is Workers
    batch = torch.arange(6.0).reshape(3, 2)
    (taps,) = Workers().encode(lambda pixels: [pixels], batch)
    assert taps is batch
    assert Workers().from_main(lambda: 5) == 5
