"""The README tells the truth: its Python runs, its commands exist, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("samples/*/README.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [body for name, body in FENCE.findall(README) if name == language]


def commands() -> list[list[str]]:
    lines = [line for body in blocks("console") for line in body.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [one or other for one, other in LINK.findall(text)]
    local = [t.split("#")[0] for t in targets if not t.startswith(("http", "#", "mailto"))]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("code", blocks("python"))
def test_the_readmes_python_runs(
    code: str, rooms_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2
    import numpy as np

    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "rooms").symlink_to(rooms_bundle)
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((90, 130, 3), 128, np.uint8))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_first_screen_shows_a_picture_and_the_commands() -> None:
    screen = "\n".join(README.splitlines()[:45])
    assert LINK.search(screen)
    for command in ("simo-build", "simo-infer", "simo-bench", "make demo"):
        assert command in screen


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(command: list[str]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    name = command[0]
    if name == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert all(word in targets for word in command[1:] if "=" not in word)
        return
    if name not in scripts:
        assert name in {"git", "cd", "pip", "python"}
        return
    told = subprocess.run(
        [Path(sys.executable).parent / name, "--help"], capture_output=True, text=True, check=True
    )
    options = [word for word in command[1:] if word.startswith("-")]
    assert all(re.search(rf"(^|[\s,]){re.escape(option)}\b", told.stdout) for option in options)


def test_no_page_names_a_path_of_somebodys_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w./~])/(home|root|work|Users)/", page.read_text())
