"""Every call on a cgroup file fails once: a clear error, and nothing left. On v1 here, on v2 in the VM."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from pytest_nsbox.kernel import cgroup, libc, mount, namespaces
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.limits import cgroup_writes
from pytest_nsbox.policy.spec import Spec
from tests.kernel.cgroups import FailingFiles, groups_below, opened, parent

pytestmark = pytest.mark.needs("root", "cgroup:memory", "cgroup:pids", "cgroup:cpu")

MS_BIND_REMOUNT_RDONLY = 4096 | 32 | 1
READ_WRITE = "mount it read-write: mount -o remount,rw, or docker run --privileged"

BELOW = f"{parent() or ''}/faulty/parent"
SPEC = Spec(mem=64 * 1024 * 1024, pids=20, cpu=0.5)


def life_of_a_box(files: FailingFiles) -> None:
    """From the first to the last call of a session; on an error the callers' clean-up goes on, as the warden's does."""
    session = cgroup.open_session(BELOW, "unit", frozenset({"cpu"}), files)
    try:
        session.open_screens()
        node = session.make("box", cgroup_writes(SPEC, session.version), 65534)
        try:
            node.read()
        finally:
            node.remove()
    finally:
        session.close()


def number_of_calls() -> int:
    files = FailingFiles()
    life_of_a_box(files)
    return len(files.calls)


@pytest.fixture(autouse=True)
def parents_stay() -> Iterator[None]:
    """Other runs make and remove the groups above ours, which would change the number of calls."""
    with opened("holder", needed=frozenset({"cpu"})) as session:
        session.open_screens()
        yield


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_any_call_that_fails_gives_a_clear_error_and_leaves_nothing(number):
    total = number_of_calls()
    assert total > 40
    tolerated: list[str] = []
    for index in range(total):
        files = FailingFiles(index, number)
        before = len(os.listdir("/proc/self/fd"))
        error = error_of(lambda files=files: life_of_a_box(files))
        if error is None:
            tolerated.append(files.calls[index])
        else:
            # The call and its file, or for a hierarchy without rights the limit that so cannot be.
            assert str(error).endswith(os.strerror(number)) or "cannot be used: " in str(error)
            assert " /sys/fs/cgroup" in str(error)
        assert groups_below("/faulty") == [], files.calls[index]
        assert len(os.listdir("/proc/self/fd")) == before, files.calls[index]
    # What cannot be used for want of rights is an error only for a limit that needs it: here nothing needs v1's cpuacct
    # and v2's io. A box itself is made completely or not at all.
    assert not tolerated or number == errno.EACCES
    assert not [call for call in tolerated if "/box" in call]


def error_of(function):
    try:
        function()
    except (KernelError, BoxFailed) as error:
        return error
    return None


def test_a_box_that_could_not_be_made_can_be_made_the_next_time():
    files = FailingFiles()
    session = cgroup.open_session(BELOW, "unit", frozenset({"cpu"}), files)
    try:
        begin = len(files.calls)
        make_and_remove(session)
        for index in range(len(files.calls) - begin):
            files.fails = len(files.calls) + index
            error = error_of(lambda: make_and_remove(session))
            assert isinstance(error, KernelError)
            assert error.errno == errno.EIO
            make_and_remove(session)
    finally:
        session.close()


def make_and_remove(session):
    session.make("box", cgroup_writes(SPEC, session.version), None).remove()


def test_groups_on_a_read_only_mount_are_told_by_the_call_that_made_none():
    below = f"{parent() or ''}/mounted-read-only/parent"
    reader, writer = os.pipe()
    first = cgroup.open_session(below, "first")
    try:
        pid = os.fork()
        if pid == 0:
            try:
                namespaces.unshare(namespaces.NEWNS)
                mount.make_private("/")
                for found in cgroup.find_mounts():
                    libc.call("mount", "remount,ro", None, found.point.encode(), None, MS_BIND_REMOUNT_RDONLY, None)
                session = cgroup.open_session(below, "second")
                session.open_screens()
                os.write(writer, "\n".join({*session.problems.values()}).encode())
                session.close()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    finally:
        first.close()
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        texts = file.read().splitlines()
    assert texts
    for text in texts:
        assert text.startswith("mkdir /sys/fs/cgroup"), text
        assert text.endswith(": Read-only file system; " + READ_WRITE), text
