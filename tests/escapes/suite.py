"""The inner suite: every attempt, in boxes without and with a network of their own.

Most of a room share a box (each is made in a process of its own); what came of them goes out as properties of reports.
"""

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
    for net in NETS:
        for room in ROOMS:
            shared = [a for a in ATTEMPTS.values() if a.function.__module__ == room.__name__ and not a.apart]
            yield pytest.param(shared, net, marks=pytest.mark.sandbox(net=net == "host"))
        for attempt in ATTEMPTS.values():
            if attempt.apart:
                keys = {key: filled_in(value) for key, value in attempt.box.items()}
                yield pytest.param([attempt], net, marks=pytest.mark.sandbox(net=net == "host", **keys))


@pytest.fixture(scope="session")
def inherited() -> Iterator[dict[str, int]]:
    """What an outer fixture may well open, and every test then inherits."""
    directory = os.open(HOST.directory, os.O_RDONLY)
    with open(HOST.canary, "rb") as file, socket.socket() as sock:
        yield {"file": file.fileno(), "directory": directory, "socket": sock.fileno()}
    os.close(directory)


@pytest.mark.parametrize(("attempts", "net"), [*cases()])
def test_attempts(
    attempts: list[Attempt], net: str, inherited: dict[str, int], record_property: Callable[[str, object], None]
) -> None:
    place = dataclasses.replace(HOST, inside=True, net=net, fds=inherited)
    for attempt in attempts:
        if net in attempt.refused:
            record_property(f"{attempt.name} {net}", attempt.run(place))
