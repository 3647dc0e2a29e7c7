"""The warden of an ordinary user (or of root without its powers): a user namespace in which it may make mounts and
namespaces. Source: user_namespaces(7), newuidmap(1), subuid(5).

Who we are stays the same in it. If /etc/subuid and /etc/subgid grant us ranges of further ids and newuidmap and
newgidmap are installed, the other ids of the namespace are taken from there; without, there is our own id alone.
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel import namespaces
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.subids import find_range, name_of, place_range
from pytest_nsbox.real import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.warden.doors import Doors

_TOOLS = ("newuidmap", "newgidmap")
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/run/wrappers/bin"


def find_places() -> tuple[str, str]:
    """Return the directory that pytest was started in, and our home; "" for one that does not exist."""
    try:
        here = os.getcwd()
    except OSError:
        # Removed under us.
        here = ""
    rows = (line.split(":") for line in text_of("/etc/passwd").splitlines())
    home = next((row[5] for row in rows if len(row) > 5 and row[2] == str(os.geteuid())), "")
    return here, os.path.realpath(home) if home and os.path.isdir(home) else ""


def enter(doors: Doors) -> None:
    """Enter a user namespace and a mount namespace of our own. Raises BoxFailed where that is forbidden."""
    uid, gid = os.geteuid(), os.getegid()
    commands = _commands(uid, gid)
    # Another process writes the maps of ranges: it must belong to the namespace above.
    helper, go = _start_helper(commands) if commands else (-1, -1)
    try:
        try:
            doors.unshare(namespaces.NEWUSER | namespaces.NEWNS)
        except KernelError as error:
            raise BoxFailed(
                f"boxes without root's power over the machine need user namespaces: {error}; pytest --sandbox-doctor "
                "tells the fix"
            ) from None
        if helper >= 0:
            os.write(go, b"g")
    finally:
        if go >= 0:
            os.close(go)
        if helper >= 0:
            os.waitpid(helper, 0)
    try:
        if not namespaces.read_id_map(name="uid_map"):
            namespaces.write_proc("/proc/self/uid_map", f"{uid} {uid} 1\n")
        if not namespaces.read_id_map(name="gid_map"):
            # Without newgidmap's word the kernel wants this first: who may drop a group could gain rights by it.
            namespaces.write_proc("/proc/self/setgroups", "deny")
            namespaces.write_proc("/proc/self/gid_map", f"{gid} {gid} 1\n")
    except KernelError as error:
        raise BoxFailed(f"{error}; pytest --sandbox-doctor tells the fix") from None


class Outsider:
    """A process of ours that stays outside when root enters a user namespace: what is mounted there at the beginning
    cannot be unmounted in it, and so the session's directory not be removed.

    It writes the maps of our user namespace, and in the end it removes the directory.
    """

    def __init__(self, doors: Doors, remove: Callable[[], None]) -> None:
        self._doors = doors
        reader, self._asks = os.pipe()
        self._hears, writer = os.pipe()
        warden = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                doors.close_all_but((reader, writer))
                self._live(warden, reader, writer, remove)
            finally:
                os._exit(0)
        os.close(reader)
        os.close(writer)

    @staticmethod
    def _live(warden: int, reader: int, writer: int, remove: Callable[[], None]) -> None:
        # Nothing to read: the warden has died. The next session finds the directory and what belongs to it.
        while asked := os.read(reader, 1):
            try:
                if asked == b"r":
                    remove()
                else:
                    # All but the last: a box sees by its map that it is in one.
                    everyone = f"0 0 {(1 << 32) - 2}\n"
                    namespaces.write_maps(warden, everyone, everyone)
                answer = ""
            except (KernelError, OSError) as error:
                answer = str(error)
            os.write(writer, answer.encode(errors="replace") + b"\n")

    def enter(self) -> None:
        """Enter a user namespace and a mount namespace of our own in which every id is what it is outside.

        Raises KernelError or BoxFailed.
        """
        self._doors.unshare(namespaces.NEWUSER | namespaces.NEWNS)
        if problem := self._ask(b"m"):
            raise BoxFailed(f"{problem}; pytest --sandbox-doctor tells the fix")

    def remove(self) -> None:
        """Have it remove the directory, and end. Raises BoxFailed."""
        problem = self._ask(b"r")
        os.close(self._asks)
        os.close(self._hears)
        os.waitpid(self._pid, 0)
        if problem:
            raise BoxFailed(problem)

    def _ask(self, what: bytes) -> str:
        """Have it do `what`; return why it could not, or ""."""
        os.write(self._asks, what)
        # An error is one line, and shorter than what a pipe takes at once.
        return os.read(self._hears, 4096).decode().strip()


def _commands(uid: int, gid: int) -> list[list[str]]:
    """Return the command lines that give this process its ranges of ids; none if it has none."""
    name = name_of(uid, text_of("/etc/passwd"))
    commands = []
    for tool, file, own in zip(_TOOLS, ("/etc/subuid", "/etc/subgid"), (uid, gid), strict=True):
        path = next((f"{place}/{tool}" for place in _PATH.split(":") if os.access(f"{place}/{tool}", os.X_OK)), None)
        found = find_range(text_of(file), name, uid)
        if path is None or found is None:
            return []
        commands.append([path, str(os.getpid()), *place_range(own, *found)])
    return commands


def _start_helper(commands: list[list[str]]) -> tuple[int, int]:
    """Start a process that runs `commands` once something is written to the descriptor; return (pid, descriptor)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writer)
            if os.read(reader, 1):
                null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
                for command in commands:
                    os.waitpid(os.posix_spawn(command[0], command, {}, file_actions=null), 0)
        finally:
            os._exit(0)
    os.close(reader)
    return pid, writer
