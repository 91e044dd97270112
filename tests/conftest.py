"""What many tests share: the sample's data and its bundle, made once a run."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "samples" / "rooms" / "rooms.yaml"


@pytest.fixture(scope="session")
def rooms_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small set of rooms: 24 to re-align on, 8 to choose on, 8 to test."""
    folder = tmp_path_factory.mktemp("data")
    draw = [sys.executable, ROOT / "samples" / "rooms" / "render.py", "-o", folder / "rooms"]
    splits = ["--split", "realign=24", "--split", "select=8", "--split", "test=8"]
    subprocess.run([*draw, *splits, "--size", "120x160"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def rooms_bundle(rooms_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's bundle, built by the library from the committed experts."""
    from simo_build.build import build
    from simo_build.loading import load_recipe
    from simo_build.progress import Silent

    out = tmp_path_factory.mktemp("bundles") / "rooms"
    loaded = load_recipe(str(RECIPE), data=rooms_data)
    return build(loaded, out, progress=Silent()).root


@pytest.fixture
def rooms_copy(rooms_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the sample's bundle, to be damaged."""
    return Path(shutil.copytree(rooms_bundle, tmp_path / "rooms"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny experts, their base and their data; tests write recipes into it."""
    from tests.tiny import write_workplace

    return write_workplace(tmp_path_factory.mktemp("place")).parent


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """The splits that are read, and the tasks whose truths are read with them."""
    from tests.realigning import spied

    return spied(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes to a file whose suffix says nothing true."""

    def write(data: bytes) -> Path:
        path = tmp_path / "photo.jpg"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(autouse=True)
def _no_data_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests say themselves where data is."""
    monkeypatch.delenv("SIMO_DATA", raising=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of a machine stays out of the user's cache, and out of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            reason = "needs an NVIDIA GPU: torch.cuda.is_available() is False here"
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def workplace(tmp_path: Path, rooms_data: Path, rooms_bundle: Path) -> Path:
    """A folder with the sample's bundle where simo-infer looks for one, and a photo."""
    shutil.copytree(rooms_bundle, tmp_path / "bundles" / "rooms")
    shutil.copy(rooms_data / "rooms" / "rgb" / "0001.jpg", tmp_path / "room.jpg")
    return tmp_path


@pytest.fixture
def album(workplace: Path) -> Path:
    """A folder of 30 photos, one of them no photo."""
    (workplace / "album").mkdir()
    for number in range(30):
        shutil.copy(workplace / "room.jpg", workplace / "album" / f"{number:02d}.jpg")
    (workplace / "album" / "07.jpg").write_text("no")
    return workplace
