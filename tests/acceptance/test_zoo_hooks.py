"""Hooks of conftests and plugins run once for each test, in the order and with the outcome of plain pytest."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, difference

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

HOOKS = {"conftest.py": ZOO / "hooks_conftest.py", "test_hooks.py": ZOO / "hooks.py"}
INI = {
    "pytest.ini": "[pytest]\nmarkers =\n  setup_hook_skips\n  setup_hook_fails\n  late_setup_hook_fails\n"
    "  call_hook_fails\n  teardown_hook_fails\n"
}
# Told to the reporters of pytest's process, which may hear of a phase while the test is in its next one.
# The parent's half of teardown comes after the child's, so outer fixtures end after the item's teardown hooks.
OUTER_ENDS = ("session fixture<", "fixture_post_finalizer")
REPORTERS = ("logstart", "logreport", "logfinish", "protocol>", "protocol<")


def lines(run: Recorded, *, reporters: bool) -> list[str]:
    found = [line.partition(" ")[2] for line in run.log]
    return [line for line in found if line.startswith(REPORTERS) == reporters and not line.startswith(OUTER_ENDS)]


def outer_ends(run: Recorded) -> list[str]:
    # A set: pytest 8 ends some of them twice.
    return sorted({line.partition(" ")[2] for line in run.log if line.partition(" ")[2].startswith(OUTER_ENDS)})


def test_every_hook_runs_once_and_in_plain_order(runs: Runs):
    plain, boxed = runs.same({**HOOKS, **INI}, "-rA")
    found = []
    for reporters in (True, False):
        found += difference("hooks", lines(plain, reporters=reporters), lines(boxed, reporters=reporters))
    found += difference("ends of fixtures", outer_ends(plain), outer_ends(boxed))
    assert not found, "\n".join(found)
    repeated = [
        line for line, count in Counter(boxed.log).items() if count > 1 and "fixture_post_finalizer" not in line
    ]
    assert not repeated
    check_processes(boxed)


def check_processes(boxed: Recorded) -> None:
    """Reporters and what comes before outer fixtures in pytest's process; a test's own hooks in one other."""
    pytests = str(boxed.pid)
    by_test: dict[str, set[str]] = {}
    for line in boxed.log:
        pid, rest = line.split(" ", 1)
        if rest.startswith((*REPORTERS, "setup-first", "session fixture")):
            assert pid == pytests, line
        if rest.startswith(("call ", "pyfunc_call", "fixture>", "fixture<")):
            by_test.setdefault(rest.split(" ")[1], set()).add(pid)
    assert all(len(pids) == 1 for pids in by_test.values()), by_test
    processes = [next(iter(pids)) for pids in by_test.values()]
    assert pytests not in processes
    assert len(processes) > 10
