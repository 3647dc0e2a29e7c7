"""The doors to namespaces, on the real kernel."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from pytest_nsbox.kernel import namespaces, net
from pytest_nsbox.policy.errors import KernelError
from tests.warden.boxes import in_a_process

pytestmark = pytest.mark.needs("root", "user namespace")


def identity(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize(
    "flag", [flag for flag in namespaces.FILES if flag not in (namespaces.NEWPID, namespaces.NEWTIME)]
)
def test_a_process_leaves_and_enters_namespaces(flag: int) -> None:
    name = namespaces.FILES[flag]

    def play() -> None:
        home = namespaces.open_namespace("self", name)
        before = identity(name)
        namespaces.unshare(flag)
        assert identity(name) != before
        if flag != namespaces.NEWUSER:
            namespaces.setns(home, flag)
            assert identity(name) == before

    in_a_process(play)


def test_children_are_born_in_another_pid_namespace_until_it_is_left() -> None:
    def child_pid() -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, str(os.getpid()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return int(os.read(reader, 20))

    def play() -> None:
        home = namespaces.open_namespace("self", "pid")
        namespaces.unshare(namespaces.NEWPID)
        assert child_pid() == 1
        namespaces.setns(home, namespaces.NEWPID)
        assert child_pid() != 1

    in_a_process(play)


def test_errors_name_call_and_namespaces() -> None:
    assert namespaces.names(namespaces.NEWUSER | namespaces.NEWNET) == "user,net"
    with pytest.raises(KernelError, match=r"^setns mnt,pid: Bad file descriptor$"):
        namespaces.setns(-1, namespaces.NEWNS | namespaces.NEWPID)
    with pytest.raises(KernelError, match=r"^open /proc/0/ns/net: No such file or directory$"):
        namespaces.open_namespace(0, "net")
    with pytest.raises(KernelError) as told:
        namespaces.write_maps(os.getpid(), "0 0 1", "0 0 1")
    assert told.value.errno == errno.EPERM


def test_maps_are_written_and_read() -> None:
    def play() -> tuple[object, object]:
        namespaces.unshare(namespaces.NEWUSER)
        namespaces.write_proc("/proc/self/uid_map", "5 0 1")
        return namespaces.read_id_map(), namespaces.read_id_map(name="gid_map")

    assert in_a_process(play) == (((5, 0, 1),), ())


@pytest.mark.needs("time namespace")
def test_clock_offsets_hold_for_children() -> None:
    def play() -> float:
        namespaces.unshare(namespaces.NEWTIME)
        namespaces.set_clock_offsets(-0.5, 1000.25)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, str(time.clock_gettime(time.CLOCK_BOOTTIME)).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        return float(os.read(reader, 50)) - time.clock_gettime(time.CLOCK_BOOTTIME)

    assert in_a_process(play) == pytest.approx(1000.25, abs=1)


def test_loopback_comes_up_with_both_addresses() -> None:
    def play() -> list[int]:
        namespaces.unshare(namespaces.NEWNET)
        codes = []
        for up in (False, True):
            if up:
                net.loopback_up()
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    codes.append(probe.connect_ex((address, 9)))
        return codes

    assert in_a_process(play) == [errno.ENETUNREACH, errno.EADDRNOTAVAIL, 0, 0]
