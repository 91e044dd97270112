"""Whether a package can be imported, and what to install if not."""

from pathlib import Path

import pytest

from simo_runtime.importing import import_fault


@pytest.fixture(autouse=True)
def _packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (
        ("simo_whole", ""),
        ("simo_broken", "raise ImportError('libGL.so.1: no such file')"),
        ("simo_unloadable", "raise OSError('wrong ELF class')"),
        ("simo_needy", "import simo_nowhere"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "simo_left").mkdir()
    monkeypatch.syspath_prepend(tmp_path)


def fault(module: str) -> str | None:
    return import_fault(module, wheel="a-wheel", owners="a-wheel another")


def test_a_package_that_can_be_imported_has_none() -> None:
    assert fault("simo_whole") is None


def test_a_package_that_is_not_there_is_to_be_installed() -> None:
    assert fault("simo_nowhere") == "simo_nowhere is not installed: pip install a-wheel"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("simo_broken", "libGL.so.1: no such file"),
        ("simo_unloadable", "wrong ELF class"),
        ("simo_needy", "No module named 'simo_nowhere'"),
        ("simo_left", "its folder is left of a wheel that was uninstalled"),
    ],
)
def test_a_package_that_is_broken_is_to_be_installed_again(module: str, reason: str) -> None:
    assert fault(module) == (
        f"{module} cannot be imported: {reason}; install it again: "
        "pip uninstall a-wheel another, then pip install a-wheel"
    )
