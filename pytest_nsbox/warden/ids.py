"""Whose ids boxes have: the map of their user namespaces, and namespaces that idmapped mounts refer to.

Shifted: root in a box is an id on the host that nothing else uses, and host id 0 has no name in it; so plain ownership
by root opens nothing. Nested: inside a box (or another container) only its own ids exist, and a box in it has the same.
Rootless: an ordinary user is in a box who it is outside, or who `user=` names; files of the host that belong to others
look as nobody's (see `warden.rootless`).
"""

from __future__ import annotations

import os

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.policy.users import HIGHEST_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.doors import Doors

# Nothing else uses this id: subordinate ids (subuid(5)) and systemd's dynamic ranges end far below, and the last id of
# all, -1, is none.
SHIFTED_ROOT = HIGHEST_ID + 1
SHIFT_MAP = f"0 {SHIFTED_ROOT} 1\n1 1 {SHIFTED_ROOT - 1}\n"
# Overlays take idmapped layers since this version of Linux; before, a mount can be idmapped and none put on it.
SHIFTING = (5, 19)
_ALL = ((0, 0, 4294967295),)


def find_mode() -> str:
    """Return "shifted", "nested" or "rootless", by who we are."""
    if os.geteuid() != 0 or not process.has_capability(process.CAP_SYS_ADMIN):
        return "rootless"
    return "shifted" if namespaces.read_id_map() == _ALL else "nested"


def kernel_shifts() -> bool:
    """Say if this kernel is new enough for boxes whose root is another id than ours."""
    return process.kernel_version() >= SHIFTING


def box_maps(mode: str, user: tuple[int, int] | None = None) -> tuple[str, str]:
    """Return what is written to uid_map and gid_map of a box's user namespace.

    user  rootless: (uid, gid) that our own ids are shown as
    """
    if mode == "shifted":
        return SHIFT_MAP, SHIFT_MAP
    if user is None:
        return _identity("uid_map"), _identity("gid_map")
    uid, gid = user
    return (
        rootless_map(namespaces.read_id_map(), os.geteuid(), uid),
        rootless_map(namespaces.read_id_map(name="gid_map"), os.getegid(), gid),
    )


def _identity(name: str) -> str:
    rows = namespaces.read_id_map(name=name)
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in rows)


def rootless_map(ours: tuple[tuple[int, int, int], ...], own: int, shown: int) -> str:
    """Return an id map that shows id `own` as `shown`, and the other way round if we have both; `ours` is our own map.

    All others that we have stay what they are.
    """
    rows = [(shown, own, 1)]
    if shown != own and any(first <= shown < first + count for first, _, count in ours):
        rows.append((own, shown, 1))
    low, high = sorted((own, shown))
    for first, _, count in ours:
        for start, end in ((0, low), (low + 1, high), (high + 1, 1 << 32)):
            begin, stop = max(start, first), min(end, first + count)
            if begin < stop:
                rows.append((begin, begin, stop - begin))
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows)


def swap_map(number: int) -> str:
    """Return an id map that shows 0 as `number`, and `number` as root of a shifted box."""
    if number == 0:
        return SHIFT_MAP
    rows = [
        (0, number, 1),
        (1, 1, number - 1),
        (number, SHIFTED_ROOT, 1),
        (number + 1, number + 1, SHIFTED_ROOT - 1 - number),
    ]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count)


class UserNamespaces:
    """User namespaces that nobody lives in, made at first use: idmapped mounts take their maps from them."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._fds: dict[tuple[int, int] | None, int] = {}

    def get(self, user: tuple[int, int] | None) -> int:
        """Return a descriptor of one with the boxes' own map, or of one that swaps root and `user` (uid, gid)."""
        if user not in self._fds:
            maps = (SHIFT_MAP, SHIFT_MAP) if user is None else (swap_map(user[0]), swap_map(user[1]))
            self._fds[user] = self._make(*maps)
        return self._fds[user]

    def _make(self, uid_map: str, gid_map: str) -> int:
        reader, writer = os.pipe()
        try:
            pid, pidfd = self._doors.clone3(namespaces.NEWUSER)
            if pid == 0:
                try:
                    os.close(writer)
                    os.read(reader, 1)
                finally:
                    os._exit(0)
            try:
                self._doors.write_maps(pid, uid_map, gid_map)
                return self._doors.open_namespace(pid, "user")
            finally:
                process.kill(pidfd)
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                os.close(pidfd)
        finally:
            os.close(writer)
            os.close(reader)

    def close(self) -> None:
        """Let go of all."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
