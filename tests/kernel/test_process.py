"""The doors to processes, on the real kernel."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pytest_nsbox.kernel import libc, namespaces, process
from pytest_nsbox.policy.errors import KernelError
from tests.warden.boxes import in_a_process, status_field

root = pytest.mark.needs("root")


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.5", (6, 18)), ("6.1.0-13-amd64", (6, 1)), ("5.19-rc1", (5, 19)), ("5.15+", (5, 15)), ("7", (7, 0))],
)
def test_versions_of_kernels_are_read(monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]) -> None:
    words = os.uname()
    told = os.uname_result((words[0], words[1], release, words[3], words[4]))
    monkeypatch.setattr("pytest_nsbox.kernel.process.os.uname", lambda: told)
    assert process.kernel_version() == version


def test_clone3_forks_and_the_pidfd_tells_of_the_end() -> None:
    def play() -> tuple[bool, bool, bool]:
        reader, writer = os.pipe()
        pid, pidfd = process.clone3(0)
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        alive = process.reap(pidfd)
        os.close(writer)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return alive, process.reap(pidfd), process.reap(pidfd)

    assert in_a_process(play) == (False, True, True)


def test_a_killed_process_is_gone_and_a_second_kill_is_no_error() -> None:
    def play() -> int:
        pid, pidfd = process.clone3(0)
        if pid == 0:
            time.sleep(60)
        process.kill(pidfd)
        status = os.waitpid(pid, 0)[1]
        process.kill(pidfd)
        return os.WTERMSIG(status)

    assert in_a_process(play) == signal.SIGKILL


@root
def test_clone3_makes_namespaces_at_once() -> None:
    def play() -> str:
        reader, writer = os.pipe()
        flags = namespaces.NEWUSER | namespaces.NEWPID | namespaces.NEWNS
        pid, _ = process.clone3(flags)
        if pid == 0:
            os.write(writer, str(os.getpid()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return os.read(reader, 20).decode()

    assert in_a_process(play) == "1"


def test_a_child_dies_with_its_parent() -> None:
    def play() -> int:
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            pid, _ = process.clone3(0)
            if pid == 0:
                process.die_with_parent()
                os.write(writer, str(os.getpid()).encode())
                time.sleep(60)
            os.read(reader, 0)
            time.sleep(60)
        pid = int(os.read(reader, 20))
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        return pid

    pid = in_a_process(play)
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and status_field("State", pid)[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@root
def test_capabilities_are_kept_with_another_fs_id(tmp_path: object) -> None:
    path = f"{tmp_path}/made"

    def play() -> tuple[int, bool, bool]:
        everything = process.Capabilities()
        process.set_fs_ids(1234, 1234)
        lost = status_field("CapEff")
        everything.restore()
        kept = status_field("CapEff")
        os.close(os.open(path, os.O_CREAT, 0o600))
        return os.stat(path).st_uid, lost == kept, kept == status_field("CapPrm")

    assert in_a_process(play) == (1234, False, True)


@root
def test_ids_are_taken_for_good() -> None:
    def play() -> tuple[object, ...]:
        process.become(33, 34, (35, 36))
        with pytest.raises(KernelError, match=r"^setgroups: Operation not permitted$"):
            process.become(0, 0)
        return os.getresuid(), os.getresgid(), os.getgroups()

    assert in_a_process(play) == ((33, 33, 33), (34, 34, 34), [35, 36])


def test_all_descriptors_but_some_are_closed() -> None:
    def play() -> tuple[int, ...]:
        reader, writer = os.pipe()
        high = os.dup2(writer, 900)
        os.dup2(writer, 901)
        if os.fork() == 0:
            process.close_all_but((writer, high))
            found = [fd for fd in range(1000) if _is_open(fd)]
            os.write(high, repr(found == [writer, high]).encode())
            os._exit(0)
        os.wait()
        return (int(os.read(reader, 20) == b"True"),)

    assert in_a_process(play) == (1,)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_names_dumpability_and_capabilities_are_what_was_set() -> None:
    def play() -> tuple[str, int, bool]:
        process.set_name("a_name_that_is_longer_than_fifteen")
        process.set_dumpable(dumpable=False)
        pr_get_dumpable = 3
        dumpable = libc.call("prctl", "", pr_get_dumpable, 0, 0, 0, 0)
        return status_field("Name"), dumpable, process.has_capability(63)

    assert in_a_process(play) == ("a_name_that_is_", 0, False)


def test_a_missing_function_of_the_c_library_is_told() -> None:
    with pytest.raises(KernelError, match=r"^no_such_function x: Function not implemented$"):
        libc.call("no_such_function", "x")


def test_a_buffer_is_read_and_written_by_the_kernel() -> None:
    buffer = libc.Buffer(b"\x01\x00\x00\x00\xff\xff\xff\xff")
    assert buffer.size == 8
    assert (buffer.word(0), buffer.word(4)) == (1, -1)
