"""What an ordinary user's boxes need of the host besides mounts.

**Frames** stand for directories that cannot be shown in one piece.

Mounts that came from a more privileged mount namespace are locked together (mount_namespaces(7)): an ordinary user can
neither clone a directory that one of them covers a part of nor have an overlay of it. So such a directory is rebuilt,
once a session: its subdirectories become pieces, each shown by itself; symbolic links and small files are copied; a
large file is a piece, read-only.

**Passages**: an overlay cannot copy up a directory whose owner or group has no name in our user namespace (EOVERFLOW),
nor anything below it. Where we may write in such a directory, the writable layer has one of that name from the start.
"""

from __future__ import annotations

import os
import stat

from pytest_nsbox.kernel import files
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.hostmounts import is_within
from pytest_nsbox.policy.plan import OWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SMALL = 1 << 20  # bytes
# Each piece costs a mount, or an overlay, in each box.
_MOST_PIECES = 250


# How deep below an overlay's top passages are looked for, and at how many directories: /var/tmp, /var/lib/<ours>.
_DEPTH = 2
_MOST_LOOKED_AT = 4000
_NOBODY = 65534


class Piece:
    """A part of the host, at `target`: cloned from there or, if it has a `frame`, from that directory.

    writable  whether a copy-on-write layer goes on top
    """

    __slots__ = ("frame", "target", "writable")

    def __init__(self, target: str, *, writable: bool, frame: str | None = None) -> None:
        self.target = target
        self.writable = writable
        self.frame = frame


def take_apart(directory: str, frames: str, mount_points: Iterable[str]) -> list[Piece]:
    """Return the pieces of `directory`, outermost first; what is rebuilt lies in new directories frames/<n>.

    mount_points  of the host: those are left as empty places. Raises BoxFailed if there are too many pieces.
    """
    taker = _Taker(frames, frozenset(mount_points))
    taker.take(directory)
    if len(taker.pieces) > _MOST_PIECES:
        raise BoxFailed(
            f"{directory} lies under mounts that an ordinary user cannot take off, and has too many directories "
            f"({len(taker.pieces)}) to show one by one: run pytest as root, or unmount what is mounted below it"
        )
    return taker.pieces


class _Taker:
    def __init__(self, frames: str, mount_points: frozenset[str]) -> None:
        self.frames = frames
        self.mount_points = mount_points
        self.pieces: list[Piece] = []

    def take(self, directory: str) -> None:
        frame = f"{self.frames}/{len(os.listdir(self.frames))}"
        os.mkdir(frame)
        self.pieces.append(Piece(directory, writable=True, frame=frame))
        try:
            with os.scandir(directory) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except PermissionError:
            entries = []
        for entry in entries:
            try:
                self._take_entry(entry, f"{frame}/{entry.name}")
            except FileNotFoundError:
                # It went while we looked.
                continue
        os.chmod(frame, mode_for_us(directory))

    def _take_entry(self, entry: os.DirEntry[str], place: str) -> None:
        kind = entry.stat(follow_symlinks=False).st_mode
        if entry.path in self.mount_points or entry.path in OWN:
            (os.mkdir if stat.S_ISDIR(kind) else files.make_file)(place)
        elif stat.S_ISLNK(kind):
            os.symlink(os.readlink(entry.path), place)
        elif stat.S_ISDIR(kind):
            os.mkdir(place)
            if any(is_within(point, entry.path) for point in self.mount_points):
                self.take(entry.path)
            elif os.access(entry.path, os.X_OK) and not _is_empty(entry.path):
                self.pieces.append(Piece(entry.path, writable=True))
            os.chmod(place, mode_for_us(entry.path))
        elif stat.S_ISREG(kind):
            self._take_file(entry, place)
        # Sockets are bound into each box; devices and pipes of the host are none of its business.

    def _take_file(self, entry: os.DirEntry[str], place: str) -> None:
        at = entry.stat(follow_symlinks=False)
        files.make_file(place)
        if at.st_size > _SMALL:
            self.pieces.append(Piece(entry.path, writable=False))
            return
        try:
            with open(entry.path, "rb") as source, open(place, "wb") as copy:
                copy.write(source.read())
        except PermissionError:
            os.chmod(place, 0)
            return
        os.chmod(place, mode_for_us(entry.path))
        os.utime(place, ns=(at.st_atime_ns, at.st_mtime_ns))


def mode_for_us(path: str) -> int:
    """Return the mode with which a copy of `path` that is ours lets us do what we may do with it."""
    at = os.stat(path)
    mode = stat.S_IMODE(at.st_mode)
    if at.st_uid == os.geteuid():
        return mode
    own = sum(bit for bit in (os.R_OK, os.W_OK, os.X_OK) if os.access(path, bit))
    return mode & 0o1077 | own << 6


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except PermissionError:
        return False


def find_passages(top: str, places: Iterable[str], others: frozenset[str]) -> dict[str, int]:
    """Return {path relative to `top`: mode} of the directories that an overlay of `top` must have from the start,
    outermost first.

    places  directories that tests are likely to write in, wherever they are
    others  what is mounted on its own
    """
    found: dict[str, int] = {}
    for place in places:
        if place != top and is_within(place, top) and not _is_covered(place, top, others):
            _add_chain(found, top, place)
    left = _MOST_LOOKED_AT
    waiting = [(top, 0)]
    while waiting and left > 0:
        directory, depth = waiting.pop(0)
        for path in _subdirectories(directory):
            left -= 1
            if path in others:
                continue
            if os.access(path, os.W_OK | os.X_OK):
                if depth > 0 or _is_nameless(path):
                    _add_chain(found, top, path)
            elif depth + 1 < _DEPTH:
                waiting.append((path, depth + 1))
    return dict(sorted(found.items()))


def _is_covered(path: str, top: str, others: frozenset[str]) -> bool:
    return any(other != top and is_within(other, top) and is_within(path, other) for other in others)


def _add_chain(found: dict[str, int], top: str, place: str) -> None:
    parts = os.path.relpath(place, top).split("/")
    for depth in range(1, len(parts) + 1):
        name = "/".join(parts[:depth])
        path = os.path.join(top, name)
        if os.path.islink(path) or not os.path.isdir(path):
            return
        found[name] = mode_for_us(path)


def _is_nameless(path: str) -> bool:
    at = os.lstat(path)
    return _NOBODY in (at.st_uid, at.st_gid)


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
