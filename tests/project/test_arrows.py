"""Who may import whom, and how large a thing may grow: docs/explanation/rooms.md, held by reading the source."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "pytest_nsbox"
ROOMS = ("policy", "kernel", "warden", "images", "html")

# room -> rooms that it may import. Glue is every module that lies directly in the package.
ARROWS = {
    "policy": {"policy"},
    "kernel": {"kernel", "policy"},
    "warden": {"warden", "kernel", "policy", "images"},
    "images": {"images", "kernel", "policy"},
    "html": {"html", "policy"},
    "glue": {"glue", "policy", "html", "warden"},
}
# Glue talks to the warden through its client, and to the kernel nowhere, but for these.
GLUE_SEES_OF_THE_WARDEN = {
    "warden.client",
    "warden.engine",
    "warden.messages",
    "warden.outlook",
    "warden.roots",
    "warden.directory",
    "warden.output",
    "warden.spawn",
}
# The command line keeps and shows images without a warden.
GLUE_SEES_OF_THE_IMAGES = {("image_commands", "images.store")}
GLUE_SEES_OF_THE_KERNEL = {
    ("child", "kernel.signals"),
    ("launch", "kernel.signals"),
    ("hugepages", "kernel.memory"),
    ("pages", "kernel.memory"),
    ("internals", "kernel.libc"),
    ("doctor", "kernel.probe"),
    ("admission", "kernel.claims"),
    ("admission", "kernel.job"),
    ("launch", "kernel.line"),
    ("zygote", "kernel.line"),
    ("zygote", "kernel.process"),
    ("zygote", "kernel.rights"),
    ("zygote", "kernel.signals"),
}
# Lies beside the rooms and imports nothing of the package: an `os` that no test can replace.
NEUTRAL = {"real"}

# module from outside -> the modules or rooms that may import it
GUARDED = {
    "pytest": {"glue"},
    "_pytest": {"protocol", "foresight", "internals", "succession"},
    "pluggy": {"glue"},
    "ctypes": {"kernel.libc"},
    "pyroute2": {"kernel.links", "kernel.nftables"},
    "filelock": {"warden", "images"},
}
# Policy decides from what it is given: it reads no file, no clock, no environment and no chance.
IMPURE = {
    "asyncio", "ctypes", "datetime", "fcntl", "io", "multiprocessing", "os", "pathlib", "platform", "random",
    "resource", "secrets", "select", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip
# The warden's interpreter starts with each pytest run, so what it imports is paid there.
SLOW_TO_IMPORT = {"asyncio", "inspect", "pyroute2", "filelock", "logging", "subprocess", "tempfile", "typing", "urllib"}

# What the process has that makes interfaces, and no other.
OF_ITS_OWN_PROCESS = {"kernel.links", "kernel.nftables"}

MODULE_LINES = 440  # about 400
FUNCTION_LINES = 60
PARAMETERS = 6


class Import(NamedTuple):
    importer: str  # dotted, less the package's name; "" is the package itself
    imported: str  # the same for modules of the package, else the module's full name
    ours: bool
    line: int
    at_start: bool  # runs when the module is imported: neither in a function nor for type checkers only


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in ROOMS else "glue"


@functools.cache
def sources() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, tree in sources().items() for found in imports_of(name, tree))


def imports_of(importer: str, tree: ast.Module) -> Iterator[Import]:
    def walk(node: ast.AST, *, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield make(alias.name, node.lineno, at_start)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = importer.split(".") if f"{importer}." in packages() else importer.split(".")[:-1]
                base = ".".join(["pytest_nsbox", *package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield make(whole if whole.removeprefix("pytest_nsbox.") in sources() else base, node.lineno, at_start)
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or for_type_checkers(child)
            yield from walk(child, at_start=at_start and not later)

    def make(name: str, line: int, at_start: bool) -> Import:
        ours = name.partition(".")[0] == "pytest_nsbox"
        return Import(importer, name.removeprefix("pytest_nsbox").lstrip(".") if ours else name, ours, line, at_start)

    yield from walk(tree, at_start=True)


def packages() -> set[str]:
    return {f"{module_name(path)}." for path in PACKAGE.rglob("__init__.py")}


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def told(found: list[Import]) -> str:
    return "\n".join(f"pytest_nsbox.{i.importer} line {i.line} imports {i.imported}" for i in found)


def test_rooms_import_only_along_the_arrows():
    wrong = [i for i in imports() if i.ours and i.imported and not arrow_allows(i)]
    assert not wrong, told(wrong)


def arrow_allows(found: Import) -> bool:
    here, there = room(found.importer), room(found.imported)
    if found.importer in NEUTRAL or (found.imported in NEUTRAL and here != "policy"):
        return found.importer not in NEUTRAL
    if here == "glue" and there == "kernel":
        return (found.importer, found.imported) in GLUE_SEES_OF_THE_KERNEL
    if here == "glue" and there == "images":
        return (found.importer, found.imported) in GLUE_SEES_OF_THE_IMAGES
    if here == "glue" and there == "warden":
        return found.imported in GLUE_SEES_OF_THE_WARDEN
    return there in ARROWS[here]


def test_outside_modules_are_imported_only_where_they_belong():
    wrong = [
        i
        for i in imports()
        if not i.ours
        and (allowed := GUARDED.get(i.imported.partition(".")[0])) is not None
        and not allowed & {i.importer, room(i.importer)}
    ]
    assert not wrong, told(wrong)


def test_policy_is_pure():
    wrong = [i for i in imports() if room(i.importer) == "policy" and i.imported.partition(".")[0] in IMPURE]
    assert not wrong, told(wrong)


def test_what_the_warden_starts_with_is_cheap_to_import():
    wrong = [
        i
        for i in imports()
        if room(i.importer) in {"policy", "kernel", "warden"}
        and i.at_start
        and i.importer not in OF_ITS_OWN_PROCESS
        and (i.imported in OF_ITS_OWN_PROCESS or (not i.ours and i.imported.partition(".")[0] in SLOW_TO_IMPORT))
    ]
    assert not wrong, told(wrong)


def test_no_import_goes_in_a_circle():
    edges: dict[str, set[str]] = {name: set() for name in sources()}
    for found in imports():
        # The package's own __init__ re-exports, and every module starts by importing it.
        if found.ours and found.at_start and found.imported and found.importer:
            edges[found.importer].add(found.imported)
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in sorted(edges.get(name, ())):
                visit(other, (*path, name))
            finished.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: module_name(path) or "__init__")
def test_modules_and_functions_keep_a_size_that_can_be_read(path: Path):
    text = path.read_text(encoding="utf-8")
    module_lines = len(text.splitlines())
    assert module_lines <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"
            parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in {"self", "cls"}]
            assert len(parameters) <= PARAMETERS, f"{node.name} takes {len(parameters)} positional parameters"
