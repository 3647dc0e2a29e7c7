"""Fixtures of every scope: outer ones live in pytest's process, once; a test's own in its box."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.comparing import ZOO, Recorded, Runs, difference

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory")

FIXTURES = {
    "conftest.py": ZOO / "fixtures_conftest.py",
    "test_fixtures.py": ZOO / "fixtures.py",
    "test_fixtures_other.py": ZOO / "fixtures_other.py",
}


def steps(run: Recorded) -> list[str]:
    return [line.partition(" ")[2] for line in run.log]


def test_fixtures_of_every_scope_begin_and_end_as_in_plain_pytest(runs: Runs):
    plain, boxed = runs.same(FIXTURES, "-rA")
    found = difference("set-ups and tear-downs", steps(plain), steps(boxed))
    assert not found, "\n".join(found)
    pids = {
        kind: {line.split(" ")[0] for line in boxed.log if line.split(" ")[1] == kind} for kind in ("outer", "inner")
    }
    assert pids["outer"] == {str(boxed.pid)}
    assert pids["outer"].isdisjoint(pids["inner"])


def test_setup_show_and_plan_are_the_plain_ones(runs: Runs):
    # A parameter that replaces a session fixture is set up late in plain pytest, with the other outer ones in boxes.
    _, boxed = runs.same(FIXTURES, "--setup-show", "--deselect", "test_fixtures.py::test_directly_given")
    assert any("SETUP    S session_list" in line for line in boxed.result.outlines)
    runs.same(FIXTURES, "--setup-plan", "-k", "test_one or test_parameters")


def test_an_outer_fixture_requested_while_a_test_runs_lives_and_ends_in_its_box(runs: Runs):
    suite: dict[str, str | Path] = {
        "conftest.py": ZOO / "fixtures_conftest.py",
        "test_dynamic.py": """
            def test_one(request):
                assert request.getfixturevalue("session_list") == [1, 2, 3]

            def test_two(request):
                assert request.getfixturevalue("session_list") == [1, 2, 3]
        """,
    }
    boxed = runs.run(runs.write(suite, "boxed"))
    boxed.result.assert_outcomes(passed=2)
    assert Counter(step for step in steps(boxed) if "session_list" in step) == {
        "outer session_list>": 2,
        "outer session_list<": 2,
    }
    owners = {line.split(" ")[0] for line in boxed.log if "session_list" in line}
    assert str(boxed.pid) not in owners


def test_what_a_test_does_to_an_outer_fixtures_value_ends_with_it(runs: Runs):
    suite = {
        "test_values.py": """
            import os
            import pytest

            @pytest.fixture(scope="session")
            def shared():
                os.environ["OF_A_SESSION_FIXTURE"] = "1"
                yield []
                assert os.environ.pop("OF_A_SESSION_FIXTURE") == "1"

            @pytest.mark.parametrize("number", [1, 2])
            def test_adds(shared, number):
                assert shared == []
                shared.append(number)
                os.environ["OF_A_SESSION_FIXTURE"] += "2"
        """
    }
    runs.run(runs.write(suite, "boxed")).result.assert_outcomes(passed=2)
