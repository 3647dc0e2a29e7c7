"""Who `user=` is, by the box's own /etc/passwd and /etc/group. Source: passwd(5), group(5)."""

from __future__ import annotations

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.record import record


@record
class User:
    """Numeric ids, supplementary groups, and the home directory ("/" if the user has no entry)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


# The next one is what root of a box is on the host.
HIGHEST_ID = 4_294_899_999


def find_user(wanted: str, passwd: str, group: str) -> User:
    """Return the user of `name`, `uid`, `name:group` or `uid:gid`, as Docker's --user takes them. Raises BoxFailed if
    there is none.

    A number needs no entry; without a group it has that of its entry, or 0.
    """
    name, colon, group_name = wanted.partition(":")
    entry = next((row for row in _rows(passwd, 6) if row[0] == name or (name.isdecimal() and row[2] == name)), None)
    if entry is None and not name.isdecimal():
        raise BoxFailed(f"user: no {name!r} in the box's /etc/passwd")
    uid = int(entry[2]) if entry else int(name)
    groups = _rows(group, 4)
    if colon:
        gid = _group(group_name, groups)
        return User(uid, gid, (gid,), entry[5] if entry else "/")
    gid = int(entry[3]) if entry else 0
    also = [int(row[2]) for row in groups if entry and entry[0] in row[3].split(",")]
    return User(uid, gid, tuple(dict.fromkeys((gid, *also))), entry[5] if entry else "/")


def _group(wanted: str, groups: list[list[str]]) -> int:
    if wanted.isdecimal():
        return int(wanted)
    for row in groups:
        if row[0] == wanted:
            return int(row[2])
    raise BoxFailed(f"user: no group {wanted!r} in the box's /etc/group")


def _rows(text: str, fields: int) -> list[list[str]]:
    """Return the lines that have as many fields as they should and numbers where they should."""
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= fields and row[2].isdecimal() and (fields < 6 or row[3].isdecimal())]
