"""Things with names that a test makes, and how the host would see them."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.escapes.attempt import mounted
from tests.escapes.host import KEY_SPEC_SESSION_KEYRING
from tests.escapes.system import mount, syscall

NEWUTS, NEWIPC = 0x4000000, 0x8000000
IPC_CREAT = 0o1000

Make = TypeVar("Make", bound=Callable[[str], object])


@dataclass(frozen=True)
class Trace:
    """`make(tag)` leaves something that bears the tag, and returns what must be kept as long as it is to be seen.

    seen     asks the machine of whoever calls
    remove   takes away what does not go with its process or namespaces
    shown    whether the host may see it as long as the box lives
    net      whether the box needs a network of its own to keep it in
    needs    a path that is there if the kernel knows such things
    """

    name: str
    make: Callable[[str], object]
    seen: Callable[[str], bool]
    remove: Callable[[str], None]
    shown: bool
    net: bool
    needs: str


TRACES: dict[str, Trace] = {}


def trace(
    seen: Callable[[str], bool],
    remove: Callable[[str], None] = lambda tag: None,
    *,
    shown: bool = False,
    net: bool = False,
    needs: str = "/",
) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        TRACES[make.__name__] = Trace(make.__name__, make, seen, remove, shown, net, needs)
        return make

    return register


def number(tag: str) -> int:
    """A key for System V objects."""
    return int(tag.rpartition("-")[2], 16)


def in_file(path: str) -> Callable[[str], bool]:
    return lambda tag: tag in Path(path).read_text(encoding="utf-8", errors="replace")


def in_table(path: str) -> Callable[[str], bool]:
    """The first column of these files is the key."""
    return lambda tag: any(line.split()[0] == str(number(tag)) for line in Path(path).read_text().splitlines())


def path_exists(pattern: str) -> Callable[[str], bool]:
    return lambda tag: os.path.lexists(pattern.format(tag))


def unlink(pattern: str) -> Callable[[str], None]:
    return lambda tag: os.unlink(pattern.format(tag))


@trace(path_exists("/dev/shm/{}"), unlink("/dev/shm/{}"))
def shared_memory(tag: str) -> object:
    return real_time("shm_open", tag)


def queue_seen(tag: str) -> bool:
    # The file system of the caller's ipc namespace, wherever that is mounted.
    with mounted("none", "mqueue") as place:
        return tag in os.listdir(place)


@trace(queue_seen)
def message_queue(tag: str) -> object:
    return real_time("mq_open", tag)


def real_time(call: str, tag: str) -> int:
    library = ctypes.CDLL("librt.so.1", use_errno=True)
    made: int = library[call](f"/{tag}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
    assert made >= 0, os.strerror(ctypes.get_errno())
    return made


def system_v(call: str, *arguments: int) -> None:
    assert getattr(ctypes.CDLL(None), call)(*arguments) >= 0


@trace(in_table("/proc/sysvipc/shm"))
def system_v_memory(tag: str) -> None:
    system_v("shmget", number(tag), 4096, IPC_CREAT | 0o600)


@trace(in_table("/proc/sysvipc/sem"))
def system_v_semaphore(tag: str) -> None:
    system_v("semget", number(tag), 1, IPC_CREAT | 0o600)


@trace(in_table("/proc/sysvipc/msg"))
def system_v_queue(tag: str) -> None:
    system_v("msgget", number(tag), IPC_CREAT | 0o600)


@trace(lambda tag: socket.gethostname() == tag)
def hostname(tag: str) -> None:
    socket.sethostname(tag)


@trace(in_file("/proc/sys/kernel/domainname"))
def domain_name(tag: str) -> object:
    return ctypes.CDLL(None).setdomainname(tag.encode(), len(tag))


@trace(in_file("/proc/self/mountinfo"))
def mount_point(tag: str) -> None:
    mount(tag, "/mnt", "tmpfs")


@trace(path_exists("/tmp/{}"), unlink("/tmp/{}"))
def temporary_file(tag: str) -> object:
    return Path(f"/tmp/{tag}").write_text("made")


@trace(path_exists("/etc/{}"), unlink("/etc/{}"))
def file_of_the_system(tag: str) -> object:
    return Path(f"/etc/{tag}").write_text("made")


@trace(path_exists("/dev/{}"), unlink("/dev/{}"))
def file_among_devices(tag: str) -> None:
    os.mkfifo(f"/dev/{tag}")


@trace(in_file("/proc/net/unix"), net=True)
def abstract_socket(tag: str) -> object:
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0" + tag)
    server.listen()
    return server


@trace(lambda tag: listens(number(tag)), net=True)
def listener(tag: str) -> object:
    return socket.create_server(("127.0.0.1", port_of(number(tag))))


def port_of(key: int) -> int:
    return 20000 + key % 10000


def listens(key: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port_of(key))) == 0


@trace(in_file("/proc/keys"), needs="/proc/keys")
def key(tag: str) -> object:
    return syscall("add_key", b"user", tag.encode(), b"x", 1, KEY_SPEC_SESSION_KEYRING)


def group_seen(tag: str) -> bool:
    return any(tag in names for _, names, _ in os.walk("/sys/fs/cgroup"))


def group_path(tag: str) -> Path:
    top = Path("/sys/fs/cgroup/memory")
    return (top if top.is_dir() else top.parent) / tag


# It lies in the box's own group, which is the host's to see.
@trace(group_seen, lambda tag: group_path(tag).rmdir(), shown=True)
def control_group(tag: str) -> None:
    group_path(tag).mkdir()
