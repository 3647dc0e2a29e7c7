"""Frames between client and warden."""

from __future__ import annotations

import _socket
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.patience  # noqa: F401 - a setting for all of hypothesis
from pytest_nsbox.policy.record import fields
from pytest_nsbox.warden import messages as m

TEXT = st.text(st.characters(codec=None), max_size=20)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(0, 1 << 40),
    "str": TEXT,
    "str | None": st.none() | TEXT,
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(st.integers(), max_size=4).map(tuple),
    "tuple[str, ...]": st.lists(TEXT, max_size=4).map(tuple),
    "tuple[tuple[str, str], ...]": st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple),
    "tuple[Any, ...]": st.tuples(st.lists(st.text(max_size=5), max_size=3).map(tuple)),
    "dict[str, Any]": st.dictionaries(TEXT, st.integers() | st.lists(TEXT, max_size=2) | st.floats(allow_nan=False)),
    "dict[str, str]": st.dictionaries(TEXT, TEXT, max_size=4),
    "Mapping[str, Sequence[int]]": st.dictionaries(TEXT, st.tuples(st.integers(), st.integers()), max_size=4),
}


@st.composite
def any_message(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from((*m.REQUESTS, *m.ANSWERS)))
    values = {name: draw(VALUES[kind.__annotations__[name]]) for name in fields(kind)}
    if "fds" in values:
        # What is sent here as bare bytes has none with it.
        values["fds"] = 0
    return kind(**values)


def pair() -> tuple[m.Channel, m.Channel]:
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return m.Channel(ours), m.Channel(theirs)


@given(any_message())
def test_messages_come_back_as_they_were(message: Any) -> None:
    encoded = m.encode(message)
    assert int.from_bytes(encoded[:4], "big") == len(encoded) - 4
    assert m.decode(encoded[4:]) == message


@given(st.binary(max_size=40))
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(m.ProtocolError, match=r"^not a message: "):
        m.decode(b"!" + body)


@given(st.lists(any_message(), min_size=1, max_size=5), st.integers(1, 30))
def test_frames_are_found_in_any_pieces(messages: list[Any], size: int) -> None:
    ours, theirs = pair()
    try:
        data = b"".join(map(m.encode, messages))
        found = []
        for start in range(0, len(data), size):
            ours.sock.sendall(data[start : start + size])
            assert theirs.fill()
            while (message := theirs.pop()) is not None:
                found.append(message[0])
        assert found == messages
    finally:
        ours.close()
        theirs.close()


def test_descriptors_that_were_announced_and_did_not_come_are_an_error() -> None:
    ours, theirs = pair()
    ours.send(m.Connected(number=1, fds=1))
    with pytest.raises(m.ProtocolError, match=r"^Connected came without its descriptors$"):
        theirs.receive()
    ours.close()
    theirs.close()


def made(number: int, fds: int) -> m.Made:
    return m.Made(number, "box", 1, 0, clock=False, bound={}, ids=(), sockets=True, cpus=(), screens=0, fds=fds)


def test_descriptors_come_with_their_message() -> None:
    ours, theirs = pair()
    reader, writer = os.pipe()
    ours.send(m.Done(1))
    ours.send(made(2, 2), (reader, writer))
    ours.send(m.Done(3))
    ours.send(made(4, 1), (reader,))
    got = [theirs.receive() for _ in range(4)]
    assert [message.number for message, _ in got] == [1, 2, 3, 4]  # type: ignore[union-attr]
    assert [len(fds) for _, fds in got] == [0, 2, 0, 1]
    first, second = got[1][1]
    assert os.fstat(first).st_ino == os.fstat(reader).st_ino
    os.write(second, b"x")
    assert os.read(got[3][1][0], 1) == b"x"
    assert not os.get_inheritable(first)
    for fd in (reader, writer, first, second, *got[3][1]):
        os.close(fd)
    ours.close()
    theirs.close()


def test_the_end_of_the_stream_is_an_error_that_says_so() -> None:
    ours, theirs = pair()
    ours.sock.send(m.encode(m.Done(1))[:5])
    ours.close()
    with pytest.raises(m.ProtocolError, match=r"^the other side closed the connection$"):
        theirs.receive()
    theirs.close()


def test_an_unexpected_message_is_named() -> None:
    assert m.expect(m.Done(1), m.Done) == m.Done(1)
    with pytest.raises(m.ProtocolError, match=r"^expected Done, got Failed$"):
        m.expect(m.Failed(1, ""), m.Done)
