"""State of the process that one test leaves for another, found in the source of their module.

Each test changes its own copy of it in a box, so the other one finds it as it was before. What is looked for are the
plain forms: a global that is assigned, an item or attribute of a global or of the test's class, a method that changes a
container. Functions of the module that a test calls are looked into as well.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHANGERS: Final = frozenset(
    [
        *("add", "append", "appendleft", "clear", "discard", "extend", "insert"),
        *("pop", "popitem", "popleft", "remove", "setdefault", "update"),
    ]
)
_OWN: Final = frozenset(["self", "cls"])


class _Uses(NamedTuple):
    """Dotted paths, from a global or (``Class.attribute``) a test's class, that a function changes and reads."""

    changes: frozenset[str]
    reads: frozenset[str]


class Module:
    """The functions of a module's source, each by its qualified name (``test_x``, ``TestY.test_z``)."""

    def __init__(self, source: str) -> None:
        """Raises SyntaxError or ValueError where the source is not Python."""
        self._uses: dict[str, _Uses] = {}
        self._calls: dict[str, frozenset[str]] = {}
        for name, owner, function in _functions(ast.parse(source), ""):
            visitor = _Visitor(owner, function)
            self._uses[name] = _Uses(frozenset(visitor.changes), frozenset(visitor.reads))
            self._calls[name] = frozenset(visitor.reads)

    def left_for(self, name: str, earlier: Iterable[str]) -> list[tuple[str, str]]:
        """What the named function reads and one of the earlier ones changes: (path, the earlier function's name)."""
        reads = self._all(name).reads
        found: dict[str, str] = {}
        for other in earlier:
            for path in self._all(other).changes:
                if other != name and any(read == path or read.startswith(path + ".") for read in reads):
                    found.setdefault(path, other)
        return sorted(found.items())

    def _all(self, name: str) -> _Uses:
        """Of a function with those of the module that it calls."""
        seen: set[str] = set()
        changes: set[str] = set()
        reads: set[str] = set()
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each in seen or each not in self._uses:
                continue
            seen.add(each)
            changes |= self._uses[each].changes
            reads |= self._uses[each].reads
            waiting += self._calls[each]
        return _Uses(frozenset(changes), frozenset(reads))


def _functions(node: ast.AST, owner: str) -> Iterator[tuple[str, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{owner}.{child.name}" if owner else child.name)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (f"{owner}.{child.name}" if owner else child.name), owner, child
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _functions(child, owner)


class _Visitor(ast.NodeVisitor):
    """Collects what one function changes and reads."""

    def __init__(self, owner: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.changes: set[str] = set()
        self.reads: set[str] = set()
        self._owner = owner
        declared = {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
        stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and _is_stored(node)}
        arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        self._locals = (stored | arguments) - declared
        for statement in function.body:
            self.visit(statement)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in self._locals:
            (self.changes if _is_stored(node) else self.reads).add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self._path(node, changed=_is_stored(node))
        if path:
            (self.changes if _is_stored(node) else self.reads).add(path)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if _is_stored(node) and (path := self._path(node.value, changed=False)):
            self.changes.add(path)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self._locals:
            self.reads.add(node.target.id)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _CHANGERS:
            path = self._path(function.value, changed=False)
            if path:
                self.changes.add(path)
        self.generic_visit(node)

    def _path(self, node: ast.expr, *, changed: bool) -> str:
        """``a.b.c`` as text, from a global or the class; "" for anything else."""
        if isinstance(node, ast.Attribute):
            inside = node.value
            if self._is_class(inside) or (self._is_instance(inside) and not changed):
                return f"{self._owner}.{node.attr}"
            path = self._path(inside, changed=False)
            return f"{path}.{node.attr}" if path else ""
        if isinstance(node, ast.Name) and node.id not in self._locals:
            return node.id
        return ""

    def _is_instance(self, node: ast.expr) -> bool:
        return bool(self._owner) and isinstance(node, ast.Name) and node.id in _OWN

    def _is_class(self, node: ast.expr) -> bool:
        if not self._owner:
            return False
        if isinstance(node, ast.Name):
            return node.id == "cls"
        if isinstance(node, ast.Attribute):
            return node.attr == "__class__" and self._is_instance(node.value)
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
        return called and bool(node.args) and self._is_instance(node.args[0])  # type: ignore[attr-defined]


def _is_stored(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, (ast.Store, ast.Del))
