"""simo-engines, with a stand-in for TensorRT."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simo_engines.cli import main
from tests.engines.workplace import Workplace


class TestTheCommand:
    def run(self, place: Workplace, *options: str) -> Any:
        arguments = [str(place.bundle.root), "--engines", str(place.root), *options]
        return CliRunner().invoke(main, arguments)

    def test_builds_every_graph_and_prints_where_the_engines_are(self, place: Workplace) -> None:
        found = self.run(place, "--batches", "1:2:3")
        assert found.exit_code == 0, found.output
        lines = found.stdout.splitlines()
        assert [line.split(":")[0] for line in lines] == ["encoder fp32", "depth fp32"]
        assert all(Path(line.split(": ")[1]).is_file() for line in lines)
        assert place.answers.asked["tap0"] == ((1, 32, 32), (2, 32, 32), (3, 32, 32))

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            (["--graphs", "dept"], "did you mean 'depth'"),
            (["--precision", "fp61"], "unknown precision 'fp61'"),
            (["--batches", "1:2"], "must be three numbers"),
            (["--batches", "3:2:1"], "in the order smallest, tuned, largest"),
        ],
    )
    def test_mistakes_get_one_clear_line(
        self, place: Workplace, options: list[str], fault: str
    ) -> None:
        found = self.run(place, *options)
        assert found.exit_code == 1
        assert found.stderr.startswith("Error: ")
        assert fault in found.stderr
        assert not place.root.exists()

    def test_a_folder_without_photos_is_refused(self, place: Workplace, tmp_path: Path) -> None:
        found = self.run(place, "--images", str(tmp_path))
        assert "there is no photo in it" in found.stderr

    def test_a_damaged_bundle_is_refused_before_anything_is_built(
        self, place: Workplace, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(place.bundle.root, copy)
        (copy / "encoder.bin").write_bytes(b"x")
        found = CliRunner().invoke(main, [str(copy)])
        assert found.exit_code == 1
        assert "encoder.bin: 1 bytes" in found.stderr
        assert place.answers.asked == {}
