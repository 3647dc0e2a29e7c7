"""Each way out is shown to work for root outside a box, and then to fail in one, with the error that it fails with."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.escapes import groups, machine, network, processes, roots, storage
from tests.escapes.attempt import ATTEMPTS, NETS, PLACE, WORKED, Attempt, Place
from tests.escapes.host import copy_suite, made_host

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory")

REPOSITORY = Path(__file__).parents[2]
ROOMS = (groups, machine, network, processes, roots, storage)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What attempts go for."""
    top = tmp_path_factory.mktemp("host")
    places = [top / "private", top / "shared"]
    for directory in places:
        directory.mkdir()
    # Ordinary users must get there, or it would be the way that keeps them out.
    top.chmod(0o755)
    with made_host(*places) as place:
        yield place


@pytest.fixture(scope="module")
def held(host: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """{attempt: {net: what came of it in a box}}, from one inner run."""
    suite = tmp_path_factory.mktemp("suite")
    copy_suite(suite)
    (suite / "pytest.ini").write_text(f"[pytest]\nsandbox_shared_paths = {host.shared}\n")
    limits = [f"--sandbox-set={limit}" for limit in ("mem=64M", "pids=64")]
    base_temp = tmp_path_factory.mktemp("base")
    login = "import sys; from tests.escapes.host import run_logged_in; run_logged_in(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        login,
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "nsbox",
        "--sandbox-all",
        *limits,
    ]
    done = subprocess.run(
        [*command, f"--basetemp={base_temp}", "-p", "no:cacheprovider", "-q", "--junit-xml=report.xml"],
        cwd=suite,
        env={
            **os.environ,
            PLACE: host.to_json(),
            "PYTHONPATH": str(REPOSITORY),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {}
    for entry in ET.parse(suite / "report.xml").iter("property"):
        name, _, net = entry.attrib["name"].partition(" ")
        found.setdefault(name, {})[net] = entry.attrib["value"]
    return found


@pytest.fixture
def outside(host: Place) -> Iterator[Place]:
    """The same place for who is in no box, with descriptors as a fixture would have opened them."""
    directory = os.open(host.directory, os.O_RDONLY)
    with open(host.canary, "rb") as file, socket.socket() as sock:
        fds = {"file": file.fileno(), "directory": directory, "socket": sock.fileno()}
        yield dataclasses.replace(host, fds=fds)
    os.close(directory)


@pytest.mark.parametrize("attempt", [pytest.param(attempt, id=name) for name, attempt in ATTEMPTS.items()])
def test_a_way_out_works_outside_and_is_closed_in_a_box(
    attempt: Attempt, outside: Place, held: dict[str, dict[str, str]]
):
    came_of_it = attempt.run(outside)
    if came_of_it in attempt.absent:
        pytest.skip(f"this kernel does not have it: {came_of_it}")
    assert came_of_it == WORKED, "it does not even work outside"
    found = {net: came for net, came in held[attempt.name].items() if net in NETS}
    if attempt.open is not None and found == dict.fromkeys(attempt.refused, WORKED):
        pytest.xfail(attempt.open)
    assert found == in_words(attempt, found)
    assert Path(outside.canary).read_text() == "safe"


@pytest.mark.parametrize("who", ["user", "container", "container-user"])
def test_ways_out_are_closed_for_users_and_in_containers(who: str, held: dict[str, dict[str, str]]):
    found = {name: outcomes[who] for name, outcomes in held.items() if who in outcomes}
    assert len(found) >= 60
    known = {name for name, attempt in ATTEMPTS.items() if attempt.open is not None}
    got_out = {name: outcome for name, outcome in found.items() if outcome == WORKED or outcome.startswith("broken")}
    assert got_out.keys() <= known, repr(got_out)


def in_words(attempt: Attempt, found: dict[str, str]) -> dict[str, str]:
    """What was expected; of several possible ends the one that came."""
    return {
        net: found[net] if found[net] in expected.split(" or ") else expected
        for net, expected in attempt.refused.items()
    }
