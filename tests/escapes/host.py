"""The host's side: what attempts go for. All of it is made by the test, and gone after it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.capabilities import cgroup_version
from tests.escapes.attempt import USER, Place
from tests.escapes.system import AT_FDCWD, address_of, call, syscall
from tests.leftovers import cgroup_mounts, own_hierarchies

SESSION_KEY = "NSBOX_SESSION_KEY"
IMAGE_SIZE = 8 << 20
KEY_SPEC_SESSION_KEYRING = -3
KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_SETPERM = 1, 5
POSSESSOR_ALL, USER_ALL = 0x3F000000, 0x003F0000


@contextmanager
def made_host(directory: Path, shared: Path) -> Iterator[Place]:
    """Everything that a Place speaks of; `directory` is for what boxes do not share, `shared` for what they do."""
    with ExitStack() as stack:
        victims = [stack.enter_context(victim(user)) for user in (0, USER)]
        canary = directory / "canary"
        canary.write_text("safe")
        canary.chmod(0o644)
        device = stack.enter_context(loop_device(directory, shared))
        path, abstract, port = stack.enter_context(listeners(directory))
        keys = stack.enter_context(made_keys())
        yield Place(
            inside=False,
            victim=victims[0],
            user_victim=victims[1],
            canary=str(canary),
            directory=str(directory),
            shared=str(shared),
            device=str(directory / "disk") if device else "",
            shared_device=str(shared / "disk") if device else "",
            handles=(handle_of(canary), handle_of(directory)),
            cgroup_version=cgroup_version(),
            groups=stack.enter_context(made_groups(victims)),
            socket=path,
            abstract=abstract,
            port=port,
            address=own_address(),
            keys=keys,
        )


@contextmanager
def victim(user: int) -> Iterator[int]:
    process = subprocess.Popen(
        ["sleep", "300"], user=user, group=user, extra_groups=[], env={**os.environ, "NSBOX_SECRET": "told"}
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def loop_device(*places: Path) -> Iterator[bool]:
    """An ext4 image on a loop device, and nodes of that device named disk in `places`."""
    image = places[0] / "image"
    with open(image, "wb") as file:
        file.truncate(IMAGE_SIZE)
    try:
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True, timeout=60)
        found = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        yield False
        return
    try:
        number = os.stat(found).st_rdev
        for place in places:
            os.mknod(place / "disk", 0o060600, number)
        yield True
    finally:
        for place in places:
            (place / "disk").unlink(missing_ok=True)
        subprocess.run(["losetup", "--detach", found], check=True, timeout=60)


@contextmanager
def listeners(directory: Path) -> Iterator[tuple[str, str, int]]:
    """The kernel completes connections to these by itself; nobody accepts them."""
    path, abstract = str(directory / "socket"), f"nsbox-escape-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as unnamed,
        socket.create_server(("", 0)) as tcp,
    ):
        named.bind(path)
        unnamed.bind("\0" + abstract)
        for server in (named, unnamed, tcp):
            server.listen(100)
        yield path, abstract, tcp.getsockname()[1]


def own_address() -> str:
    """Our address on the way to elsewhere; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(sock.getsockname()[0])


def handle_of(path: Path) -> tuple[int, str]:
    """Type and bytes of the file's handle, name_to_handle_at(2)."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.create_string_buffer(8)
    call("name_to_handle_at", AT_FDCWD, str(path).encode(), address_of(handle), address_of(mount_id), 0)
    size, kind = struct.unpack_from("=Ii", handle, 0)
    return kind, handle.raw[8 : 8 + size].hex()


@contextmanager
def made_groups(victims: list[int]) -> Iterator[dict[str, str]]:
    """A group for limits, and groups of two owners with a process each, in hierarchies that can stop or end it."""
    name = f"nsbox-escape-{os.getpid()}"
    made: list[Path] = []
    found: dict[str, str] = {}
    tops = {name: Path(point) for point, _, options in cgroup_mounts() for name in options}
    own = {hierarchy.point: hierarchy.path for hierarchy in own_hierarchies()}
    if cgroup_version() == 2:
        # Below the group of this process only where it delegates; the root always does.
        tops["memory"] = tops[""]
    try:
        for key, hierarchy in (("memory", "memory"), ("freezer", "freezer"), ("unified", "")):
            if hierarchy not in tops or (key == "unified" and not (tops[""] / "cgroup.stat").exists()):
                continue
            # Where the boxes of this run see most: below the group that this process is in.
            top = tops[hierarchy] / (own.get(str(tops[hierarchy]), "/").strip("/") if key != "memory" else "")
            group = top / f"{name}-{key}"
            group.mkdir()
            made.append(group)
            found[key] = str(group)
            if key == "memory":
                continue
            for whose, uid, pid in zip(("root", "user"), (0, USER), victims, strict=True):
                (group / whose).mkdir()
                made.append(group / whose)
                for path in (group / whose, *(group / whose).iterdir()):
                    os.chown(path, uid, uid)
                (group / whose / "cgroup.procs").write_text(str(pid))
            if key == "unified" and not (group / "root" / "cgroup.kill").exists():
                del found[key]
        yield found
    finally:
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for group in reversed(made):
            remove_group(group)


def remove_group(group: Path) -> None:
    """Once its processes are gone, which takes a moment."""
    frozen = group / "freezer.state"
    if frozen.exists():
        frozen.write_text("THAWED")
    for _ in range(200):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return
    group.rmdir()


@contextmanager
def made_keys() -> Iterator[tuple[int, ...]]:
    """A key of root's and one of the user's. None where the kernel has no keyrings."""
    with ExitStack() as stack:
        yield tuple(filter(None, (stack.enter_context(held_key(user)) for user in (0, USER))))


@contextmanager
def held_key(user: int) -> Iterator[int]:
    """A key lives as long as the process that holds it."""
    command = [sys.executable, "-c", "from tests.escapes.host import hold_a_key; hold_a_key()"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "NSBOX_KEY_OWNER": str(user)},
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        yield int(holder.stdout.readline())
        holder.stdin.close()


def hold_a_key() -> None:
    """Tell the number of a key that its owner may use from anywhere, 0 if there are no keys, and keep it until told."""
    user = int(os.environ["NSBOX_KEY_OWNER"])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        key = log_in(USER_ALL)
    except OSError:
        key = 0
    sys.stdout.write(f"{key}\n")
    sys.stdout.flush()
    sys.stdin.read()


def log_in(permissions: int = 0) -> int:
    """Give this process, and what it starts, a session keyring as pam_keyinit(8) does; return a key in it.

    Who possesses the keyring may use the key; `permissions` for others.
    """
    syscall("keyctl", KEYCTL_JOIN_SESSION_KEYRING, 0)
    key = syscall("add_key", b"user", b"nsbox-session", b"secret", 6, KEY_SPEC_SESSION_KEYRING)
    syscall("keyctl", KEYCTL_SETPERM, key, POSSESSOR_ALL | permissions)
    return key


def run_logged_in(command: list[str]) -> None:
    """Become `command`, with the key's number in its environment."""
    with suppress(OSError):
        os.environ[SESSION_KEY] = str(log_in())
    os.execv(command[0], command)


def copy_suite(directory: Path) -> None:
    shutil.copy(Path(__file__).parent / "suite.py", directory / "test_attempts.py")
