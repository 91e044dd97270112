"""The steps of the GPU script, their order, and the wheels that they need."""

from pathlib import Path

from simo_bench.gpu.steps import BACKENDS, BARS, PRECISIONS, STUDIES, TESTS, Plan

ROOT = Path(__file__).resolve().parents[1]


def test_wheels_are_those_of_the_lock() -> None:
    listed = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text().splitlines()
    pins = {line for line in listed if line and not line.startswith("#")}
    lock = (ROOT / "requirements" / "dev.lock").read_text().splitlines()
    assert pins <= {line.removesuffix(" \\") for line in lock}
    assert len(pins) == 4


def test_the_plan_has_everything_in_order(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path, data=tmp_path)
    names = [step.name for step in plan.steps()]
    assert names[:9] == [
        *("roofline", "tests-gpu", "merging-equal", "gates"),
        *("passes linear bf16 eager bars", "passes linear bf16 eager", "profile eager"),
        *("passes linear bf16 compile bars", "profile compile"),
    ]
    assert names.index("merging-times cuda") < names.index("passes dpt_small bf16 eager bars")
    for precision in PRECISIONS:
        for way in ("eager", "compile", "aot"):
            assert f"passes dpt_small {precision} {way}" in names
        for backend in BACKENDS:
            assert f"tasks {backend} linear {precision}" in names
    for study in STUDIES:
        assert study.name in names
    assert names.index("five-drawn") < names.index("five-experts")
    assert len(names) == len(set(names))


def test_parts_of_a_step_are_kept_in_one_file(tmp_path: Path) -> None:
    steps = {step.name: step.command for step in Plan(out=tmp_path).steps()}
    whole, part = steps["passes linear fp16 eager"], steps["passes linear fp16 eager bars"]
    assert part == (*whole, "--items", BARS)


def test_the_tests_of_the_gpu_are_named(tmp_path: Path) -> None:
    (step,) = (one for one in Plan(out=tmp_path).steps() if one.name == "tests-gpu")
    assert set(TESTS) <= set(step.command)
    assert all((ROOT / name).is_file() for name in TESTS)
