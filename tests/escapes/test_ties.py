"""What ties a box to the host: descriptors that its test inherits, the terminal, and directories that both write to."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

from tests.escapes.attempt import WORKED, in_a_process
from tests.escapes.ties import type_into_terminal

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")

HERE = Path(__file__).parent
ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Ties(NamedTuple):
    """What the inner run told: properties by name, and whether a file was made outside."""

    properties: dict[str, list[str]]
    written: bool


def run(top: Path, base_temp: Path, *options: str) -> Ties:
    """The inner suite, on a terminal of its own."""
    shutil.copy(HERE / "ties.py", top / "test_ties.py")
    (top / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", *options, "-q", f"--basetemp={base_temp}", "--junit-xml=report.xml"]
    environment = {
        **os.environ,
        "NSBOX_CACHE": str(top / ".pytest_cache"),
        "NSBOX_TARGET": str(top / "target"),
        "PYTHONPATH": str(HERE.parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ON_A_TERMINAL, *command],
            cwd=top,
            env=environment,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, done.stdout
    properties: dict[str, list[str]] = {}
    for entry in ET.parse(top / "report.xml").iter("property"):
        properties.setdefault(entry.attrib["name"], []).append(entry.attrib["value"])
    return Ties(properties, (top / "target").exists())


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Ties:
    """The inner suite in boxes."""
    places = tmp_path_factory.mktemp("suite"), tmp_path_factory.mktemp("base")
    return run(*places, "-p", "nsbox", "--sandbox-all")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Ties:
    """The inner suite without the plugin."""
    return run(tmp_path_factory.mktemp("suite"), tmp_path_factory.mktemp("base"), "-p", "no:nsbox")


def test_a_test_inherits_its_output_the_way_of_its_reports_and_nothing_else(boxed: Ties):
    found = boxed.properties["descriptor"]
    harmless = ("/dev/null", "/dev/tty", "/dev/pts/", "pipe:", "/memfd:nsbox-stacks")
    rest = [text for text in found if not text.startswith(harmless) and not text.endswith(" (deleted)")]
    assert [text.partition(":")[0] for text in rest] == ["socket"]


def type_into_a_terminal_of_its_own() -> str:
    pid, terminal = pty.fork()
    if pid == 0:
        os.write(1, type_into_terminal().encode())
        os._exit(0)
    text = b""
    with suppress(OSError):  # the other end is closed
        while chunk := os.read(terminal, 100):
            text += chunk
    os.waitpid(pid, 0)
    # What was typed is echoed.
    return text.decode().strip().removeprefix("X")


def test_a_test_types_nothing_into_the_terminal(boxed: Ties):
    assert in_a_process(type_into_a_terminal_of_its_own) == WORKED
    assert boxed.properties["came_of_it"] == ["EIO"]


def test_pytest_follows_no_link_that_a_test_left_in_its_cache(plain: Ties, boxed: Ties):
    assert plain.written
    assert not boxed.written
