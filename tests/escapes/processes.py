"""Attempts on processes and namespaces outside the box, and on the box's own process 1, which was the warden's."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.escapes.attempt import HeldError, Place, attempt
from tests.escapes.machine import become_the_user
from tests.escapes.system import (
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    C,
    address_of,
    call,
    setns,
    syscall,
    unshare,
    write_file,
)

PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
NS_GET_USERNS, NS_GET_PARENT = 0xB701, 0xB702
SO_PEERPIDFD, SIOCGSKNS = 77, 0x894C


@attempt("ESRCH")
def signal_to_a_host_process(at: Place) -> None:
    os.kill(at.victim, 0)


@attempt("ESRCH")
def signal_to_a_process_of_a_host_user(at: Place) -> None:
    become_the_user()
    os.kill(at.user_victim, 0)


@attempt("ESRCH")
def trace_of_a_host_process(at: Place) -> None:
    trace(at.victim)


@attempt("ESRCH")
def memory_of_a_host_process(at: Place) -> None:
    peek(at.victim)


@attempt("ENOENT")
def environment_of_a_host_process(at: Place) -> None:
    read_secret(at.victim)


@attempt("ESRCH")
def pidfd_of_a_host_process(at: Place) -> None:
    os.close(os.pidfd_open(at.victim))


@attempt("ESRCH")
def priority_of_a_host_process(at: Place) -> None:
    call("setpriority", 0, at.victim, 0)


@attempt("ESRCH")
def limits_of_a_host_process(at: Place) -> None:
    import resource

    resource.prlimit(at.victim, resource.RLIMIT_NOFILE)


@attempt("EPERM", absent=("EPERM",))
def own_limits_raised(at: Place) -> None:
    """Also out of reach outside, where root has no CAP_SYS_RESOURCE."""
    import resource

    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (1, 1))
    try:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (2, 2))
    except ValueError as error:
        raise OSError(errno.EPERM, str(error)) from None


@attempt(
    "EACCES",
    absent=("EACCES",),
    open_because="pytest may lower its score and has no CAP_SYS_RESOURCE, without which that cannot be taken away",
)
def spared_when_memory_is_short(at: Place) -> None:
    write_file("/proc/self/oom_score_adj", "-1000")


@attempt("EPERM")
def trace_of_process_one(at: Place) -> None:
    trace(at.first)


@attempt("EPERM")
def memory_of_process_one(at: Place) -> None:
    peek(at.first)


@attempt("EACCES")
def memory_file_of_process_one(at: Place) -> None:
    os.close(os.open(f"/proc/{at.first}/mem", os.O_RDONLY))


@attempt("EACCES")
def environment_of_process_one(at: Place) -> None:
    read_secret(at.first)


@attempt("EACCES")
def root_of_process_one(at: Place) -> None:
    os.listdir(f"/proc/{at.first}/root/")


@attempt("EACCES")
def working_directory_of_process_one(at: Place) -> None:
    os.listdir(f"/proc/{at.first}/cwd/")


@attempt("EACCES")
def descriptors_of_process_one(at: Place) -> None:
    os.listdir(f"/proc/{at.first}/fd/")


@attempt("EPERM")
def descriptor_taken_from_process_one(at: Place) -> None:
    os.close(syscall("pidfd_getfd", os.pidfd_open(at.first), 0, 0))


@attempt("EACCES")
def mapped_files_of_process_one(at: Place) -> None:
    directory = f"/proc/{at.first}/map_files"
    os.close(os.open(f"{directory}/{os.listdir(directory)[0]}", os.O_RDONLY))


@attempt("EPERM")
def own_mapped_files_which_are_the_hosts(at: Place) -> None:
    directory = "/proc/self/map_files"
    os.close(os.open(f"{directory}/{os.listdir(directory)[0]}", os.O_RDONLY))


@attempt("EACCES")
def program_of_process_one(at: Place) -> None:
    os.close(os.open(f"/proc/{at.first}/exe", os.O_RDONLY))


@attempt("EACCES")
def namespaces_of_process_one(at: Place) -> None:
    setns(os.open(f"/proc/{at.first}/ns/mnt", os.O_RDONLY), NEWNS)


@attempt("EPERM")
def namespaces_of_process_one_by_pidfd(at: Place) -> None:
    setns(os.pidfd_open(at.first), NEWNS)


@attempt("process 1 does not hear it")
def end_of_process_one(at: Place) -> None:
    """Its end would be that of the box, and of the namespaces' hold on what else is in them."""
    pid = at.first
    if not at.inside:
        pid = os.fork()
        if pid == 0:
            signal.pause()
    os.kill(pid, signal.SIGKILL)
    if at.inside:
        os.kill(pid, 0)
        raise HeldError("process 1 does not hear it")
    os.waitpid(pid, 0)


@attempt("each shows the box")
def roots_of_all_processes(at: Place) -> None:
    """Any one that is not the box's would do."""
    own = os.stat("/")
    if not at.inside:
        # Our own root is a directory here, as that of a box is; then others have another one.
        os.chroot(at.directory)
        os.chdir("/")
        own = os.stat("/")
        call("mount", b"proc", at_proc(), b"proc", 0, None)
    for name in filter(str.isdigit, os.listdir("/proc")):
        for link in ("root", "cwd"):
            try:
                seen = os.stat(f"/proc/{name}/{link}/")
            except OSError:
                continue
            if link == "root" and (seen.st_dev, seen.st_ino) != (own.st_dev, own.st_ino):
                return
    raise HeldError("each shows the box")


def at_proc() -> bytes:
    os.makedirs("/proc", exist_ok=True)
    return b"/proc"


@attempt("EINVAL", absent=("ENOPROTOOPT",))
def signal_to_pytest_by_its_socket(at: Place) -> None:
    with peer(at) as pidfd:
        syscall("pidfd_send_signal", pidfd, 0, 0, 0)


@attempt("EPERM", absent=("ENOPROTOOPT",))
def descriptor_taken_from_pytest(at: Place) -> None:
    with peer(at) as pidfd:
        os.close(syscall("pidfd_getfd", pidfd, 0, 0))


@attempt("EPERM", absent=("ENOPROTOOPT",))
def namespaces_of_pytest(at: Place) -> None:
    with peer(at) as pidfd:
        setns(pidfd, NEWNS)


@contextmanager
def peer(at: Place) -> Iterator[int]:
    """A pidfd of who made the socket that the test's reports go through: pytest."""
    if not at.inside:
        ours, _theirs = socket.socketpair()
        if os.fork() == 0:
            os._exit(0)
        yield struct.unpack("i", ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0]
        return
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if is_socket(fd):
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family == socket.AF_UNIX and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.append(struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4))[0])
    if not found:
        raise HeldError("there is no socket of pytest's")  # in a container
    assert len(found) == 1, found
    yield found[0]


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


@attempt("EPERM")
def parent_of_the_user_namespace(at: Place) -> None:
    ask_a_namespace(at, "user", NS_GET_PARENT)


@attempt("EPERM")
def parent_of_the_pid_namespace(at: Place) -> None:
    ask_a_namespace(at, "pid", NS_GET_PARENT)


def ask_a_namespace(at: Place, kind: str, question: int) -> None:
    """Ask for the parent of the box's namespace; outside, of a new one's."""
    if at.inside:
        os.close(fcntl.ioctl(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), question))
        return
    reader, writer = os.pipe()
    unshare(NEWPID)
    pid = os.fork()
    if pid == 0:
        if kind == "user":
            unshare(NEWUSER)
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    try:
        os.close(fcntl.ioctl(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), question))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# With the host's network there is none that the box is kept out of.
@attempt(none="EPERM")
def network_namespace_of_an_inherited_socket(at: Place) -> None:
    fd = fcntl.ioctl(at.fds["socket"], SIOCGSKNS)
    setns(fd, NEWNET)


def trace(pid: int) -> None:
    call("ptrace", PTRACE_SEIZE, pid, None, None)
    C.ptrace(PTRACE_DETACH, pid, None, None)


def peek(pid: int) -> None:
    """Read memory where there is none: EFAULT comes after the kernel has found our rights to be enough."""
    mine = ctypes.create_string_buffer(8)
    local, remote = struct.pack("=QQ", address_of(mine), 8), struct.pack("=QQ", 8, 8)
    try:
        call("process_vm_readv", pid, local, 1, remote, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def read_secret(pid: int) -> None:
    with open(f"/proc/{pid}/environ", "rb") as file:
        assert b"NSBOX_SECRET=" in file.read()
