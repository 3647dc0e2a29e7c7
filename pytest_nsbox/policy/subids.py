"""Subordinate ids: further ids that the system lets a user map into user namespaces. Source: subuid(5), subgid(5),
newuidmap(1).
"""

from __future__ import annotations


def name_of(uid: int, passwd: str) -> str | None:
    """Return the login name of `uid` in the text of /etc/passwd, or None."""
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(uid):
            return fields[0]
    return None


def find_range(text: str, name: str | None, uid: int) -> tuple[int, int] | None:
    """Return the largest range (first id, number of ids) that a text of /etc/subuid grants to the user, or None."""
    best: tuple[int, int] | None = None
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (name, str(uid)) and fields[1].isdecimal() and fields[2].isdecimal():
            found = (int(fields[1]), int(fields[2]))
            if found[1] > 0 and (best is None or found[1] > best[1]):
                best = found
    return best


def place_range(own: int, first: int, count: int) -> list[str]:
    """Return the arguments of newuidmap, after the pid, that map `own` to itself and ids from 0 up to a range of
    `count` ids from `first`.
    """
    below = min(own, count)
    rows = [(own, own, 1)]
    if below:
        rows.append((0, first, below))
    if count > below:
        rows.append((own + 1, first + below, count - below))
    return [str(number) for row in rows for number in row]
