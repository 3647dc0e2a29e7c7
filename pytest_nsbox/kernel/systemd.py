"""The door to systemd, which owns the cgroups of a machine that it manages: it gives us a scope to do as we like in.

A *scope* is a unit for processes that systemd did not start; with ``Delegate=yes`` its cgroup, and what is made below
it, is left to us. systemd removes it when the last process in it has ended. The manager is asked over D-Bus by
busctl(1), which every machine with systemd has; root asks the system's manager, an ordinary user their own.

Sources: systemd.scope(5), org.freedesktop.systemd1(5), https://systemd.io/CGROUP_DELEGATION
"""

from __future__ import annotations

import errno
import os
import time

from pytest_nsbox.kernel import cgroup, cgroup_v2
from pytest_nsbox.kernel.cgroup_tree import Group
from pytest_nsbox.policy.errors import BoxFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 8.0  # seconds for the manager to do what we asked
_PATH = "/usr/bin:/bin:/usr/local/bin:/run/current-system/sw/bin"
_MANAGER = "org.freedesktop.systemd1"
_OBJECT = "/org/freedesktop/systemd1"
_LARGEST_ANSWER = 4096


def take_scope(parent: str | None, name: str, user: Sequence[int]) -> str:
    """Get a scope `name` for ourselves where boxes need one; return why that failed, with the fix, or "".

    parent  the cgroup parent that the user named, who then wants no scope
    user    an ordinary user's processes whose children will go into groups in the scope: they must be in it themselves,
            for only root may move a process from elsewhere
    """
    if parent is not None or not cgroup.systemd_is_booted() or not is_wanted():
        return ""
    try:
        enter_scope(name, (os.getpid(), *(user if os.geteuid() else ())))
    except BoxFailed as error:
        return str(error)
    return ""


def offered() -> tuple[str, ...]:
    """Return the controllers that the manager can hand to us; none where there is none to ask."""
    try:
        _address()
    except BoxFailed:
        return ()
    unified = cgroup.unified(cgroup.find_mounts())
    if unified is None:
        return ()
    uid = os.geteuid()
    # What a user's manager was given itself, it can give.
    group = f"{unified.point}/user.slice/user-{uid}.slice/user@{uid}.service" if uid else unified.point
    return tuple(sorted((Group(group).read("cgroup.controllers") or "").split()))


def has_scope() -> bool:
    """Say whether our own group is a scope that was made for boxes."""
    return any("/nsbox-" in line and ".scope" in line for line in _own_groups().splitlines())


def is_wanted() -> bool:
    """Say whether boxes need a scope here: on cgroup v2, where our own group is not ours to make groups in."""
    mounts = cgroup.find_mounts()
    unified = cgroup.unified(mounts)
    path = unified.own_path() if unified is not None else None
    # On v1 root may make groups anywhere, and no user may be given any.
    if path is None or any({"memory", "pids"} & mount.controllers for mount in mounts):
        return False
    group = Group(cgroup_v2.own_group(path))
    # The real root, which has no type, passes controllers on whoever lives in it.
    return not cgroup_v2.is_delegated(group) and (os.geteuid() != 0 or group.read("cgroup.type") is not None)


def enter_scope(name: str, pids: Sequence[int]) -> None:
    """Have the manager move the processes `pids`, ourselves among them, into a new delegated scope; wait until we are
    in it. Raises BoxFailed, with the fix.

    name  of the unit, with ".scope"
    """
    manager = _address()
    call = [*manager, "call", _MANAGER, _OBJECT, f"{_MANAGER}.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"]
    properties = {
        "Description": ("s", "boxes of pytest-nsbox"),
        "Delegate": ("b", "true"),
        # Whatever became of it, systemd shall forget it.
        "CollectMode": ("s", "inactive-or-failed"),
        "PIDs": ("au", str(len(pids)), *map(str, pids)),
    }
    arguments = [word for key, value in properties.items() for word in (key, *value)]
    status, text = _run([*call, name, "fail", str(len(properties)), *arguments, "0"])
    if status != 0:
        raise BoxFailed(f"systemd gives no scope: {text}; {_advice()}")
    _wait(manager, name)


def _wait(manager: Sequence[str], name: str) -> None:
    """Wait for the manager's job: we are in the scope then."""
    unit = f"{_OBJECT}/unit/" + "".join(char if char.isalnum() else f"_{ord(char):02x}" for char in name)
    state = [*manager, "get-property", _MANAGER, unit, f"{_MANAGER}.Unit", "ActiveState"]
    deadline = time.monotonic() + PATIENCE
    pause, asked = 0.001, time.monotonic()
    while f"/{name}" not in _own_groups():
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
        if time.monotonic() < asked + 1.0:
            continue
        asked = time.monotonic()
        status, text = _run(state)
        # A scope that could not be started is forgotten at once.
        if status != 0 or '"failed"' in text or '"inactive"' in text or asked > deadline:
            raise BoxFailed(f"systemd could not move us into the scope {name}: {text}; journalctl -n 20 tells more")


def _own_groups() -> str:
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _address() -> list[str]:
    """Return the beginning of a command line that asks the manager that is responsible for us."""
    program = next((f"{place}/busctl" for place in _PATH.split(":") if os.access(f"{place}/busctl", os.X_OK)), None)
    if program is None:
        raise BoxFailed(f"systemd cannot be asked for a scope: there is no program busctl; {_advice()}")
    if os.geteuid() == 0:
        return [program, "--system"]
    # Where `su` or a timer started us there is no variable that tells it.
    bus = f"/run/user/{os.geteuid()}/bus"
    if not os.path.exists(bus):
        raise BoxFailed(f"user id {os.geteuid()} has no running systemd manager with a bus ({bus}); {_advice()}")
    return [program, f"--address=unix:path={bus}"]


def _advice() -> str:
    """Return the one command that gives us a group of our own without the manager that we could not ask."""
    if os.geteuid() == 0:
        return "systemd-run --scope -p Delegate=yes pytest …, or pytest --sandbox-cgroup-parent=/nsbox"
    return (
        f"sudo systemd-run --pty --same-dir --wait --collect -p Delegate=yes --uid={os.geteuid()} pytest …, "
        f"or once: sudo loginctl enable-linger {os.geteuid()} (package dbus-user-session)"
    )


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a program; return its status and the last line of all that it said."""
    reader, writer = os.pipe()
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, writer, 2),
        ]
        try:
            pid = os.posix_spawn(command[0], list(command), {"PATH": _PATH, "LC_ALL": "C.UTF-8"}, file_actions=actions)
        except OSError as error:
            return 127, f"{command[0]}: {os.strerror(error.errno or errno.EIO)}"
        os.close(writer)
        writer = -1
        text = b""
        while chunk := os.read(reader, _LARGEST_ANSWER):
            text += chunk
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    lines = text.decode(errors="replace").strip().splitlines()
    return os.waitstatus_to_exitcode(status), lines[-1] if lines else "no answer"
