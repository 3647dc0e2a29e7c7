"""What a test's process may write to pytest's: what is none of its frames is refused, and nothing else breaks on it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.patience  # noqa: F401 - a setting for all of hypothesis
from pytest_nsbox.coverage_data import Gathered
from pytest_nsbox.frames import check
from pytest_nsbox.relay import ChannelClosedError, exception_from_data, report_from_data
from pytest_nsbox.warned import warning_from_data
from tests.fuzz.made import places

CRASH = {"path": "a.py", "lineno": 3, "message": "assert 0"}
ENTRY = {
    "type": "ReprEntry",
    "data": {
        "lines": ["    assert 0", "E   assert 0"],
        "reprfuncargs": None,
        "reprlocals": None,
        "reprfileloc": CRASH,
        "style": "long",
    },
}
TRACEBACK = {"reprentries": [ENTRY], "extraline": None, "style": "long"}
REPORT = {
    "nodeid": "a.py::test",
    "location": ["a.py", 2, "test"],
    "keywords": {"test": 1},
    "outcome": "failed",
    "longrepr": {"reprcrash": CRASH, "reprtraceback": TRACEBACK, "sections": [], "chain": [[TRACEBACK, CRASH, None]]},
    "when": "call",
    "user_properties": [["name", 1]],
    "sections": [["Captured stdout call", "out"]],
    "duration": 0.1,
    "start": 1.0,
    "stop": 1.1,
    "$report_type": "TestReport",
}
WARNING = {
    "module": "builtins",
    "class": "UserWarning",
    "text": "t",
    "args": ["t"],
    "filename": "f",
    "lineno": 1,
    "line": None,
    "source": None,
}
FRAMES: list[dict[str, Any]] = [
    {"t": "report", "report": REPORT, "raised": ["builtins", "AssertionError", "assert 0"], "warnings": [WARNING]},
    {"t": "passed", "report": ["setup", "passed", 0.1, 1.0, 1.1], "attributes": {"a": 1}, "failed_subtests": 2},
    {"t": "log", "report": REPORT, "captured": True},
    {"t": "ask", "what": "usage"},
    {"t": "pdb", "entered": True, "shell": True},
    {
        "t": "end",
        "coverage": {"": {"lines": {"a.py": [1, 2]}, "arcs": {"a.py": [[-1, 1]]}, "tracers": {"a.py": ["x"]}}},
        "stops": [False, "why"],
        "testsuite_properties": [["name", 1]],
        "xml_attributes": {"a": "b"},
        "random": [3, [1], None],
        "pages": [1],
        "unraisable": ["Exception ignored in"],
        "terminal": ["a", None],
    },
    {"t": "limit", "seconds": 1.5, "thread": False},
    {"t": "limit", "seconds": None, "thread": False},
    {"t": "interrupt", "place": ["a.py", 1, "test"]},
    {"t": "exit", "message": "enough", "returncode": 3},
    {"t": "internal", "text": "Traceback"},
    {"t": "failed", "text": "the result could not be sent"},
    {"t": "done"},
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


PLACES = [(number, path) for number, frame in enumerate(FRAMES) for path in places(frame)]


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest) -> pytest.Config:
    return request.config


def use(config: pytest.Config, frame: dict[str, Any]) -> None:
    """What pytest's process does with a frame that has passed."""
    if frame["t"] in ("report", "log"):
        report = report_from_data(config, frame["report"])
        assert isinstance(report.longreprtext, str)
        assert isinstance(report.head_line, str)
    if frame.get("raised") is not None:
        exception_from_data(frame["raised"])
    for data in frame.get("warnings", ()):
        str(warning_from_data(data))
    gathered = Gathered()
    gathered.add(frame.get("coverage") or {})


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame["t"])
def test_what_tests_send_passes(config: pytest.Config, frame: dict[str, Any]):
    check(frame)
    use(config, json.loads(json.dumps(frame)))


ODD: list[Any] = [
    *(None, True, 0, -1, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "\0", "\ud800"),
    *([], [None], [1, 2], ["a"], [[]], [[1]], [[1, 2, 3]], [["a", "b"]], [["a", 1, "b"]], [[None, None]], [{}]),
    *({}, {"a": 1}, {"": None}, {"a": {"lines": {"f": [None]}}}),
]


def changed(place: tuple[int, tuple[Any, ...]], value: Any, *, gone: bool) -> dict[str, Any]:
    """A frame with something else in one place, or nothing; as it comes out of the channel."""
    number, (*path, last) = place
    frame = copy.deepcopy(FRAMES[number])
    inner: Any = frame
    for key in path:
        inner = inner[key]
    if gone:
        del inner[last]
    else:
        inner[last] = value
    taken: dict[str, Any] = json.loads(json.dumps(frame))
    return taken


def use_or_refuse(config: pytest.Config, frame: dict[str, Any]) -> None:
    if not isinstance(frame.get("t"), str):
        return  # the channel refuses it
    try:
        check(frame)
        use(config, frame)
    except ChannelClosedError as error:
        assert str(error).startswith(("the test wrote a frame ", "the test wrote a report that cannot be read"))


def test_frames_that_lack_a_part_are_used_or_refused(config: pytest.Config):
    for place in PLACES:
        use_or_refuse(config, changed(place, None, gone=True))


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_frames_with_an_odd_part_are_used_or_refused(config: pytest.Config, value: Any):
    for place in PLACES:
        use_or_refuse(config, changed(place, value, gone=False))


@settings(derandomize=True)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_frames_with_anything_anywhere_are_used_or_refused(
    config: pytest.Config, place: tuple[int, tuple[Any, ...]], value: Any
):
    use_or_refuse(config, changed(place, value, gone=False))


def test_data_that_is_nested_too_deeply_is_refused(config: pytest.Config):
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"reprcrash": None, "chain": [deep]}
    try:
        frame = {"t": "report", "report": {**REPORT, "longrepr": deep}}
        check(frame)
        use(config, frame)
    except ChannelClosedError:
        return
    pytest.fail("it passed")
