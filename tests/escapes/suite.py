"""The inner suite: every attempt, in boxes without and with a network of their own.

Most of a room share a box (each is made in a process of its own); what came of them goes out as properties of reports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.escapes import groups, machine, network, processes, roots, storage
from tests.escapes.attempt import ATTEMPTS, NETS, PLACE, USER, Attempt, Place
from tests.escapes.contained import outcomes
from tests.escapes.host import SESSION_KEY

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


@pytest.mark.sandbox(net=False, user=str(USER))
def test_attempts_of_a_user(inherited: dict[str, int], record_property: Callable[[str, object], None]) -> None:
    for name, outcome in outcomes(dataclasses.replace(HOST, fds=inherited)).items():
        record_property(f"{name} user", outcome)


@pytest.mark.sandbox(False)
@pytest.mark.parametrize(("who", "uid"), [("container", 0), ("container-user", USER)])
def test_attempts_from_a_container(
    who: str, uid: int, nsbox: object, record_property: Callable[[str, object], None]
) -> None:
    env = {name: os.environ[name] for name in (PLACE, SESSION_KEY, "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-m", "tests.escapes.contained", str(uid)]
    done = nsbox.run(command, env=env, net=False, mem="64M", pids=64, timeout=120, check=True)  # type: ignore[attr-defined]
    told = json.loads(done.stdout)
    # The standard streams, and the one that listdir() reads.
    assert told["descriptors"] == 4
    for name, outcome in told["outcomes"].items():
        record_property(f"{name} {who}", outcome)
