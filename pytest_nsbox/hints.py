"""What a failed test is told about its box, where plain pytest would have given another answer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from pytest_nsbox.real import read_text
from pytest_nsbox.shared_state import Module

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN = 3  # paths


class Hints:
    """Made at the first failure of a session; sources are read once."""

    def __init__(self) -> None:
        self._modules: dict[str, Module | None] = {}

    def lost_state(self, item: pytest.Item, report: pytest.TestReport, before: Iterable[pytest.Item]) -> None:
        """Add a section to the report of a failed test that reads what an earlier test of its module has changed."""
        earlier = [_name(other) for other in before if other.path == item.path]
        module = self._module(item) if earlier else None
        if module is None:
            return
        found = module.left_for(_name(item), earlier)
        lines = [f"{path}: this test reads it, and {name} changes it" for path, name in found[:SHOWN]]
        if lines:
            lines.append(
                "Each test runs in a box of its own, so that change was gone when this test began.\n"
                'One box for all: pytestmark = pytest.mark.sandbox(scope="module"), or scope="class".'
            )
            report.sections.append(("sandbox: state of another test", "\n".join(lines)))

    def _module(self, item: pytest.Item) -> Module | None:
        path = str(item.path)
        if path not in self._modules:
            self._modules[path] = None
            with contextlib.suppress(OSError, SyntaxError, ValueError):  # no Python file, or changed since
                self._modules[path] = Module(read_text(path))
        return self._modules[path]


def _name(item: pytest.Item) -> str:
    """``TestY.test_z``, without parameters."""
    function = getattr(item, "originalname", None) or item.name
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    return ".".join([*classes, function])
