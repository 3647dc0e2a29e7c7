"""However a session ends, nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_nsbox.kernel import process
from pytest_nsbox.kernel.cgroup import find_mounts
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden import client as client_module
from pytest_nsbox.warden.client import Warden
from tests.warden.boxes import DiedError, collect, config, fork_into, run, run_in, started, status_field

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return status_field("State", pid).startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def session_directories() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("nsbox-")]


def session_cgroups() -> list[Path]:
    parent = os.environ["PYTEST_NSBOX_CGROUP_PARENT"].strip("/")
    return [path for mount in find_mounts() for path in Path(mount.point, parent).glob("nsbox-*")]


CLIENT = """
import os, sys, time
from pytest_nsbox.policy.spec import Spec
from tests.warden.boxes import config, fork_into
from pytest_nsbox.warden.client import Warden
warden = Warden.start(config())
box = warden.acquire(Spec(mem=64 << 20))
warden.prefetch(Spec())
if "helper" in sys.argv and os.fork() == 0:
    time.sleep(100)
pid, _ = fork_into(box, lambda: (os.fork(), time.sleep(100)))
print(warden.pid, pid, box.init_pid, flush=True)
time.sleep(100)
"""


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    arguments = getattr(request, "param", [])
    command = [sys.executable, "-c", CLIENT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        yield process, [int(word) for word in process.stdout.readline().split()]
        process.kill()


@pytest.mark.parametrize("client", [[], ["helper"]], indirect=True, ids=["alone", "with a fork that lives on"])
def test_a_killed_client_takes_everything_along(client: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = client
    assert session_directories()
    process.kill()
    process.wait()
    wait_until(lambda: all(gone(pid) for pid in pids))
    assert session_directories() == []
    assert session_cgroups() == []
    # The helper that pytest forked is no process of a box.
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def test_a_killed_warden_takes_its_boxes_along_and_the_next_one_sweeps(
    client: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, (warden, child, init) = client
    os.kill(warden, signal.SIGKILL)
    wait_until(lambda: gone(child))
    # As pytest does when it hears of the child's end; the init stays until then.
    process.kill()
    process.wait()
    wait_until(lambda: gone(init))
    (left,) = session_directories()
    with started() as next_warden:
        run(next_warden, os.getpid)
        wait_until(lambda: left not in session_directories())
        # Its own cgroups lie beside those of the dead session.
        assert [path for path in session_cgroups() if path.name == left] == []


def test_a_stopped_warden_is_waited_for_a_while_and_then_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE", 0.5)
    is_stopped = process.is_stopped
    warden = Warden.start(config())
    try:
        run(warden, os.getpid)
        os.kill(warden.pid, signal.SIGSTOP)
        looked: list[bool] = []

        def look_and_let_go_on(pid: int) -> bool:
            looked.append(is_stopped(pid))
            os.kill(pid, signal.SIGCONT)
            return looked[-1]

        with monkeypatch.context() as patch:
            patch.setattr(process, "is_stopped", look_and_let_go_on)
            run(warden, os.getpid)
        assert looked[0] is True
        os.kill(warden.pid, signal.SIGSTOP)
        warden.forget()
        with pytest.raises(BoxFailed) as caught:
            warden.acquire(Spec())
        text = f"the warden (process {warden.pid}) is gone, and all its boxes with it: somebody stopped it (SIGSTOP)"
        assert str(caught.value) == f"{text}, and it did not go on"
        assert warden.gone
    finally:
        assert warden.close() != ()
    with started() as next_warden:
        run(next_warden, os.getpid)


def test_a_dead_warden_is_told_of() -> None:
    warden = Warden.start(config())
    try:
        run(warden, os.getpid)
        os.kill(warden.pid, signal.SIGKILL)
        with pytest.raises(
            BoxFailed, match=rf"^the warden \(process {warden.pid}\) is gone, and all its boxes with it: "
        ):
            warden.acquire(Spec())
    finally:
        assert warden.close() != ()
    with started() as next_warden:
        run(next_warden, os.getpid)
        wait_until(lambda: len(session_directories()) == 1)


def test_a_directory_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    other = Path(tempfile.gettempdir(), "nsbox-other")
    other.mkdir()
    (other / "lock").write_text('{"cgroup_parent": null}')
    os.chown(other, 1234, 1234)
    try:
        with started() as warden:
            run(warden, os.getpid)
            run(warden, os.getpid)
            time.sleep(0.3)
        assert (other / "lock").exists()
    finally:
        (other / "lock").unlink()
        other.rmdir()


def test_signals_of_the_terminal_do_not_reach_the_warden() -> None:
    with started() as warden:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(warden.pid, number)
        assert run(warden, os.getpid) == 2
        assert os.getsid(warden.pid) == warden.pid


def test_a_killed_box_ends_at_once_with_all_that_it_started() -> None:
    def start_much() -> None:
        subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM HUP INT; sleep 100"])
        if os.fork() == 0:
            os.setsid()
        time.sleep(100)

    with started() as warden:
        box = warden.acquire(Spec())
        pid, reader = fork_into(box, start_much)
        time.sleep(0.2)
        before = time.monotonic()
        box.kill()
        with pytest.raises(DiedError) as died:
            collect(pid, reader)
        assert died.value.signal == signal.SIGKILL
        box.release()
        wait_until(lambda: gone(box.init_pid))
        assert time.monotonic() - before < 50


def test_what_a_test_leaves_running_ends_with_its_box() -> None:
    def leave() -> None:
        subprocess.Popen(["setsid", "sleep", "97531"])

    with started() as warden:
        run(warden, leave)
        wait_until(
            lambda: subprocess.run(["pgrep", "-f", "sleep 97531"], capture_output=True, check=False).stdout == b""
        )


def test_descriptors_of_the_warden_and_of_other_boxes_are_closed_in_the_child() -> None:
    def look() -> list[str]:
        found = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
            except FileNotFoundError:
                continue
        return found

    with started() as warden:
        warden.prefetch(Spec())
        time.sleep(0.2)
        box = warden.acquire(Spec())
        warden.prefetch(Spec())
        found = run_in(box, look)
        box.release()
    assert [name for name in found if "pidfd" in name or "cgroup" in name or name.startswith(("pid:", "time:"))] == []
    # Of the sockets and pipes that pytest itself has, none is the warden's.
    ours = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert [name for name in found if name.startswith("socket:") and name not in ours] == []


def test_an_oom_kill_is_counted_and_the_next_box_is_fine() -> None:
    def eat() -> int:
        return len(bytearray(200 << 20))

    with started() as warden:
        box = warden.acquire(Spec(mem=32 << 20))
        with pytest.raises(DiedError) as died:
            run_in(box, eat)
        released = box.release()
        assert died.value.signal == signal.SIGKILL
        texts = "\n".join(released.counters.values())
        assert "oom_kill 1" in texts
        assert run(warden, os.getpid, mem=32 << 20) == 2


def resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
def test_a_thousand_boxes_leave_memory_and_descriptors_where_they_were() -> None:
    specs = [Spec(), Spec(mem=64 << 20, pids=50, net="none"), Spec(hostname="x")]

    def write() -> int:
        return Path("/x").write_text("x")

    def use_boxes(count: int) -> None:
        for number in range(count):
            spec = specs[number // 20 % 3]
            warden.prefetch(spec)
            box = warden.acquire(spec)
            pid, reader = fork_into(box, write if number % 7 == 0 else os.getpid)
            warden.prefetch(spec)
            collect(pid, reader)
            box.release()
            if number % 20 == 19:
                warden.forget()

    def measure() -> dict[str, int]:
        warden.forget()
        time.sleep(0.5)
        return {
            "warden pages": resident_pages(warden.pid),
            "warden files": open_files(warden.pid),
            "our pages": resident_pages(os.getpid()),
            "our files": open_files(os.getpid()),
            "mounts": len(Path(f"/proc/{warden.pid}/mountinfo").read_text().splitlines()),
        }

    with started() as warden:
        use_boxes(100)
        before = measure()
        use_boxes(900)
        after = measure()
    # Trees that wait for a box are as many as they may be, of one kind or another.
    assert after["warden files"] - before["warden files"] < 12
    assert after["our files"] <= before["our files"]
    assert after["mounts"] - before["mounts"] < 30
    # 4 KiB pages; an interpreter's arenas come and go.
    assert after["warden pages"] - before["warden pages"] < 100
    assert after["our pages"] - before["our pages"] < 300
