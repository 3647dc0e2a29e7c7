"""SIGKILL at random moments, of everything that takes part: the run ends, and nothing of it stays.

Repeat a failure with the seed that is printed: NSBOX_SEED=… pytest tests/faults/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.leftovers import Leftovers

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:pids")

SUITE = """
import subprocess
import time
import pytest

@pytest.fixture(scope="session")
def outer():
    yield

@pytest.mark.parametrize("number", range(40))
def test_quick(number, outer):
    pass

@pytest.mark.sandbox(net=False, disk="10M", tmpfs=["/mnt"])
@pytest.mark.parametrize("number", range(10))
def test_with_processes(number, outer):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    open("/etc/made", "w").close()
    time.sleep(0.02)
"""
PAUSED = """
import time

def test_paused(nsbox):
    paused = nsbox.start(["sh", "-c", "while :; do /bin/true; done"])
    nsbox.start(["sleep", "1000"])
    paused.pause()
    open("SHARED/ready", "w").close()
    time.sleep(1000)
"""
PATIENCE = 5.0  # seconds until no process and no mount is there, on a machine that has nothing else to do
WHOLE_RUN = 120.0  # seconds, on a loaded machine


def patience() -> float:
    """The same on a machine that has."""
    return PATIENCE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def wardens(pytest_pid: int) -> list[int]:
    everyone = [pytest_pid, *children(pytest_pid)]
    return [child for pid in everyone for child in children(pid) if name_of(child) == "nsbox-warden"]


def inits(pytest_pid: int) -> list[int]:
    return [child for pid in wardens(pytest_pid) for child in children(pid) if name_of(child) == "nsbox-init"]


def zygotes(pytest_pid: int) -> list[int]:
    """Forks of pytest's process that are in no box."""
    found = []
    for pid in children(pytest_pid):
        with suppress(OSError):
            if name_of(pid) != "nsbox-warden" and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink(
                "/proc/self/ns/mnt"
            ):
                found.append(pid)
    return found


def forked(pytest_pid: int) -> list[int]:
    everyone = [pid for parent in (pytest_pid, *zygotes(pytest_pid)) for pid in children(parent)]
    return [pid for pid in everyone if name_of(pid) != "nsbox-warden"]


# Who is killed: its processes, given pytest's.
VICTIMS: dict[str, Callable[[int], list[int]]] = {
    "pytest": lambda pid: [pid],
    "warden": wardens,
    "init": inits,
    "test": forked,
    "zygote": zygotes,
    "worker": children,
}


COMMAND = [sys.executable, "-m", "pytest", "-p", "nsbox", "--sandbox-all", "-p", "no:cacheprovider", "-q"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file is there, or the process has ended without having made it."""
    deadline = time.monotonic() + WHOLE_RUN
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


class Run:
    """One run of the inner suite."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.output = directory / "output.txt"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, "--sandbox-set=mem=200M", "--sandbox-set=pids=50", *options],
                cwd=directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> tuple[int, str]:
        """Wait for it; return its exit status and what it printed."""
        try:
            self.process.wait(WHOLE_RUN)
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode, self.output.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "test_inner.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("NSBOX_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"NSBOX_SEED={seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)


def strike(directory: Path, chance: random.Random, victim: str, leftovers: Leftovers, longest: float) -> bool:
    """Kill a `victim` at a random moment of a run; say if there was one."""
    before = leftovers.snapshot()
    options = ["-p", "xdist", "-n2"] if victim == "worker" else []
    run = Run(directory, *options)
    time.sleep(chance.uniform(0.0, longest))
    targets = VICTIMS[victim](run.process.pid)
    struck = False
    if targets and run.process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(targets), signal.SIGKILL)
            struck = True
    status, output = run.end()
    # xdist itself fails when a worker ends before it has begun.
    if victim != "worker":
        assert status in ((-signal.SIGKILL, 0) if victim == "pytest" else (0, 1)), output
        assert "INTERNALERROR" not in output, output
    left = leftovers.new_since(before, grace=patience())
    # Groups and directories that a warden cannot take along are for the next start to remove.
    alive = {key: text for key, text in left.items() if key.startswith(("process", "mount"))}
    assert not alive, (victim, alive, output)
    if victim in ("init", "test", "worker", "zygote"):
        assert not left, (victim, left, output)
    return struck


@pytest.mark.parametrize("victim", ["pytest", "warden", "every init"])
def test_a_paused_box_stays_no_longer_than_others(tmp_path: Path, leftovers: Leftovers, victim: str):
    """On cgroup v1 a frozen process does not die before somebody thaws it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nsandbox_shared_paths = {shared}\n")
    (tmp_path / "test_inner.py").write_text(PAUSED.replace("SHARED", str(shared)))
    before = leftovers.snapshot()
    run = Run(tmp_path)
    wait_for(shared / "ready", run.process)
    assert (shared / "ready").exists(), run.output.read_text()
    for pid in inits(run.process.pid) if victim == "every init" else VICTIMS[victim](run.process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status, output = run.end()
    assert status == (-signal.SIGKILL if victim == "pytest" else 1), output
    assert "INTERNALERROR" not in output, output
    left = leftovers.new_since(before, grace=patience())
    alive = {key: text for key, text in left.items() if key.startswith(("process", "mount"))}
    assert not alive, alive
    # Groups and directories that nobody could take along are for the next start to remove.
    (tmp_path / "test_inner.py").write_text("def test_next(): pass")
    status, output = Run(tmp_path).end()
    assert status == 0, output
    assert not leftovers.new_since(before)


def length_of_a_run(directory: Path) -> float:
    begin = time.monotonic()
    status, output = Run(directory).end()
    assert status == 0, output
    return time.monotonic() - begin


def strike_and_start_again(
    directory: Path, chance: random.Random, leftovers: Leftovers, victims: list[str]
) -> dict[str, int]:
    before = leftovers.snapshot()
    longest = length_of_a_run(directory)
    struck = dict.fromkeys(VICTIMS, 0)
    for victim in victims:
        struck[victim] += strike(directory, chance, victim, leftovers, longest)
    # The next start removes what could not be removed at once.
    length_of_a_run(directory)
    assert not leftovers.new_since(before)
    return struck


def test_whoever_is_killed_nothing_stays(directory: Path, chance: random.Random, leftovers: Leftovers):
    strike_and_start_again(directory, chance, leftovers, [*VICTIMS, "pytest", "warden"])


@pytest.mark.slow
@pytest.mark.skipif("NSBOX_SOAK" not in os.environ, reason="takes longer than all else together: NSBOX_SOAK=1 runs it")
def test_whoever_is_killed_at_three_hundred_moments_nothing_stays(
    directory: Path, chance: random.Random, leftovers: Leftovers
):
    struck = strike_and_start_again(directory, chance, leftovers, [*VICTIMS] * 60)
    assert min(struck.values()) > 20, struck


ORPHANAGE = """
import ctypes, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
run = subprocess.Popen(sys.argv[1:])
print(run.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_pytest_leaves_nothing_where_nobody_collects_orphans(tmp_path: Path, leftovers: Leftovers):
    """As process 1 of a container often does not, and of some machines only now and then."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nsandbox_shared_paths = {shared}\n")
    (tmp_path / "test_inner.py").write_text(
        f"import time\ndef test_it():\n    open('{shared}/ready', 'w').close()\n    time.sleep(1000)\n"
    )
    before = leftovers.snapshot()
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANAGE, *COMMAND],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as orphanage:
        assert orphanage.stdout is not None
        pid = int(orphanage.stdout.readline())
        wait_for(shared / "ready", orphanage)
        os.kill(pid, signal.SIGKILL)
        left = leftovers.new_since(before, grace=patience() / 2)
        orphanage.communicate()
    assert not {key: text for key, text in left.items() if not key.startswith("process")}
    assert not leftovers.new_since(before, grace=patience())
