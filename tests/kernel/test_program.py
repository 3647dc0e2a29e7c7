"""Programs of system calls, run by processes that share this one's memory."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_nsbox.kernel import libc, mount, program
from pytest_nsbox.kernel.namespaces import NEWNS, NEWUTS
from pytest_nsbox.kernel.program import LINE, LONGEST_TEXT, READY, Loaded, Program, Slot, Starter
from pytest_nsbox.policy.errors import KernelError
from tests.warden.boxes import in_a_process, status_field

MACHINE = Path(__file__).with_name("machine")

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86-64")


@pytest.mark.needs("program:as", "program:objcopy")
@pytest.mark.parametrize("name", ["clone", "wait"])
def test_the_machine_code_is_what_its_source_says(name: str, tmp_path: Path) -> None:
    built, code = tmp_path / "built.o", tmp_path / "code"
    subprocess.run(["as", "-o", built, MACHINE / f"{name}.S"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", built, code], check=True)
    assert code.read_bytes() == getattr(program, name.upper())


class Started:
    """A process that runs `steps`, and our end of its line."""

    def __init__(self, steps: Program, flags: int = 0, **values: int | str) -> None:
        self.loaded = Loaded(steps)
        self.starter = Starter()
        self.line, theirs = socket.socketpair()
        with theirs:
            self.pid, self.pidfd = self.starter.start(flags, self.loaded, {"line": theirs.fileno(), **values})

    def hear(self) -> bytes:
        self.line.settimeout(20)
        return self.line.recv(10)

    def end(self) -> int:
        self.line.close()
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.pidfd)
        self.starter.close()
        return status


def waiting() -> Program:
    steps = Program()
    steps.wait()
    return steps


def awaiting() -> Program:
    steps = Program()
    steps.add("read", "line", program.SYS_READ, LINE, bytes(1), 1, least=1)
    steps.wait()
    return steps


def test_it_becomes_a_small_program_that_has_nothing_of_ours_and_ends_with_its_line() -> None:
    def play() -> tuple[object, ...]:
        started = Started(waiting())
        heard = started.hear()
        place = Path(f"/proc/{started.pid}")
        resident = int(status_field("VmRSS", started.pid).split()[0])
        told = (
            heard,
            os.listdir(place / "fd"),
            (place / "cmdline").read_bytes(),
            (place / "comm").read_text(),
            (place / "environ").read_bytes(),
            resident < 1000,
        )
        return (*told, started.end())

    assert in_a_process(play) == (READY, [str(LINE)], b"nsbox-init\0", "nsbox-init\n", b"", True, 0)


def test_it_ends_with_the_process_that_started_it() -> None:
    here, there = socket.socketpair()

    def play() -> int:
        started = Started(waiting())
        assert started.hear() == READY
        # Its line does not end with us.
        there.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", started.line.fileno()))])
        return started.pid

    with here, there:
        pid = in_a_process(play)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)


@pytest.mark.needs("root")
def test_calls_are_made_in_order_and_texts_are_filled_in(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / ("two " + "ü" * 50)]
    for path in paths:
        (path / "sub").mkdir(parents=True)

    def play() -> list[str]:
        steps = Program()
        tree = steps.open(
            "open_tree", "", libc.SYS_OPEN_TREE, mount.AT_FDCWD, Slot("from"), mount.clone_flags(recursive=False)
        )
        words = tree, b"", mount.AT_FDCWD, Slot("to"), mount.MOVE_MOUNT_F_EMPTY_PATH
        steps.add("move_mount", "", libc.SYS_MOVE_MOUNT, *words)
        steps.close(tree)
        steps.add("chdir", "", program.SYS_CHDIR, Slot("to"))
        steps.add("sethostname", "", program.SYS_SETHOSTNAME, b"in here", 4)
        steps.wait()
        found = []
        for source, target in (paths, paths[::-1]):
            started = Started(steps, NEWNS | NEWUTS, **{"from": str(source / "sub"), "to": str(target)})
            assert started.hear() == READY
            found.append(os.readlink(f"/proc/{started.pid}/cwd"))
            mounts = Path(f"/proc/{started.pid}/mountinfo").read_text()
            assert os.fsencode(target).decode().replace(" ", "\\040") in mounts
            assert started.end() == 0
        return found

    assert in_a_process(play) == [str(paths[1]), str(paths[0])]
    assert os.uname().nodename != "in h"


def test_a_call_that_fails_is_the_last_one_and_is_told() -> None:
    def play() -> list[tuple[object, ...]]:
        told: list[tuple[object, ...]] = []
        for path in ("/nonexistent", "/"):
            steps = Program()
            steps.add("chdir", "there", program.SYS_CHDIR, Slot("path"))
            steps.add("fchdir", "5", program.SYS_FCHDIR, 5)
            steps.wait()
            started = Started(steps, path=path)
            assert started.hear() == b""
            status = started.end()
            refusal = started.loaded.refusal()
            assert refusal is not None
            told.append((refusal.call, refusal.target, refusal.errno, os.waitstatus_to_exitcode(status)))
        return told

    assert in_a_process(play) == [("chdir", "there", errno.ENOENT, 1), ("fchdir", "5", errno.EBADF, 1)]


def test_a_text_that_was_filled_in_is_told() -> None:
    def play() -> str:
        steps = Program()
        steps.add("chdir", Slot("path"), program.SYS_CHDIR, Slot("path"))
        started = Started(steps, path="/nonexistent")
        started.end()
        return str(started.loaded.refusal())

    assert in_a_process(play) == str(KernelError("chdir", "/nonexistent", errno.ENOENT))


def test_a_line_that_ends_before_the_word_is_a_refusal() -> None:
    def play() -> tuple[int, int]:
        started = Started(awaiting())
        status = started.end()
        refusal = started.loaded.refusal()
        assert refusal is not None
        return refusal.errno, os.waitstatus_to_exitcode(status)

    assert in_a_process(play) == (errno.EPIPE, 1)


def test_one_that_was_killed_refused_nothing() -> None:
    def play() -> tuple[int, object]:
        started = Started(awaiting())
        os.kill(started.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(started.end()), started.loaded.refusal()

    assert in_a_process(play) == (-signal.SIGKILL, None)


def test_descriptors_are_numbered_as_the_kernel_will() -> None:
    steps = Program()
    first = [steps.open("openat", "", 257, mount.AT_FDCWD, b"/", os.O_RDONLY) for _ in range(4)]
    steps.close(1)
    assert first == [0, 1, 2, 5]
    assert steps.open("openat", "", 257, mount.AT_FDCWD, b"/", os.O_RDONLY) == 1


def test_a_text_that_is_no_path_any_more_is_an_error() -> None:
    steps = Program()
    steps.add("chdir", "", program.SYS_CHDIR, Slot("path"))
    with pytest.raises(KernelError) as caught:
        Loaded(steps).fill({"line": 0, "executable": 0, "path": "x" * LONGEST_TEXT})
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_starter_leaves_no_descriptor() -> None:
    def play() -> bool:
        before = os.listdir("/proc/self/fd")
        Starter().close()
        return before == os.listdir("/proc/self/fd")

    assert in_a_process(play)


def test_other_machines_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    words = os.uname()
    told = os.uname_result((*words[:4], "aarch64"))
    monkeypatch.setattr("pytest_nsbox.kernel.program.os.uname", lambda: told)
    with pytest.raises(KernelError, match="Function not implemented"):
        Starter()
