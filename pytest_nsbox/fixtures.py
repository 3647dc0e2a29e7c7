"""The fixtures that tests request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_nsbox.nsbox import NsBox
    from pytest_nsbox.policy.spec import Spec


class Change(NamedTuple):
    """One path that a box changed: kind A (added), C (changed) or D (deleted), as in ``docker diff``."""

    kind: Literal["A", "C", "D"]
    path: str


class Sandbox:
    """The box that a test runs in, seen from inside."""

    def __init__(self, spec: Spec, name: str, ask: Callable[[str], Any]) -> None:
        self.spec = spec
        self.name = name
        self._ask = ask

    status: Literal["running"] = "running"

    def __repr__(self) -> str:
        return f"<Sandbox {self.name}>"

    @property
    def ports(self) -> dict[int, int]:
        """Published ports, ``{box port: host port}``: none, a test publishes by its containers."""
        return {}

    def usage(self) -> dict[str, int | float]:
        """What the box used so far: the report properties' names less ``sandbox.``; seconds and bytes."""
        return dict(self._ask("usage"))

    def changes(self) -> list[Change]:
        """Paths added, changed and deleted in the box's root so far, sorted by path."""
        return [Change(kind, path) for kind, path in self._ask("changes")]

    def inspect(self) -> dict[str, Any]:
        """Id, Name, State, Pid, Namespaces, Mounts, Networks, Cgroup, Limits and Image of the box."""
        return dict(self._ask("inspect"))


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """The container that this test runs in: spec, name, usage(), changes(), inspect()."""
    from pytest_nsbox.attempt import ATTEMPT

    attempt = request.node.stash.get(ATTEMPT, None)
    if attempt is None or attempt.child is None:
        pytest.skip("the sandbox fixture needs a box, and boxes are off (--sandbox-off)")
    return Sandbox(attempt.spec, attempt.box.name, attempt.child.ask)


@pytest.fixture
def nsbox(request: pytest.FixtureRequest) -> Iterator[NsBox]:
    """Containers that this test starts: run(), start(). All are gone after the test."""
    from pytest_nsbox import started

    with started.boxes(request, report=True) as boxes:
        yield boxes


@pytest.fixture(scope="session")
def nsbox_session(request: pytest.FixtureRequest) -> Iterator[NsBox]:
    """Containers that live as long as the session: the same as `nsbox`."""
    from pytest_nsbox import started

    with started.boxes(request, report=False) as boxes:
        yield boxes
