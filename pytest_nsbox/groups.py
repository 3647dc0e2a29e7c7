"""Groups: tests that share one box, because their marker says ``scope="class"`` or ``scope="module"``.

A group is a contiguous run of tests of one class or module, with the same parameters of wider fixtures: a fixture that
pytest sets up anew in between belongs to pytest's process, and a fork cannot see that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from pytest_nsbox import internals
from pytest_nsbox.policy.errors import SpecError
from pytest_nsbox.settings import SPEC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_nsbox.attempt import Attempt
    from pytest_nsbox.policy.spec import Spec

_ACCEPTED: Final = (
    "one box for the group, in which only timeout and artifacts differ, or scope='function' for this test"
)


def _node_of(item: pytest.Item, scope: str) -> object:
    return item.getparent(pytest.Class if scope == "class" else pytest.File)


class Group:
    """A group whose box is open. Both processes have it: the child as it was at the fork."""

    def __init__(self, members: Iterable[pytest.Item], first: pytest.Item) -> None:
        self.members = {id(item): item for item in members}
        self.items = {id(item): item for item in first.session.items}
        self.attempt: Attempt | None = None  # the latest

    @classmethod
    def of(cls, first: pytest.Item, scope: str) -> Group | None:
        """The group that begins with a test; None if its box is its own.

        ``scope="class"`` outside any class means nothing, as for fixtures.
        """
        node = _node_of(first, scope)
        return None if node is None else cls(_run_from(first, scope, node), first)

    def holds(self, item: pytest.Item | None) -> bool:
        """Whether a test can run in this group's box, which has to be open yet."""
        return id(item) in self.members and self.attempt is not None and not self.attempt.ended


def _run_from(first: pytest.Item, scope: str, node: object) -> Iterator[pytest.Item]:
    items = first.session.items
    start = next((number for number, item in enumerate(items) if item is first), len(items))
    parameters: dict[str, int] = {}
    for item in items[start:] or [first]:
        spec = item.stash.get(SPEC, None)
        if spec is None or spec.scope != scope or _node_of(item, scope) is not node:
            return
        for name, number in internals.wider_parameters(item, scope):
            if parameters.setdefault(name, number) != number:
                return
        yield item


def contradictions(
    specs: Iterable[tuple[pytest.Item, Spec]], place_of: Callable[[pytest.Item, str], str]
) -> list[tuple[str, str]]:
    """(node id, problem) of each test whose box cannot be that of its group. ``place_of``: where a key was written."""
    first: dict[tuple[int, str], tuple[pytest.Item, dict[str, object]]] = {}
    found: list[tuple[str, str]] = []
    for item, spec in specs:
        node = _node_of(item, spec.scope)
        if node is None:
            continue
        has = spec.box_key().shown()
        other, wants = first.setdefault((id(node), spec.scope), (item, has))
        for key in dict.fromkeys((*has, *wants)):
            if has.get(key) != wants.get(key):
                said, place = _said(has, key), place_of(item, key if key in has else "scope")
                reason = f"{said} here, {_said(wants, key)} in {other.nodeid}: by scope={spec.scope!r} they share a box"
                found.append((item.nodeid, str(SpecError(key, "", _ACCEPTED, reason, place))))
    return found


def _said(shown: dict[str, object], key: str) -> str:
    return f"{key}={shown[key]!r}" if key in shown else f"no {key}"
