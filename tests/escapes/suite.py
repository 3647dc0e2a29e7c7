"""The inner suite: every attempt, each in a box of its own; what came of it goes out as a property of the report."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.escapes import groups, machine, network, processes, roots, storage
from tests.escapes.attempt import ATTEMPTS, NETS, PLACE, Attempt, Place

ROOMS = (groups, machine, network, processes, roots, storage)
HOST = Place.from_json(os.environ[PLACE])


def filled_in(value: object) -> object:
    """Marker values may name what is known only at run time."""
    if isinstance(value, list):
        return [filled_in(element) for element in value]
    return value.format(shared=HOST.shared, directory=HOST.directory) if isinstance(value, str) else value


def cases() -> Iterator[object]:
    for attempt in ATTEMPTS.values():
        for net in NETS:
            if net in attempt.refused:
                keys = {key: filled_in(value) for key, value in attempt.box.items()}
                marker = pytest.mark.sandbox(net=net == "host", **keys)
                yield pytest.param(attempt, net, id=f"{attempt.name}-{net}", marks=marker)


@pytest.fixture(scope="session")
def inherited() -> Iterator[dict[str, int]]:
    """What an outer fixture may well open, and every test then inherits."""
    directory = os.open(HOST.directory, os.O_RDONLY)
    with open(HOST.canary, "rb") as file, socket.socket() as sock:
        yield {"file": file.fileno(), "directory": directory, "socket": sock.fileno()}
    os.close(directory)


@pytest.mark.parametrize(("attempt", "net"), [*cases()])
def test_attempt(
    attempt: Attempt, net: str, inherited: dict[str, int], record_property: Callable[[str, object], None]
) -> None:
    place = dataclasses.replace(HOST, inside=True, net=net, fds=inherited)
    record_property("came_of_it", attempt.run(place))
