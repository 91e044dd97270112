"""What is installed is what is meant to be installed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("simo_runtime", "simo_build", "simo_export", "simo_engines", "simo_bench")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy of what git knows, so that nothing lying about can slip in.
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in files.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, source], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def expected() -> set[str]:
    roots = [ROOT, ROOT / "export", ROOT / "build_engines", ROOT / "benchmarks"]
    return {
        path.relative_to(root).as_posix()
        for root in roots
        for package in OURS
        for path in (root / package).rglob("*")
        if path.suffix in {".py", ".yaml"} or path.name == "py.typed"
    }


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected()


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_every_command_is_installed(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    text = wheel.read(name).decode()
    assert {line.split(" = ")[0] for line in text.splitlines() if " = " in line} == set(scripts)


def test_the_lock_pins_and_hashes_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "requirements" / "dev.lock").read_text()
    locked = {line.split("==")[0] for line in lock.splitlines() if "==" in line[:60]}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["build"]]
    names = {
        wish.split(";")[0].split(">")[0].split("=")[0].strip().lower().replace("_", "-")
        for wish in wanted
    }
    assert names <= locked
    assert not {"tensorrt", "pycuda"} & locked
    assert "--hash=sha256:" in lock
    assert "index-url" not in lock
