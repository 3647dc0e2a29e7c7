"""When something runs out: a clear error for the test that needed it, the session goes on, and nothing stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from pytest_nsbox.kernel import mount, namespaces
from tests.warden.boxes import in_a_process

T = TypeVar("T")

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:pids")

SUITE = """
import os
import resource
import pytest

@pytest.fixture(scope="session")
def room():
    "Descriptors that are left to pytest's process."
    left = os.environ.get("ROOM")
    held = []
    if left:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for fd in held[len(held) - int(left):]:
                os.close(fd)
    yield

@pytest.mark.parametrize("number", range(4))
def test_small(number, room):
    open("/etc/made", "w").close()

def test_large(room):
    with open("/etc/large", "wb") as file:
        file.write(bytes(1 << 20))
"""


def run_inner(directory: Path, *before: str, **environment: str) -> str:
    """Run the suite in boxes, by the command `before`; return what it printed.

    It must have come to its end, and not by an internal error.
    """
    done = subprocess.run(
        [*before, *command()],
        cwd=suite_in(directory),
        env={
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            "COLUMNS": "300",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def command() -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "nsbox", "--sandbox-all", "-p", "no:cacheprovider", "--tb=short"]


def reasons(output: str) -> set[str]:
    """Why tests ended in an error, as the summary's lines tell."""
    return set(re.findall(r"^(?:ERROR|FAILED) \S+ - (.*)$", output, re.MULTILINE))


@pytest.mark.parametrize("limit", [18, 24, 30])
def test_descriptors_of_the_warden(tmp_path: Path, limit: int):
    code = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit},) * 2); "
    output = run_inner(tmp_path, sys.executable, "-c", code + "os.execv(sys.argv[1], sys.argv[1:])")
    found = reasons(output)
    assert found, output
    assert all(text.endswith(": Too many open files") for text in found), found


def suite_in(directory: Path) -> Path:
    (directory / "test_inner.py").write_text(SUITE)
    (directory / "pytest.ini").write_text("[pytest]\n")
    return directory


@pytest.mark.parametrize("room", [1, 6, 10])
def test_descriptors_of_pytests_process(tmp_path: Path, room: int):
    output = run_inner(tmp_path, ROOM=str(room))
    found = reasons(output)
    assert found, output
    assert all("Too many open files" in text for text in found), found
    assert "IndexError" not in output


def small(place: Path, options: tuple[tuple[str, str], ...], function: Callable[[], T]) -> T:
    """Call `function` where `place` is a small file system."""

    def play() -> T:
        namespaces.unshare(namespaces.NEWNS)
        mount.make_private("/")
        place.mkdir()
        fd = mount.new_mount("tmpfs", (("mode", "1777"), *options))
        mount.attach(fd, str(place))
        os.close(fd)
        return function()

    result: T = in_a_process(play)
    return result


@pytest.mark.needs("shifted tmpfs")
@pytest.mark.parametrize("inodes", [4, 14, 22, 40])
def test_inodes_of_the_scratch(tmp_path: Path, inodes: int):
    place = tmp_path / "small"

    def play() -> tuple[str, list[str]]:
        output = run_inner(tmp_path, TMPDIR=str(place), PYTEST_DEBUG_TEMPROOT=str(tmp_path))
        return output, os.listdir(place)

    output, left = small(place, (("nr_inodes", str(inodes)),), play)
    found = reasons(output)
    assert found, output
    assert all("No space left on device" in text for text in found), found
    assert left == []


@pytest.mark.needs("shifted tmpfs")
def test_space_of_the_scratch(tmp_path: Path):
    place = tmp_path / "small"

    def play() -> tuple[str, list[str]]:
        output = run_inner(tmp_path, TMPDIR=str(place), PYTEST_DEBUG_TEMPROOT=str(tmp_path))
        return output, os.listdir(place)

    output, left = small(place, (("size", "300k"),), play)
    assert "1 failed, 4 passed" in output, output
    assert "No space left on device" in output
    assert left == []
