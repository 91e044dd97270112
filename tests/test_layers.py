"""Who may import whom: simo_runtime stands below everything, nothing imports simo_build."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "simo_runtime": ROOT / "simo_runtime",
    "simo_build": ROOT / "simo_build",
    "simo_export": ROOT / "export" / "simo_export",
    "simo_engines": ROOT / "build_engines" / "simo_engines",
    "simo_bench": ROOT / "benchmarks" / "simo_bench",
}
MAY_IMPORT = {
    "simo_runtime": set(),
    "simo_export": {"simo_runtime"},
    "simo_engines": {"simo_runtime", "simo_export"},
    "simo_build": {"simo_runtime", "simo_export", "simo_engines"},
    "simo_bench": {"simo_runtime", "simo_export", "simo_build"},
}
RUNTIME_MAY_USE = {"click", "cv2", "numpy", "onnxruntime"}
BACKENDS_MAY_USE = {"cuda", "pycuda", "tensorrt"}  # of an extra, and imported late
HEAVY = {"torch", "timm", "peft", "onnx", "pydantic", "yaml", "safetensors", "simo_build"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield (node.module or "").split(".")[0], node.lineno


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_imports_only_what_is_below_it(package: str) -> None:
    ours = set(FOLDERS) - MAY_IMPORT[package] - {package}
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FOLDERS[package].rglob("*.py")
        for name, line in imports(path)
        if name in ours
    ]
    assert not upward, "\n".join(upward)


def test_the_runtime_uses_only_its_own_dependencies() -> None:
    allowed = set(sys.stdlib_module_names) | RUNTIME_MAY_USE | {"simo_runtime"}
    foreign = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in FOLDERS["simo_runtime"].rglob("*.py")
        for name, line in imports(path)
        if name not in allowed | (BACKENDS_MAY_USE if path.parent.name == "backends" else set())
    ]
    assert not foreign, "\n".join(foreign)


def modules_after(code: str) -> set[str]:
    printed = f"{code}\nimport sys; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", printed], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(told.stdout.split())


def test_using_the_runtime_imports_nothing_heavy() -> None:
    code = (
        "import simo_runtime.predictor, simo_runtime.sinks, simo_runtime.cli\n"
        "from simo_runtime import backends\n"
        "for name in backends.BACKENDS: backends.load_backend(name).why_not()"
    )
    assert not HEAVY & modules_after(code)


@pytest.mark.parametrize(
    "command",
    [
        "simo_runtime.cli",
        "simo_build.cli",
        "simo_build.own.cli",
        "simo_engines.cli",
        "simo_bench.cli",
    ],
    ids=str,
)
def test_help_waits_for_nothing_heavy(command: str) -> None:
    assert not (HEAVY - {"simo_build"} | {"numpy", "cv2", "onnxruntime"}) & modules_after(
        f"import {command}"
    )


def test_the_public_names_are_all_there_and_sorted() -> None:
    import simo_runtime

    assert simo_runtime.__all__ == sorted(simo_runtime.__all__)
    for name in simo_runtime.__all__:
        assert getattr(simo_runtime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = simo_runtime.Nothing
