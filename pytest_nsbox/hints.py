"""What a failed test is told about its box, where plain pytest would have given another answer."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

import pytest

from pytest_nsbox.real import read_text
from pytest_nsbox.shared_state import Module

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHOWN = 3  # paths
# What is said of something that has had its one life in a process.
_USED_UP: Final = re.compile(
    r"bad file descriptor|\bclosed\b|only be started once|\bstopped\b|shut ?down", re.IGNORECASE
)


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

    def used_up(self, item: pytest.Item, report: pytest.TestReport, undone: Mapping[str, str]) -> None:
        """Add a section to the report of a failed test that seems to have got what a fixture of its had torn down.

        undone  outer fixtures that were set up and torn down in pytest's process before any box had them, and why
        """
        names = [name for name in getattr(item, "fixturenames", ()) if name in undone]
        crash = getattr(report.longrepr, "reprcrash", None)
        if not names or crash is None or not _USED_UP.search(crash.message):
            return
        lines = [
            f"{name} {undone[name]}, so it was torn down in pytest's process, and set up anew here" for name in names
        ]
        lines.append(
            "What can be set up only once in a process (an object that all share, say) is used up then.\n"
            f"To have it set up in boxes alone: ini sandbox_box_fixtures = {' '.join(names)}"
        )
        report.sections.append(("sandbox: fixture set up again", "\n".join(lines)))

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
