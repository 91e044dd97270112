"""What is remembered of a machine: under its key, and nothing where it cannot be kept."""

from pathlib import Path

import pytest

from simo_runtime.remembered import cache_root, recall, remember


def test_a_value_comes_back_under_its_key_alone() -> None:
    remember("joint", {"a": 1}, True)
    assert recall("joint", {"a": 1}) is True
    assert recall("joint", {"a": 2}) is None
    assert recall("other", {"a": 1}) is None


def test_another_machine_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    remember("joint", {"a": 1}, True)
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert recall("joint", {"a": 1}) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"no": 1}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_damaged_file_is_as_good_as_none(text: str | bytes) -> None:
    remember("joint", {"a": 1}, True)
    (path,) = (cache_root() / "remembered").iterdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert recall("joint", {"a": 1}) is None


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("joint", {"a": 1}, True)
    assert recall("joint", {"a": 1}) is None
