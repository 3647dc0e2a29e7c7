"""For every test of the project: nothing may be left behind, and capabilities decide about skips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.capabilities import require
from tests.leftovers import Leftovers, claim

# Suites of their own, which tests/acceptance/test_examples.py runs.
collect_ignore = ["examples"]

# At import: before pytest or a plugin remembers the temporary directory, before any test module looks.
RUN_TAG, RUN_TMP = claim()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        require(*mark.args)


def pytest_unconfigure() -> None:
    try:
        RUN_TMP.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        # The session's guard has already failed a test over what lies there.
        print(f"left in place: {RUN_TMP}: {error.strerror}")  # noqa: T201 - the terminal reporter is gone by now


@pytest.fixture(scope="session")
def leftovers(tmp_path_factory: pytest.TempPathFactory) -> Leftovers:
    """The listings of this test process; see tests/leftovers.py."""
    return Leftovers(RUN_TAG, RUN_TMP, tmp_path_factory.getbasetemp())


def watch(leftovers: Leftovers, what: str) -> Iterator[None]:
    before = leftovers.snapshot()
    yield
    left = leftovers.new_since(before)
    if left:
        leftovers.remove(left)
        lines = "\n".join(f"  {text}" for text in sorted(left.values()))
        pytest.fail(f"left behind by {what}:\n{lines}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def nothing_stays_after_the_session(leftovers: Leftovers) -> Iterator[None]:
    yield from watch(leftovers, "the session's fixtures")


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_after_the_module(leftovers: Leftovers, request: pytest.FixtureRequest) -> Iterator[None]:
    yield from watch(leftovers, request.node.nodeid)


@pytest.fixture(autouse=True)
def nothing_stays_after_the_test(leftovers: Leftovers, request: pytest.FixtureRequest) -> Iterator[None]:
    """Boxes of a warden that a wider fixture holds come and go: mark such tests `keeps_running`."""
    if request.node.get_closest_marker("keeps_running"):
        yield
    else:
        yield from watch(leftovers, request.node.nodeid)
