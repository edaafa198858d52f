"""Keeps import directions: parts import downwards only, and heavy libraries stay where they belong.

It must not know what any part does; it reads import statements and, in fresh interpreters, the modules loaded.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"

# From top to bottom. A part imports parts of lower rows only; parts of one row do not import each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("evaluation",),
    ("server", "fleet"),
    ("hypervisor",),
    ("runtime",),
    ("compiler", "zoo"),
    ("device",),
    ("hardware",),
    ("numerics",),
    ("isa",),
    ("config", "jit"),
    ("files",),
    ("errors",),
)
RANK = {part: row for row, parts in enumerate(LAYERS) for part in parts}

# A library on the left is imported by the modules on the right (and what lies under them) and by no other.
ONLY_IN = {
    "onnx": ("compiler.static", "zoo"),
    "onnxruntime": ("compiler.static", "zoo", "runtime.tail", "evaluation"),
    "amaranth": ("hardware", "device.rtl"),
    "ray": ("fleet",),
    "numba": ("jit",),
    "fastapi": ("server",),
    "grpc": ("server.rpc", "server.run"),
    "uvicorn": ("server",),
    "yaml": ("server.repository",),
    "sqlalchemy": ("server.store",),
    "alembic": ("server.store",),
    "psycopg": ("server.store",),
    "argon2": ("server.keys",),
    "typer": ("cli",),
    "rich": ("cli", "evaluation"),
    "matplotlib": ("cli", "evaluation"),
}


class Ban(NamedTuple):
    """Modules under `owner`, save those under `exempt`, import nothing under `banned`, save what is under `allowed`."""

    owner: str
    banned: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()


BANS = (
    Ban("hypervisor", banned=("device",), allowed=("device.base",)),
    Ban("hardware", banned=("numerics", "device", "compiler")),
    Ban("compiler", banned=("compiler.static",), exempt=("compiler.static",)),
    Ban("compiler", banned=("device",), exempt=("compiler.static.clock",)),  # tilings are judged by the device's clock
    Ban("zoo", banned=("device",)),
)

STANDARD_LIBRARY_ONLY = ("isa", "config", "files", "errors")


class Import(NamedTuple):
    """One import: the module (dotted, without "corepool."; "" is the root), what it imports, and the line."""

    module: str
    target: str
    line: int


def under(name: str, *roots: str) -> bool:
    """True when `name` is one of `roots` or lies below one."""
    return any(name == root or name.startswith(root + ".") for root in roots)


def module_name(path: Path, root: Path) -> str:
    """Full dotted name of a source file: root/corepool/isa/__init__.py is corepool.isa."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets_of(node: ast.AST, package: str, known: frozenset[str]) -> Iterator[str]:
    """Full names of the modules that a statement or call imports; `package` is what relative imports start from."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            source = ".".join([*base, *([module] if module else [])])
            for alias in names:
                full = f"{source}.{alias.name}"
                yield full if full in known else source
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            if called in ("import_module", "__import__"):
                yield name


def scan(root: Path) -> list[Import]:
    """Every import, wherever in a file it stands, of the package that lies in `root`/corepool."""
    files = {module_name(path, root): path for path in sorted((root / "corepool").rglob("*.py"))}
    known = frozenset(files)
    found = []
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            for target in targets_of(node, package, known):
                found.append(
                    Import(name.removeprefix("corepool").removeprefix("."), target, getattr(node, "lineno", 0))
                )
    return found


def complaint(found: Import) -> str | None:
    """What is wrong with one import, or None."""
    module, part = found.module, found.module.partition(".")[0]
    library = found.target.partition(".")[0]
    if part and part not in RANK:
        return f"the part {part!r} has no place in LAYERS"
    if library != "corepool":
        if module == "":
            return "the root imports nothing"
        if library in ONLY_IN and not under(module, *ONLY_IN[library]):
            return f"{library} belongs in {', '.join(ONLY_IN[library])} only"
        if part in STANDARD_LIBRARY_ONLY and library not in sys.stdlib_module_names:
            return f"{part} uses the standard library alone"
        return None
    target = found.target.removeprefix("corepool").removeprefix(".")
    if target == "":
        return None  # the version
    return complaint_inside(module, part, target)


def complaint_inside(module: str, part: str, target: str) -> str | None:
    """What is wrong with `module` importing `target`, both of this package, or None."""
    other = target.partition(".")[0]
    if module == "":
        return "the root imports nothing"
    if other not in RANK:
        return f"the part {other!r} has no place in LAYERS"
    if other != part and RANK[other] <= RANK[part]:
        return f"{other} does not lie below {part}"
    for ban in BANS:
        bound = under(module, ban.owner) and not under(module, *ban.exempt)
        if bound and under(target, *ban.banned) and not under(target, *ban.allowed):
            return f"{ban.owner} never imports {', '.join(ban.banned)}"
    return None


def violations(root: Path) -> list[str]:
    """One line for each import that breaks a rule."""
    return [
        f"{found.module or 'corepool'}:{found.line}: imports {found.target}: {text}"
        for found in scan(root)
        if (text := complaint(found)) is not None
    ]


def test_package_keeps_the_import_rules() -> None:
    found = scan(SRC)
    assert len({each.module for each in found}) >= 2, "the scan saw next to nothing"
    assert violations(SRC) == []


PLANTED = {
    "root imports a part": ("__init__.py", "from corepool import errors"),
    "upwards": ("isa/fields.py", "import corepool.device.base"),
    "upwards, relative": ("numerics/conv.py", "from ..compiler import package"),
    "upwards, inside a function": ("isa/fields.py", "def f():\n    from corepool.cli import main"),
    "upwards, for types only": (
        "numerics/a.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import corepool.compiler",
    ),
    "upwards, by name": ("isa/fields.py", "import importlib\nimportlib.import_module('corepool.device')"),
    "siblings": ("compiler/package.py", "from corepool import device"),
    "zoo compiles": ("zoo/nets.py", "from corepool.compiler.static import graph"),
    "unknown part": ("utilities/a.py", "import os"),
    "isa uses numpy": ("isa/encode.py", "import numpy as np"),
    "onnx in the dynamic stage": ("compiler/dynamic/link.py", "import onnx"),
    "onnx in the package": ("compiler/package.py", "from onnx import numpy_helper"),
    "onnx in the command line": ("cli/main.py", "def f():\n    import onnx.checker"),
    "static stage from the dynamic one": ("compiler/dynamic/link.py", "from ..static import graph"),
    "static stage from the package": ("compiler/package.py", "from corepool.compiler.static.graph import Graph"),
    "static stage from the stages' parent": ("compiler/__init__.py", "from .static import graph"),
    "hypervisor sees the simulator": ("hypervisor/run.py", "from corepool.device import simulator"),
    "hypervisor sees a device's root": ("hypervisor/run.py", "from corepool.device import Simulator"),
    "hardware uses numerics": ("hardware/core.py", "from corepool.numerics import conv"),
    "amaranth in the simulator": ("device/simulator.py", "import amaranth.sim"),
}

HARMLESS = {
    "downwards": ("compiler/static/graph.py", "from corepool.errors import ModelError\nimport onnx\nimport numpy"),
    "within a part": ("isa/encode.py", "from . import fields\nfrom .fields import A\nimport corepool.isa.fields"),
    "static stage uses itself": ("compiler/static/a.py", "from corepool.compiler.static import graph"),
    "static stage uses the package": ("compiler/static/a.py", "from corepool.compiler import package"),
    "hypervisor sees the protocol": ("hypervisor/run.py", "from corepool.device import base"),
    "amaranth beside the devices": ("device/rtl.py", "import amaranth"),
    "version": ("cli/main.py", "from corepool import __version__"),
    "similar name": ("compiler/static_figures.py", "import onnx_like"),
}


def plant(root: Path, file: str, text: str) -> None:
    """A small package in `root` with the modules that the examples name, and `text` put into `file`."""
    stock = (
        "isa/fields compiler/package compiler/static/graph device/base device/simulator numerics/conv cli/main errors"
    )
    for name in [*(f"{each}.py" for each in stock.split()), file]:
        path = root / "corepool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for folder in path.relative_to(root).parents[:-1]:
            (root / folder / "__init__.py").touch()
    (root / "corepool" / file).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("file", "text"), PLANTED.values(), ids=PLANTED.keys())
def test_scanner_finds_a_planted_violation(tmp_path: Path, file: str, text: str) -> None:
    plant(tmp_path, file, text)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(("file", "text"), HARMLESS.values(), ids=HARMLESS.keys())
def test_scanner_accepts_what_is_allowed(tmp_path: Path, file: str, text: str) -> None:
    plant(tmp_path, file, text)
    assert scan(tmp_path) != []
    assert violations(tmp_path) == []


LOAD_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    root = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(root, "__path__", []), name + "."):
        if found.name != "corepool.device.rtl":
            importlib.import_module(found.name)
print("\\n".join(sys.modules))
"""


def loaded_by(*names: str) -> set[str]:
    """Names of all modules that a new interpreter holds after importing `names` and everything under them."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *names],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(SRC), "PATH": "", "HOME": "/nonexistent"},
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


HEAVY = {"onnx", "onnxruntime", "matplotlib", "typer", "rich", "PIL", "amaranth", "ray"}


@pytest.mark.parametrize("name", ["corepool.compiler.dynamic", "corepool.device"])
def test_what_runs_beside_the_card_loads_nothing_heavy(name: str) -> None:
    loaded = loaded_by(name)
    assert name in loaded
    assert loaded & (HEAVY | {"corepool.compiler.static", "corepool.cli", "corepool.zoo"}) == set()


def test_instruction_set_loads_the_standard_library_only() -> None:
    third_party = {name.partition(".")[0] for name in loaded_by("corepool.isa")} - loaded_top_level()
    assert third_party <= {"corepool"}


def loaded_top_level() -> set[str]:
    """Top-level modules of the standard library, and those that the environment loads into every interpreter."""
    bare = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True, check=True, timeout=60)
    return set(sys.stdlib_module_names) | {name.partition(".")[0] for name in bare.stdout.split()}


def test_root_and_errors_load_no_other_part() -> None:
    assert {name for name in loaded_by("corepool.errors") if under(name, "corepool")} == {"corepool", "corepool.errors"}


def test_fresh_interpreter_check_sees_a_heavy_module() -> None:
    assert "onnx" in loaded_by("onnx.version")
