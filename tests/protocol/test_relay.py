"""What crosses the socket: frames, reports and warnings come out as they went in, and rubbish is refused."""

from __future__ import annotations

import json
import os
import socket
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.patience  # noqa: F401 - a setting for all of hypothesis
from pytest_nsbox import relay
from pytest_nsbox.relay import (
    MAX_FRAME,
    Channel,
    ChannelClosedError,
    Poller,
    Text,
    encode,
    exception_from_data,
    is_plain,
    passed_from_data,
    passed_to_data,
    report_from_data,
    report_to_data,
)
from pytest_nsbox.warned import warning_from_data, warning_to_data


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name != "t"), JSON, max_size=4), st.integers(1, 50))
def test_a_frame_comes_out_as_it_went_in_however_it_is_cut(fields: dict[str, Any], size: int):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        data = encode("kind", fields) + encode("next", {})
        frames = []
        for start in range(0, len(data), size):
            theirs.sendall(data[start : start + size])
            channel.fill()
            while (frame := channel.take()) is not None:
                frames.append(frame)
    assert frames == [{"t": "kind", **fields}, {"t": "next"}]


def test_text_that_utf8_cannot_carry_survives(ends: tuple[Channel, socket.socket]):
    channel, theirs = ends
    theirs.sendall(encode("x", {"text": "\udcff ✓ \0"}))
    assert channel.receive()["text"] == "\udcff ✓ \0"


def test_values_that_json_does_not_know_are_sent_as_text(ends: tuple[Channel, socket.socket]):
    channel, theirs = ends
    theirs.sendall(encode("x", {"path": os.fspath("/a"), "set": {1}, "object": ValueError("e"), "bytes": b"x"}))
    frame = channel.receive()
    assert frame["set"] == [1]
    assert frame["object"] == "e"
    assert frame["bytes"] == "b'x'"


@pytest.mark.parametrize(
    ("rubbish", "said"),
    [
        (struct.pack(">I", MAX_FRAME + 1), f"wrote {MAX_FRAME + 1} bytes of length where a frame starts"),
        (struct.pack(">I", 3) + b"\xff\xff\xff", "wrote something that is not JSON"),
        (struct.pack(">I", 2) + b"[]", "wrote JSON that is not a frame"),
        (struct.pack(">I", 7) + b'{"t":1}', "wrote JSON that is not a frame"),
    ],
    ids=["length", "no json", "no object", "no kind"],
)
def test_rubbish_is_refused_with_what_it_was(ends: tuple[Channel, socket.socket], rubbish: bytes, said: str):
    channel, theirs = ends
    theirs.sendall(rubbish)
    with pytest.raises(ChannelClosedError, match=said):
        channel.receive()


def test_end_of_file_in_the_midst_of_a_frame_is_the_end(ends: tuple[Channel, socket.socket]):
    channel, theirs = ends
    theirs.sendall(encode("x", {"a": "b" * 100})[:50])
    theirs.close()
    with pytest.raises(ChannelClosedError, match="closed its pipe"):
        channel.receive()


def test_the_poller_tells_data_from_the_end_of_the_process(ends: tuple[Channel, socket.socket]):
    channel, theirs = ends
    pid = os.fork()
    if pid == 0:
        try:
            theirs.recv(1)
        finally:
            os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        poller = Poller(channel, pidfd)
        assert poller.wait(0) == (False, False)
        theirs.sendall(b"x")
        assert poller.wait(1) == (True, False)
        poller.forget_channel()
        assert poller.wait(0) == (False, False)
        channel._sock.sendall(b"x")
        assert poller.wait(5) == (False, True)
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def reports(pytester: pytest.Pytester) -> tuple[pytest.Config, list[pytest.TestReport]]:
    """Reports of many kinds, made by pytest."""
    found: list[pytest.TestReport] = []

    class Collector:
        config: pytest.Config

        def pytest_configure(self, config: pytest.Config) -> None:
            self.config = config

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            found.append(report)

    pytester.makepyfile(
        """
        import pytest

        def test_passes(record_property):
            record_property("object", (1, None))
            print("out")

        def test_fails():
            try:
                {}["x"]
            except KeyError as error:
                raise ValueError("second") from error

        def test_skips():
            pytest.skip("why")

        def test_fixture(nothing_like_it):
            pass

        @pytest.mark.xfail(reason="known")
        def test_xfails():
            assert 0

        def test_fails_without_trace():
            pytest.fail("said", pytrace=False)
        """
    )
    collector = Collector()
    pytester.inline_run(plugins=[collector])
    assert len(found) == 17
    return collector.config, found


def test_reports_come_out_as_they_went_in(reports: tuple[pytest.Config, list[pytest.TestReport]]):
    config, found = reports
    for report in found:
        again = report_from_data(config, json.loads(json.dumps(report_to_data(config, report))))
        theirs, ours = dict(vars(report)), dict(vars(again))
        assert str(ours.pop("longrepr")) == str(theirs.pop("longrepr"))
        ours["user_properties"] = [(name, str(value)) for name, value in ours["user_properties"]]
        theirs["user_properties"] = [(name, str(value)) for name, value in theirs["user_properties"]]
        assert ours == theirs
        assert type(again.longrepr) is type(report.longrepr) or isinstance(again.longrepr, Text)


def test_only_silent_passes_are_sent_short_and_come_out_whole(reports: tuple[pytest.Config, list[pytest.TestReport]]):
    _, found = reports
    for report in found:
        data = passed_to_data(report, dict(report.keywords))
        silent = report.longrepr is None and not report.sections and not report.user_properties
        assert (data is not None) == (silent and not hasattr(report, "wasxfail")), report
        assert passed_to_data(report, {}) is None

    class Item:
        nodeid = found[0].nodeid
        location = found[0].location

    keywords = dict(found[0].keywords)
    data = passed_to_data(found[0], keywords)
    assert data is not None
    again = passed_from_data(Item(), keywords, json.loads(json.dumps(data)))  # type: ignore[arg-type]
    assert vars(again) == vars(found[0])


# --- warnings ---------------------------------------------------------------------------------------------------------


class OddWarning(UserWarning):
    def __init__(self, one: str, two: int) -> None:
        super().__init__(one, two)

    def __str__(self) -> str:
        return f"odd: {self.args[0]}"


def sent(message: Warning) -> warnings.WarningMessage:
    recorded = warnings.WarningMessage(message, type(message), "file.py", 7, None, "the line")
    return warning_from_data(json.loads(json.dumps(warning_to_data(recorded))))


@pytest.mark.parametrize(
    "message",
    [UserWarning("text"), DeprecationWarning("a", 1, None), OddWarning("x", 2), UserWarning(object())],
    ids=str,
)
def test_warnings_keep_class_text_and_place(message: Warning):
    again = sent(message)
    assert again.category is type(message)
    assert type(again.message) is type(message)
    assert str(again.message) == str(message)
    assert (again.filename, again.lineno, again.line) == ("file.py", 7, "the line")


def test_a_warning_of_a_class_that_pytest_does_not_know_keeps_its_name_and_imports_nothing():
    data = {"module": "not.imported", "class": "Outer.SomeWarning", "text": "t", "args": None}
    again = warning_from_data({**data, "filename": "f", "lineno": 1, "line": None})
    assert again.category.__name__ == "SomeWarning"
    assert again.category.__module__ == "not.imported"
    assert issubclass(again.category, UserWarning)


@pytest.mark.parametrize("name", [("os", "system"), ("builtins", "dict"), ("builtins", "OSError")])
def test_a_name_of_something_else_makes_no_such_thing(name: tuple[str, str]):
    module, cls = name
    data = {"module": module, "class": cls, "text": "t", "args": ["x"], "filename": "f", "lineno": 1, "line": None}
    assert issubclass(warning_from_data(data).category, UserWarning)


def test_plain_data_is_what_json_returns_unchanged():
    assert is_plain({"a": [1, 2.5, None, True, "x", {"b": []}]})
    for value in ((1,), {1: 2}, {1, 2}, b"x", object(), [object()]):
        assert not is_plain(value)
    deep: list[Any] = []
    for _ in range(10):
        deep = [deep]
    assert not is_plain(deep)


def test_texts_that_are_too_long_for_anybody_lose_their_middle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay, "LONGEST", 10)
    cut = "01234\n[3 characters left out here]\n89012"
    data = {"longrepr": {"reprcrash": ["0123456789012", 7, None]}, "sections": [("head", "0123456789")]}
    assert relay.shortened(data) == {
        "longrepr": {"reprcrash": [cut, 7, None]},
        "sections": [["head", "0123456789"]],
    }
    assert relay.exception_to_data(ValueError("0123456789012"))[2] == cut


class TellingWarning(DeprecationWarning):
    """Its text is made of what only its constructor knows, as pydantic's are."""

    def __init__(self, message: str, *, since: tuple[int, int]) -> None:
        super().__init__(message)
        self.message, self.since = message, since

    def __str__(self) -> str:
        return f"{self.message} since {self.since[0]}"


def test_a_warning_that_no_other_process_can_make_keeps_class_and_text():
    again = sent(TellingWarning("old", since=(2, 0)))
    assert again.category is TellingWarning
    assert isinstance(again.message, TellingWarning)
    assert type(again.message).__name__ == "TellingWarning"
    assert str(again.message) == "old since 2"


def test_a_name_that_no_class_can_have_is_none():
    data = {"module": "m", "class": "a\0b", "text": "t", "args": None, "filename": "f", "lineno": 1, "line": None}
    assert warning_from_data(data).category is UserWarning
    assert type(exception_from_data(["m", "a\0b", "text"])) is Exception
