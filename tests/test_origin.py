"""Where a result comes from: what is installed, and a command without folders."""

import sys

import pytest

from simo_build.origin import command_of, commit, origin, versions


def test_what_is_not_installed_has_no_version() -> None:
    assert set(versions(["numpy", "no-such-package"])) == {"python", "numpy"}


def test_a_command_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--data", "/somewhere/data", "/somewhere/a bundle"])
    assert command_of("python -m x") == "python -m x --data DATA 'a bundle'"


def test_a_result_tells_command_commit_versions_and_machine() -> None:
    found = origin("python -m x")
    assert set(found) == {"command", "commit", "versions", "machine"}
    assert {"torch", "numpy"} <= set(found["versions"])
    assert found["machine"]["cpus"] >= 1


def test_code_without_its_history_has_the_commit_that_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SIMO_COMMIT", "abc")
    assert commit() != "abc"  # this checkout knows better
    monkeypatch.setenv("PATH", "")  # no git
    assert commit() == "abc"
    monkeypatch.delenv("SIMO_COMMIT")
    assert commit() is None
