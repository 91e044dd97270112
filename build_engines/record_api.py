"""Hold what this project uses of TensorRT's Python API to the real bindings of several versions.

    python build_engines/record_api.py tests/tensorrt-api.json

Linux x86-64 with a C compiler. The bindings are wheels of a megabyte and need TensorRT's libraries
only for nine functions that are called when objects are made. With empty stand-ins for those, the
bindings can be imported without TensorRT and without a GPU, and tell every class, method, argument
and value that they have. Nothing can be built that way: names and arguments are checked, behaviour
is not.

`tests/test_tensorrt_api.py` does so with the wheels that `requirements/bindings` pins. The command
writes what it finds into a table, for the tests of machines that cannot have the wheels. The table
has, for each version, the members that the code uses:

    {"10.16.1.11": {"Builder": {"create_network": {"args": ["flags="], "returns": "..."}}}}

`flags=` has a default, `"set": true` is a property that can be set. The functions `uses` and
`faults` follow the annotations of the source, and compare what it does with such a table.
"""

import ast
import contextlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Api = Mapping[str, Mapping[str, Mapping[str, Any]]]  # class -> member -> what it is

ROOT = Path(__file__).resolve().parents[1]
# The oldest that is claimed, the last 10 and the newest: a file each, with its wheels' hashes.
PINS = ROOT / "requirements" / "bindings"
PACKAGES = (
    ROOT / "simo_runtime",
    ROOT / "simo_build",
    ROOT / "export" / "simo_export",
    ROOT / "build_engines" / "simo_engines",
    ROOT / "benchmarks" / "simo_bench",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
OWN = re.compile(r"_(?!_init__)")  # a private method, which overrides nothing
MODULE = "tensorrt"  # stands in a table beside the classes
ALIAS = "trt"
IMPORTS = re.compile(rf"^\s*import tensorrt as {ALIAS}$", re.MULTILINE)
# The statements that give a value to a variable, and where they keep the value.
ASSIGNS: dict[type[ast.AST], str] = {
    ast.Assign: "value",
    ast.AnnAssign: "value",
    ast.For: "iter",
    ast.comprehension: "iter",
    ast.withitem: "context_expr",
}
PLAIN = {"bool", "float", "int", "str"}
# Where a binding shows the C++ name, because the Python class is defined after it.
CPP_NAMES = {"nvonnxparser::IParserError": "ParserError"}


# What the source uses.


@dataclass(frozen=True)
class Thing:
    """What an expression is: the module, a class, one of its objects, or a function."""

    kind: str  # module, class, object, function
    owner: str
    member: str = ""


@dataclass(frozen=True)
class Use:
    """One use of a name, with its arguments where it is called."""

    line: int
    owner: str
    member: str
    positional: int | None = None  # None: not called
    keywords: tuple[str, ...] = ()
    stored: bool = False  # a value is given to it

    @property
    def name(self) -> str:
        """The name as people write it."""
        return f"{self.owner}.{self.member}"


def sources() -> list[Path]:
    """List the files that import TensorRT."""
    found = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
    return [path for path in found if IMPORTS.search(path.read_text(encoding="utf-8"))]


def versions() -> list[str]:
    """List the versions that are pinned, the oldest first."""
    return sorted((path.stem for path in PINS.glob("*.txt")), key=_numbers)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def uses(source: str, api: Api) -> list[Use]:
    """Find every use of TensorRT in a module that imports it as `trt`.

    Objects are followed from annotations (`builder: "trt.Builder"`), constructors and the results
    of calls; ValueError where one would be lost from sight.
    """
    tree = ast.parse(source)
    reader = _Reader(tree, api)
    for node in tree.body:
        reader.read(node, {})
    return reader.found


class _Reader:
    """Walks a module, one scope (a dictionary from variables to things) a function."""

    def __init__(self, tree: ast.Module, api: Api) -> None:
        self.api = api
        self.found: list[Use] = []
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self.returned = {function.name: _annotated(function.returns) for function in functions}

    def read(self, node: ast.AST, scope: dict[str, Thing]) -> None:
        """Collect the uses under a node, and what its assignments make of variables."""
        if isinstance(node, ast.FunctionDef):
            scope = dict(scope)
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                _bind(scope, argument.arg, self.note(argument.annotation))
            self.note(node.returns)
        elif isinstance(node, ast.ClassDef):
            self.subclass(node)
        if isinstance(node, ast.expr):
            self.thing(node, scope)
            return
        done = self.assign(node, scope)
        for child in ast.iter_child_nodes(node):
            if child is not done:
                self.read(child, scope)

    def note(self, annotation: ast.expr | None) -> Thing | None:
        """Count an annotation `trt.X` as a use of X, and give an object of it."""
        thing = _annotated(annotation)
        if thing is not None:
            self.use(annotation, MODULE, thing.owner)
        return thing

    def subclass(self, node: ast.ClassDef) -> None:
        """Count the methods that override those of a base class `trt.X`."""
        for base in node.bases:
            thing = _annotated(base)
            if thing is None:
                continue
            for method in node.body:
                # Which public methods are its own is not written down: all must override.
                if isinstance(method, ast.FunctionDef) and not OWN.match(method.name):
                    given = len(method.args.args) - 1 if method.name != "__init__" else 0
                    self.use(method, thing.owner, method.name, positional=given)

    def assign(self, node: ast.AST, scope: dict[str, Thing]) -> ast.AST | None:
        """Bind a variable and give the value that was read; refuse what cannot be followed."""
        value = getattr(node, ASSIGNS.get(type(node), ""), None)
        if not isinstance(value, ast.expr):
            return None
        thing = self.thing(value, scope)
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign):
            _bind(scope, target.id, thing)
        elif thing is not None:
            raise ValueError(f"line {value.lineno}: {thing.owner} is lost from sight")
        return value

    def thing(self, node: ast.expr, scope: dict[str, Thing]) -> Thing | None:
        """Tell what an expression is, and collect the uses in it."""
        if isinstance(node, ast.Name):
            return Thing("module", MODULE) if node.id == ALIAS else scope.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.thing(node.value, scope)
            return self.member(node, owner) if owner else None
        if isinstance(node, ast.Call):
            return self.call(node, scope)
        for child in ast.iter_child_nodes(node):
            self.read(child, scope)
        return None

    def member(self, node: ast.Attribute, owner: Thing) -> Thing | None:
        """Tell what `owner.attr` is."""
        self.use(node, owner.owner, node.attr, stored=isinstance(node.ctx, ast.Store))
        entry = self.api.get(owner.owner, {}).get(node.attr, {})
        if "class" in entry:
            return Thing("class", node.attr)
        if "args" in entry:
            return Thing("function", owner.owner, node.attr)
        return _object(entry.get("type"))

    def call(self, node: ast.Call, scope: dict[str, Thing]) -> Thing | None:
        """Tell what a call gives; the use that it calls gets its arguments."""
        function = self.thing(node.func, scope)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.read(argument, scope)
        if function is None:
            return self.returned.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise ValueError(f"line {node.lineno}: write the arguments of TensorRT's calls out")
        member = function.member or "__init__"
        self.use(
            node,
            function.owner,
            member,
            positional=len(node.args),
            keywords=tuple(str(keyword.arg) for keyword in node.keywords),
        )
        if function.kind == "class":
            return Thing("object", function.owner)
        return _object(self.api[function.owner][member].get("returns"))

    def use(self, node: ast.AST | None, owner: str, member: str, **arguments: Any) -> None:
        """Add a use."""
        self.found.append(Use(getattr(node, "lineno", 0), owner, member, **arguments))


def _annotated(node: ast.expr | None) -> Thing | None:
    """Read `trt.X`, quoted or not, as an object of class X."""
    text = node.value if isinstance(node, ast.Constant) else ast.unparse(node) if node else ""
    found = re.fullmatch(rf"{ALIAS}\.(\w+)(?: \| None)?", str(text))
    return Thing("object", found[1]) if found else None


def _object(name: str | None) -> Thing | None:
    return Thing("object", name) if name and name not in PLAIN else None


def _bind(scope: dict[str, Thing], name: str, thing: Thing | None) -> None:
    if thing is None:
        scope.pop(name, None)
    else:
        scope[name] = thing


# Whether a version has it.


def faults(found: list[Use], api: Api) -> Iterator[str]:
    """List the uses that a version does not have, or does not take with such arguments."""
    for use in found:
        entry = api.get(use.owner, {}).get(use.member)
        if entry is None:
            yield f"line {use.line}: {use.name} does not exist"
        elif use.positional is not None and "args" not in entry:
            yield f"line {use.line}: {use.name} is not a function"
        elif use.stored and not entry.get("set"):
            yield f"line {use.line}: {use.name} cannot be set"
        elif use.positional is not None and not _takes(entry["args"], use):
            yield f"line {use.line}: {use.name} takes ({', '.join(entry['args'])})"


def _takes(args: list[str], use: Use) -> bool:
    names = [name.rstrip("=") for name in args]
    given = {*names[: use.positional], *use.keywords}
    needed = {name for name in args if not name.endswith("=")}
    return (use.positional or 0) <= len(args) and needed <= given <= set(names)


def pruned(found: list[Use], api: Api) -> dict[str, dict[str, Any]]:
    """Keep of an API what is used."""
    kept: dict[str, dict[str, Any]] = {}
    for use in found:
        kept.setdefault(use.owner, {})[use.member] = api[use.owner][use.member]
    return kept


# What the bindings have.


def describe(module: Any) -> dict[str, dict[str, Any]]:
    """Tell every class, member, argument and value of the bindings."""
    api: dict[str, dict[str, Any]] = {MODULE: {"__version__": {"type": "str"}}}
    for name in dir(module):
        thing = getattr(module, name)
        if isinstance(thing, type):
            api[MODULE][name] = {"class": name}
            api[name] = {
                member: _entry(getattr(thing, member))
                for member in dir(thing)
                if member == "__init__" or not member.startswith("_")
            }
    return api


def _entry(member: Any) -> dict[str, Any]:
    """Tell what a member is, from the signature in its docstring: pybind11 has no other."""
    if hasattr(type(member), "__members__"):
        return {"value": int(member)}
    if isinstance(member, property):
        found = re.search(r"-> (.+)", member.fget.__doc__ or "" if member.fget else "")
        kind = _plain_name(found[1]) if found else None
        return {"type": kind, **({"set": True} if member.fset else {})}
    found = re.search(r"\w+\((self: .*?)\) -> (.+)", member.__doc__ or "")
    if isinstance(member, type) or found is None:
        return {"other": type(member).__name__}
    return {"args": _arguments(found[1]), "returns": _plain_name(found[2])}


def _arguments(signature: str) -> list[str]:
    while re.search(r"\[[^\[\]]*\]", signature):
        signature = re.sub(r"\[[^\[\]]*\]", "", signature)
    arguments = signature.split(", ")[1:]
    return [text.split(":")[0] + ("=" if " = " in text else "") for text in arguments]


def _plain_name(name: str) -> str | None:
    """Turn `tensorrt_bindings.tensorrt.Builder` into `Builder`."""
    name = CPP_NAMES.get(name, name).split(".")[-1]
    if re.fullmatch(r"\w+", name) is None:
        return None
    return None if name == "None" else name


def install(version: str, folder: Path) -> None:
    """Download and unpack a pinned wheel of the bindings, with stand-ins for its libraries.

    The folder appears whole or not at all, and is used again if it is there. Raises
    subprocess.CalledProcessError without an index or a compiler.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        made = Path(name) / "bindings"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        pins = PINS / f"{version}.txt"
        options = ["--only-binary=:all:", "--disable-pip-version-check", "--dest", name, "-r", pins]
        subprocess.run([*pip, *options], check=True, capture_output=True)
        zipfile.ZipFile(next(Path(name).glob("*.whl"))).extractall(made)
        _stand_ins(made, version.partition(".")[0])
        with contextlib.suppress(OSError):  # another process was first
            made.rename(folder)


def _stand_ins(folder: Path, major: str) -> None:
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}"]
        target = folder / "tensorrt_bindings" / library  # where the bindings look first
        subprocess.run(["cc", *options, "-o", target, source], check=True, capture_output=True)


def api_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Give the version and the API of bindings that were installed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--describe"]
    # One process a version, started where that version's bindings are found.
    out = subprocess.run(
        command, env={"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, check=True
    ).stdout
    ((version, api),) = json.loads(out).items()
    return version, api


def used(api: Api) -> list[Use]:
    """Find every use of TensorRT in this project."""
    return [use for path in sources() for use in uses(path.read_text(encoding="utf-8"), api)]


def main() -> None:
    """Write the table; with --describe, print the API of the bindings that can be imported."""
    if sys.argv[1:] == ["--describe"]:
        module = importlib.import_module("tensorrt_bindings")
        print(json.dumps({module.__version__: describe(module)}))
        return
    (target,) = map(Path, sys.argv[1:])
    table = {}
    for pinned in versions():
        with tempfile.TemporaryDirectory() as name:
            install(pinned, Path(name) / "installed")
            version, api = api_of(Path(name) / "installed")
        for path in sources():
            for fault in faults(uses(path.read_text(encoding="utf-8"), api), api):
                sys.exit(f"TensorRT {version}: {path.name}, {fault}")
        found = used(api)
        table[version] = pruned(found, api)
        print(f"TensorRT {version}: {len({use.name for use in found})} names", file=sys.stderr)
    target.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
