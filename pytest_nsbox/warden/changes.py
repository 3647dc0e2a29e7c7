"""What a box changed in its root, read from the writable layers of its overlays. Source:
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat

from pytest_nsbox.kernel import files
from pytest_nsbox.policy.errors import BoxFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_nsbox.warden.tree import Tree

    Change = tuple[str, str]
    Listing = dict[str, tuple[int, ...]]

# Characters of all paths together.
_MOST = 1 << 26
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_REDIRECT = ("trusted.overlay.redirect", "user.overlay.redirect")


class Layer:
    """The writable layer of one overlay of a tree: what is changed below `target`, over the directory `lower`, is in
    `upper`.
    """

    __slots__ = ("_begun", "_path", "lower", "target")

    def __init__(self, lower: str, target: str, path: str) -> None:
        self.lower = lower
        self.target = target
        self._path = path
        self._begun: Listing = {}

    @property
    def upper(self) -> str:
        return f"{self._path}/upper"

    def begin(self) -> None:
        """Remember it as it is now."""
        self._begun = dict(self._entries())

    def is_as_begun(self) -> bool:
        """Say if nothing was written to it. What is new ends the search: it may be deeper than any path."""
        known = 0
        for name, status in self._entries():
            if self._begun.get(name) != status:
                return False
            known += 1
        return known == len(self._begun)

    def _entries(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield all that is in it, and whatever would show a change; of its top, only what an empty directory
        can have.
        """
        upper = self.upper
        top = os.lstat(upper)
        yield "", (top.st_mode, top.st_uid, top.st_gid, len(os.listxattr(upper)))
        # Hard links that were copied up leave a trace there (where the kernel lets us have an index).
        index = os.path.join(self._path, "work", "index")
        yield "index", (len(os.listdir(index)) if os.path.isdir(index) else 0,)
        waiting = [(upper, "")]
        while waiting:
            directory, shown = waiting.pop()
            with os.scandir(directory) as entries:
                for entry in entries:
                    at = entry.stat(follow_symlinks=False)
                    path = f"{shown}/{entry.name}"
                    yield path, (at.st_mode, at.st_uid, at.st_gid, at.st_ctime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, path))


def list_devices(devices: int) -> Listing:
    """Return what is in a /dev."""
    with os.scandir(devices) as entries:
        found = {entry.name: _words(entry) for entry in entries}
    for name, words in found.items():
        if stat.S_ISDIR(words[0]):
            found[name] = (*words, *_count_inside(devices, name))
    return found


def are_devices_as_begun(devices: int, begun: Listing) -> bool:
    """Say if a /dev is as it was listed. The times of its directories may have changed: files came and went in them;
    then those are listed with the times that they have now.
    """
    known = 0
    with os.scandir(devices) as entries:
        for entry in entries:
            words, before = _words(entry), begun.get(entry.name, ())
            known += 1
            if before[: len(words)] == words:
                continue
            if not stat.S_ISDIR(words[0]) or before[:3] != words[:3]:
                return False
            inside = _count_inside(devices, entry.name)
            if before[len(words) :] != inside:
                return False
            begun[entry.name] = (*words, *inside)
    return known == len(begun)


def _words(entry: os.DirEntry[str]) -> tuple[int, ...]:
    """Return whatever shows a change; the size of a directory of tmpfs tells how many names are in it."""
    at = entry.stat(follow_symlinks=False)
    return at.st_mode, at.st_uid, at.st_gid, at.st_size, at.st_ctime_ns


def _count_inside(devices: int, name: str) -> tuple[int, int]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=devices)
    try:
        return len(os.listdir(fd)), len(os.listxattr(fd))
    finally:
        os.close(fd)


def in_order(changes: Iterable[Change]) -> list[Change]:
    """Return `changes` in the order of paths. Raises BoxFailed if that were more text than anybody can want."""
    size, found = 0, []
    for change in changes:
        size += len(change[1])
        if size > _MOST:
            raise BoxFailed(f"the paths that the box changed are more than {_MOST >> 20} MiB of text: too much to list")
        found.append(change)
    return sorted(found, key=lambda change: change[1])


def find_changes(tree: Tree) -> Iterator[Change]:
    """Yield (kind, path) of every path that differs from what the tree began with: A added, C changed, D deleted.

    A directory counts as changed if its own mode or owner did, or if it was replaced; what is in it is told by itself.
    """
    if tree.is_as_begun():
        return
    for layer in tree.layers:
        try:
            walk = _Walk(layer)
        except OSError:
            # As below: changed under us, for the box may still run.
            continue
        try:
            for change in walk.changes():
                kind, path = change
                if path in tree.hidden:
                    # It was not there for the box.
                    if kind != "D":
                        yield "A", path
                elif path not in tree.made:
                    yield change
        except OSError:
            continue
        finally:
            walk.close()


class _Walk:
    """A way through a layer, and through what it lies over."""

    def __init__(self, layer: Layer) -> None:
        self._shown = layer.target.rstrip("/")
        self._new = files.Descent(layer.upper)
        try:
            self._old = files.Descent(layer.lower)
        except OSError:
            self._new.close()
            raise
        # So many of the last steps down went where nothing of the lower directory shows through.
        self._hidden = 0

    def close(self) -> None:
        self._new.close()
        self._old.close()

    def changes(self) -> Iterator[Change]:
        """Yield them, in no order."""
        waiting = [self._entries()]
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                if waiting:
                    self._leave()
                continue
            name, new = waiting[-1].pop()
            old = self._status(name)
            if stat.S_ISCHR(new.st_mode) and new.st_rdev == 0:
                yield "D", self._path(name)
            elif not stat.S_ISDIR(new.st_mode):
                yield "C" if old is not None else "A", self._path(name)
            else:
                try:
                    self._new.enter(name)
                except OSError:
                    continue
                waiting.append(self._entries())
                yield from self._directory(name, new, old)

    def _directory(self, name: str, new: os.stat_result, old: os.stat_result | None) -> Iterator[Change]:
        """Yield what the directory `name` itself is, which the upper way has just come to; let the lower one follow."""
        if old is None or not stat.S_ISDIR(old.st_mode):
            yield "A" if old is None else "C", self._path()
            self._hidden += 1
            return
        self._enter_old(name)
        if not _has(self._new.fd, _OPAQUE + _REDIRECT):
            if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
                yield "C", self._path()
            return
        # In place of the lower one, whose content is gone.
        yield "C", self._path()
        gone = [] if self._hidden else os.listdir(self._old.fd)
        yield from (("D", self._path(each)) for each in gone if _lstat(each, self._new.fd) is None)
        self._leave_old()
        self._hidden += 1

    def _entries(self) -> list[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self._new.fd) as scanned:
                names = [entry.name for entry in scanned]
        except OSError:
            return []
        found = ((name, _lstat(name, self._new.fd)) for name in names)
        return [(name, at) for name, at in found if at is not None]

    def _status(self, name: str) -> os.stat_result | None:
        return None if self._hidden else _lstat(name, self._old.fd)

    def _enter_old(self, name: str) -> None:
        try:
            self._old.enter(name)
        except OSError:
            self._hidden = 1

    def _leave_old(self) -> None:
        if self._hidden:
            self._hidden -= 1
        else:
            self._old.leave()

    def _leave(self) -> None:
        self._new.leave()
        self._leave_old()

    def _path(self, *name: str) -> str:
        return "/".join((self._shown, *self._new.names, *name))


def _lstat(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except OSError:
        return None


def _has(fd: int, names: tuple[str, ...]) -> bool:
    try:
        return any(name in names for name in os.listxattr(fd))
    except OSError:
        return False
