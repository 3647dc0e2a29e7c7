"""pytest's side of the warden."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import pytest_nsbox
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.record import replace
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Warden
from tests.capabilities import times
from tests.warden.boxes import config, run, run_in, started

pytestmark = pytest.mark.needs("root", "overlay", "user namespace")


def inits(warden: Warden) -> int:
    count = 0
    for pid in Path(f"/proc/{warden.pid}/task/{warden.pid}/children").read_text().split():
        try:
            # One child sweeps, another may copy artifacts.
            count += Path(f"/proc/{pid}/comm").read_text() == "nsbox-init\n"
        except OSError:
            continue
    return count


def wait_for_inits(warden: Warden, count: int) -> None:
    deadline = time.monotonic() + 10
    while inits(warden) != count:
        assert time.monotonic() < deadline, f"{inits(warden)} inits, expected {count}"
        time.sleep(0.01)


def test_as_many_boxes_are_made_ahead_as_the_pool_holds() -> None:
    with started(pool=3) as warden:
        for _ in range(3):
            warden.prefetch(Spec())
        wait_for_inits(warden, 3)
        box = warden.acquire(Spec())
        assert warden.is_ahead(Spec())
        assert not warden.is_ahead(Spec(mem=1 << 20))
        time.sleep(0.1)
        assert inits(warden) == 3
        box.release()
        wait_for_inits(warden, 2)
        warden.forget()
        # A box whose making was under way is given back when the answer comes, which the next request waits for.
        assert run(warden, os.getpid) == 2
        wait_for_inits(warden, 0)


def test_a_box_made_ahead_serves_specs_that_differ_only_for_the_test() -> None:
    with started(pool=1) as warden:
        warden.prefetch(Spec(mem=64 << 20, timeout=3.0))
        wait_for_inits(warden, 1)
        box = warden.acquire(Spec(mem=64 << 20, timeout=5.0, artifacts=("x",)))
        assert box.spec.timeout == 5.0
        assert inits(warden) == 1
        box.release()


def test_two_boxes_at_once_do_not_see_each_other() -> None:
    with started() as warden:
        first, second = warden.acquire(Spec()), warden.acquire(Spec())
        run_in(first, lambda: Path("/x").write_text("first"))
        assert run_in(second, lambda: os.path.exists("/x")) is False
        assert [path for _, path in first.changes()] == ["/x"]
        assert second.changes() == []
        first.release()
        second.release()


def test_a_box_is_alive_until_it_is_killed_or_given_back() -> None:
    with started() as warden:
        killed, returned = warden.acquire(Spec()), warden.acquire(Spec())
        killed.kill()
        wait_for_inits(warden, 1)
        assert (killed.is_alive(), returned.is_alive()) == (False, True)
        killed.release()
        returned.release()
        assert (killed.is_alive(), returned.is_alive()) == (False, False)


def test_boxes_made_after_a_new_configuration_have_its_paths(tmp_path: Path) -> None:
    first = config()
    with started() as warden:
        warden.prefetch(Spec())
        warden.configure(replace(first, base_temp=str(tmp_path)))
        run(warden, lambda: (tmp_path / "made").write_text("x"))
    assert (tmp_path / "made").exists()


def test_an_error_in_making_a_box_is_told_and_the_next_box_is_made() -> None:
    with started() as warden:
        warden.prefetch(Spec(user="ghost"))
        with pytest.raises(BoxFailed, match=r"^user: no 'ghost' in the box's /etc/passwd$"):
            warden.acquire(Spec(user="ghost"))
        assert run(warden, os.getpid) == 2


def test_a_process_with_threads_can_fork_into_boxes() -> None:
    stop = threading.Event()
    repeats = times(20, in_vm=5)

    def start_threads() -> None:
        while not stop.is_set():
            thread = threading.Thread(target=time.sleep, args=(0.0001,))
            thread.start()
            thread.join()

    threads = [threading.Thread(target=start_threads) for _ in range(3)]
    with started() as warden:
        for thread in threads:
            thread.start()
        try:
            with warnings.catch_warnings():
                # os.fork's own, since 3.12.
                warnings.simplefilter("ignore", DeprecationWarning)
                pids = [run(warden, os.getpid) for _ in range(repeats)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert pids == [2] * repeats
        assert os.readlink("/proc/self/ns/pid") == os.readlink("/proc/self/ns/pid_for_children")


def test_entering_with_a_second_thread_is_refused_by_the_kernel() -> None:
    def enter_with_a_thread() -> str:
        event = threading.Event()
        thread = threading.Thread(target=event.wait)
        thread.start()
        try:
            box.enter()
        except KernelError as error:
            return str(error)
        finally:
            event.set()
            thread.join()
        return "entered"

    with started() as warden:
        box = warden.acquire(Spec())
        box.before_fork()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, enter_with_a_thread().encode())
            os._exit(0)
        box.after_fork_in_parent()
        os.waitpid(pid, 0)
        assert os.read(reader, 1000).decode().startswith("setns user,mnt")
        os.close(reader)
        os.close(writer)
        box.release()


def test_ulimits_that_the_kernel_refuses_are_named() -> None:
    with started() as warden, pytest.raises(KernelError, match=r"^setrlimit nofile=64:32: "):
        run(warden, os.getpid, ulimits=(("nofile", 64, 32),))


def test_a_working_directory_that_is_missing_is_named() -> None:
    with (
        started() as warden,
        pytest.raises(BoxFailed, match=r"^workdir='/none': No such file or directory \(accepted: "),
    ):
        run(warden, os.getpid, workdir="/none")


def test_a_second_close_and_one_in_a_fork_do_nothing() -> None:
    warden = Warden.start(config())
    run(warden, os.getpid)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if warden.close() == () else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert run(warden, os.getpid) == 2
    assert warden.close() == ()
    assert warden.close() == ()


def test_a_warden_that_made_nothing_ends_as_well() -> None:
    assert Warden.start(config()).close() == ()


def test_the_warden_starts_without_the_slow_parts_of_the_library() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import pytest_nsbox.warden.server; print(*sys.modules)"
    parent = str(Path(pytest_nsbox.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, parent], capture_output=True, text=True, check=True)
    slow = {
        "asyncio",
        "contextlib",
        "dataclasses",
        "enum",
        "inspect",
        "json",
        "pyroute2",
        "pytest",
        "re",
        "socket",
        "typing",
    }
    assert slow & set(done.stdout.split()) == set()
