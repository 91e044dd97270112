"""The report beside a bundle: complete, without paths, and without any weight of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from simo_build import ledger, workshop
from simo_build.build import build
from simo_build.costs import of_merge
from simo_build.loading import load_recipe
from simo_build.merging import merge
from simo_build.page import Page, to_html, to_markdown
from simo_build.progress import Silent
from simo_build.stages import Result
from simo_build.workshop import Workshop
from simo_runtime.bundle import REPORTS, Bundle
from tests.test_page import Reader
from tests.tiny import SPLITS, TASKS, opened, write_recipe, write_workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_workplace(folder)
    return folder


def built(place: Path, out: Path, **changes: Any) -> Bundle:
    return build(load_recipe(str(write_recipe(place, **changes))), out, progress=Silent())


@pytest.fixture(scope="module")
def bundle(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(place, tmp_path_factory.mktemp("out") / "tiny")


@pytest.fixture
def bare(bundle: Bundle, tmp_path: Path) -> Path:
    """The same bundle elsewhere, its stages beside it, without reports."""
    shutil.copytree(bundle.root.parent, tmp_path, dirs_exist_ok=True)
    for name in REPORTS:
        (tmp_path / "tiny" / name).unlink()
    return tmp_path / "tiny"


def tables(log: dict[str, Any], work: Workshop) -> str:
    """The tables on merging parameters, as Markdown."""
    found = tuple(ledger.choice_tables(log, work.recipe.specs()))
    return to_markdown(Page(title="", lead="", figures=(), tables=found))


def test_every_precision_that_runs_here_has_a_row(place: Path, tmp_path: Path) -> None:
    wide = {"cosine": 0.1, "patch_cosine": 0.1, "frobenius": 1, "argmax": 0.01, "metric_change": 1}
    narrow = ["fp16", "bf16", "int8"]
    export = {"precisions": ["fp32", *narrow], "gate": dict.fromkeys(narrow, wide)}
    bundle = built(place, tmp_path / "tiny", export=export)
    assert set(bundle.manifest.graphs) == {"fp32", *narrow}
    markdown, _ = texts(bundle)
    assert "| **in ONNX Runtime** |" in markdown
    assert "| in ONNX Runtime, fp16 |" in markdown
    assert "| in ONNX Runtime, int8 |" in markdown
    assert "ONNX Runtime, bf16" not in markdown  # no kernels of it for a CPU
    assert "The machine of the build cannot run bf16." in markdown


def texts(bundle: Bundle) -> tuple[str, str]:
    markdown, page = (bundle.root / name for name in REPORTS)
    return markdown.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def test_every_stage_is_there_with_its_metrics(bundle: Bundle) -> None:
    markdown, page = texts(bundle)
    provenance = bundle.manifest.provenance
    for stage in ("experts", "merged", "re-aligned", "folded", "in ONNX Runtime"):
        assert f"| {stage} |" in markdown.replace("*", "")
    metrics = {
        "experts": provenance["merge"]["experts"],
        "re-aligned": provenance["realign"]["metrics"],
    }
    for stage, found in metrics.items():
        (line,) = (one for one in markdown.splitlines() if one.startswith(f"| {stage} |"))
        assert f"{found['depth']:.4f} m" in line
        assert f"{found['normals']:.2f}°" in line
    read = Reader(page)
    assert not read.open
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert sum(tag == "tr" for tag in read.tags) >= len(rows) // 2


def test_what_it_cost_and_what_went_in_is_told(bundle: Bundle) -> None:
    markdown, page = texts(bundle)
    inputs = bundle.manifest.provenance["inputs"]
    for found in (inputs["base"], inputs["data"], *inputs["experts"].values()):
        assert found in markdown
        assert found in page
    used = f"{SPLITS['realign']} realign, {SPLITS['select']} select"
    steps = 2 * 1  # one epoch of one batch for each of two heads
    assert f"| re-align: head | {used} | {used} | {steps} |" in markdown
    assert "| expert depth | not recorded |" in markdown
    assert "alpha 0.5" in markdown
    assert "alpha 1.0" in markdown


def test_pictures_of_every_task_stand_in_the_page_alone(bundle: Bundle) -> None:
    markdown, page = texts(bundle)
    told = [value for name, value in Reader(page).attributes if name == "alt" and value]
    images = SPLITS["select"]
    assert len(told) == len(TASKS) * images * 5
    for column in ("input", "truth", "expert", "merged", "re-aligned"):
        assert f"depth: {column}, image {images}" in told
    assert "data:image" not in markdown
    assert "`report.html`" in markdown


def test_no_pictures_if_the_recipe_says_so(place: Path, bundle: Bundle) -> None:
    work = opened(write_recipe(place, report={"images": 0}))
    nothing = Result({}, {}, "")
    assert not list(ledger.Ledger(work, nothing, nothing, bundle).strips())


def test_a_report_names_no_folder_of_the_machine(bundle: Bundle, place: Path) -> None:
    for text in texts(bundle):
        for path in (place, bundle.root.parent, Path(ledger.__file__).parent, Path.home()):
            assert str(path) not in text


def test_what_a_recipe_says_is_escaped() -> None:
    tags = "<img src=x onerror=alert(1)>"
    found = tuple(ledger.choice_tables({"params": {tags: f"`{tags}`|"}}, {}))
    page = Page(title=tags, lead=tags, figures=((tags, tags),), tables=found)
    read = Reader(to_html(page))
    assert "img" not in read.tags
    assert any(tags in text for text in read.texts)
    assert "<img" not in to_markdown(page).replace("\\<", "")


def test_a_report_that_is_not_there_is_written_and_one_that_is_kept(
    place: Path, bundle: Bundle, bare: Path
) -> None:
    written = built(place, bare)
    assert lasting(written) == lasting(bundle)
    left = sorted(path.name for path in bare.parent.iterdir())
    assert left == [".stages", "tiny"]
    (bare / "report.md").write_text("mine")
    assert texts(built(place, bare))[0] == "mine"


def lasting(bundle: Bundle) -> list[str]:
    """The lines of a report that do not tell how long the report itself took."""
    return [line for line in texts(bundle)[0].splitlines() if not line.startswith("| report |")]


def test_a_report_that_fails_leaves_a_whole_bundle_behind(
    place: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(ledger, "to_html", full)
    with pytest.raises(OSError, match="no space"):
        built(place, bare)
    Bundle.open(bare)
    assert sorted(path.name for path in bare.parent.iterdir()) == [".stages", "tiny"]


def test_what_stages_have_logged_is_not_measured_again(
    place: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(ledger, "measure", refuse)
    monkeypatch.setattr(ledger, "measure_experts", refuse)
    built(place, bare)
    assert all((bare / name).is_file() for name in REPORTS)


def test_a_report_reads_the_select_split_alone(
    place: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    read: Callable[..., Any] = workshop.load_split

    def noted(loaded: Any, role: str, **rest: Any) -> Any:
        asked.append(role)
        return read(loaded, role, **rest)

    monkeypatch.setattr(workshop, "load_split", noted)
    built(place, bare)
    assert asked == ["select"]


def test_parameters_that_were_given_are_told(place: Path) -> None:
    work = opened(write_recipe(place, merge={"params": {"alpha": 0.5}}))
    told = tables(dict(merge(work).log), work)
    assert "Given in the recipe; nothing was chosen." in told
    assert "| alpha | 0.5 |" in told


def test_a_choice_without_labels_is_told(place: Path) -> None:
    by = {"choose": {"alpha": [0.5, 1.0]}, "by": "cka_over_base", "images": 4}
    work = opened(write_recipe(place, merge=by))
    log = dict(merge(work).log)
    told = tables(log, work)
    assert "by cka_over_base, a score without labels, on 4 images of realign" in told
    assert f"| **{ledger.named(log['params'])}** |" in told


def test_of_many_candidates_the_one_that_was_taken_is_shown(place: Path) -> None:
    work = opened(write_recipe(place))
    rows = [{"params": {"alpha": n}, "score": float(n)} for n in range(100)]
    log = {"params": {"alpha": 99}, "by": "cka", "images": 4, "tried": rows}
    told = tables(log, work)
    assert "| **alpha 99** |" in told
    assert f"The manifest has the other {100 - ledger.TRIED}." in told


def test_coefficients_that_were_learnt_are_told(place: Path) -> None:
    merging = {"method": "adamerging", "params": {"epochs": 1}, "images": 4}
    work = opened(write_recipe(place, merge=merging))
    merged = merge(work)
    told = tables(dict(merged.log), work)
    assert "On 4 images of realign, 0 of them with labels" in told
    assert of_merge(merged.log).steps == 1


def test_random_weights_are_called_so(place: Path, tmp_path: Path) -> None:
    tasks = {"depth": {"kind": "depth"}}
    path = write_recipe(place, base="random(0)", merge={}, realign=[])
    content = yaml.safe_load(path.read_text())
    del content["data"]
    path.write_text(yaml.safe_dump({**content, "tasks": tasks}))
    markdown, page = texts(build(load_recipe(str(path)), tmp_path / "r", progress=Silent()))
    assert "Its weights are random" in markdown
    assert "After every stage" not in page
    assert "<img" not in page
