"""Frames: what goes in comes out, however it is cut, and nothing that a test writes breaks pytest's side."""

from __future__ import annotations

import json
import math
import os
import socket
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.relay import (
    Channel,
    ChannelClosedError,
    Poller,
    encode,
    is_plain,
    warning_from_data,
    warning_to_data,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text(st.characters(codec="ascii", categories=("Ll",)), min_size=1).filter(lambda name: name != "t")


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the other end as a bare socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def read_back(data: bytes, piece: int) -> list[dict[str, object]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel, found = Channel(ours), []
        for start in range(0, len(data), piece):
            theirs.sendall(data[start : start + piece])
            channel.fill()
            while (frame := channel.take()) is not None:
                found.append(frame)
        return found


@given(st.lists(st.dictionaries(NAMES, PLAIN, max_size=3), min_size=1, max_size=3), st.integers(1, 50))
def test_frames_arrive_whole_however_they_are_cut(frames, piece):
    data = b"".join(encode("kind", fields) for fields in frames)
    assert read_back(data, piece) == [{"t": "kind", **fields} for fields in frames]


@given(st.binary(min_size=4, max_size=60))
def test_whatever_a_test_writes_is_a_frame_or_a_closed_channel(data):
    try:
        for frame in read_back(data, 60):
            assert isinstance(frame["t"], str)
    except ChannelClosedError as error:
        assert "the test wrote" in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xff\xff\xff", "of length where a frame starts"),
        (b"\0\0\0\3abc", "not JSON"),
        (b"\0\0\0\2[]", "not a frame"),
        (b'\0\0\0\7{"t":1}', "not a frame"),
    ],
)
def test_rubbish_says_what_it_is(ends, data, said):
    channel, theirs = ends
    theirs.sendall(data)
    with pytest.raises(ChannelClosedError, match=said):
        channel.receive()


def test_the_end_of_the_socket_is_told_when_a_frame_is_awaited(ends):
    channel, theirs = ends
    theirs.sendall(encode("kind", {})[:-1])
    theirs.close()
    with pytest.raises(ChannelClosedError, match="closed its pipe"):
        channel.receive()


def test_values_that_json_does_not_know_arrive_as_their_text_and_sets_as_lists():
    (frame,) = read_back(encode("kind", {"a": 3 + 4j, "b": {1}, "c": "\udcff"}), 1000)
    assert frame == {"t": "kind", "a": "(3+4j)", "b": [1], "c": "\udcff"}


@given(PLAIN)
def test_plain_values_survive_json(value):
    if is_plain(value, depth=10):
        assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("value", [(1,), {1: 2}, {"a": object()}, b"x", {1}, [[[[[1]]]]], type("S", (str,), {})("x")])
def test_values_that_json_would_change_are_not_plain(value):
    assert not is_plain(value)


def test_the_poller_tells_the_frame_from_the_end_of_the_process(ends):
    channel, theirs = ends
    pid = os.fork()
    if pid == 0:
        theirs.recv(1)
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        poller = Poller(channel, pidfd)
        assert poller.wait(0) == (False, False)
        theirs.sendall(encode("kind", {}))
        assert poller.wait(5) == (True, False)
        channel.receive()
        channel.send("go")
        assert poller.wait(5) == (False, True)
    finally:
        os.waitpid(pid, 0)
        os.close(pidfd)


class OddWarning(UserWarning):
    """A warning with a constructor of its own."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def caught(message: Warning | str, category: type[Warning] | None = None) -> warnings.WarningMessage:
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        warnings.warn(message, category, stacklevel=1)
    return log[0]


@pytest.mark.parametrize(
    "message", [UserWarning("a text"), DeprecationWarning("x", 3), OddWarning(1, 2), ResourceWarning()]
)
def test_a_warning_arrives_as_one_of_its_class_with_its_text_and_place(message):
    sent = caught(message)
    arrived = warning_from_data(json.loads(json.dumps(warning_to_data(sent))))
    assert type(arrived.message) is type(message)
    assert str(arrived.message) == str(message)
    assert (arrived.filename, arrived.lineno, arrived.category) == (sent.filename, sent.lineno, sent.category)


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("builtins", "SystemExit"), ("no.such.module", "X")])
def test_a_warning_of_no_warning_class_runs_nothing_and_is_a_user_warning(module, name):
    data = {"module": module, "class": name, "text": "t", "args": ["t"], "filename": "f", "lineno": 1, "line": None}
    arrived = warning_from_data(data)
    assert isinstance(arrived.message, UserWarning)
    assert arrived.category.__name__ == name


def test_numbers_that_json_cannot_spell_stay_numbers():
    (frame,) = read_back(encode("kind", {"a": math.inf}), 1000)
    assert frame["a"] == math.inf
