"""A new named volume takes over what the image has at its place: files with owners, modes, times, extended attributes,
holes and hard links. As Docker does at the first use of a volume.
"""

from __future__ import annotations

import errno
import os
import stat

from pytest_nsbox.kernel import files, mount
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import Bind, OverlayImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.session import Session

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_DEEPEST = 200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def fill_volumes(session: Session, plan: Plan) -> None:
    """Fill the volumes of `plan`, a box of an image, that no box had yet and that are empty. Raises KernelError or
    BoxFailed; a volume is empty again then.
    """
    new = [op for op in plan.tree if isinstance(op, Bind) and op.kind == "volume" and op.source not in session.filled]
    if not new:
        return
    root = next(op for op in plan.tree if isinstance(op, OverlayImage))
    # Ids as they are in the image: they are shifted where a box mounts the volume.
    view = files.open_directory(session.images.view((root.directories, root.init, False)))
    try:
        for op in new:
            session.filled.add(op.source)
            volume = session.volume(op.source)
            if not os.listdir(volume):
                _fill(view, op.target, volume)
    finally:
        os.close(view)


def _fill(view: int, target: str, volume: str) -> None:
    try:
        source = mount.open_in(view, target, os.O_RDONLY | os.O_DIRECTORY)
    except KernelError as error:
        if error.errno in _MISSING:
            return
        raise
    try:
        to = files.open_directory(volume)
        try:
            _Copy(volume.rpartition("/")[2]).directory(source, to, 0)
        except BaseException:
            for name in os.listdir(to):
                _remove(f"{volume}/{name}")
            raise
        finally:
            os.close(to)
    except OSError as error:
        raise KernelError("copy to volume", volume.rpartition("/")[2], error.errno or errno.EIO) from None
    finally:
        os.close(source)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        files.remove_tree(path)
    else:
        os.unlink(path)


class _Copy:
    """One copy of a tree: from descriptor to descriptor, since links in it may lead anywhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Files with several names: where the first one is, as seen from the volume's top.
        self._links: dict[tuple[int, int], str] = {}
        self._top = -1

    def directory(self, source: int, to: int, depth: int, path: str = "") -> None:
        if depth > _DEEPEST:
            raise BoxFailed(f"{self._name}: more than {_DEEPEST} directories deep in the image")
        if self._top < 0:
            self._top = to
        for name in os.listdir(source):
            self._entry(source, to, name, depth, f"{path}{name}")
        _be_like(to, source)

    def _entry(self, source: int, to: int, name: str, depth: int, path: str) -> None:
        at = os.lstat(name, dir_fd=source)
        kind = stat.S_IFMT(at.st_mode)
        if at.st_nlink > 1 and kind != stat.S_IFDIR:
            first = self._links.setdefault((at.st_dev, at.st_ino), path)
            if first != path:
                os.link(first, name, src_dir_fd=self._top, dst_dir_fd=to, follow_symlinks=False)
                return
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=to)
            self._both(source, to, name, _DIRECTORY, lambda a, b: self.directory(a, b, depth + 1, f"{path}/"))
        elif kind == stat.S_IFREG:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to))
            self._both(source, to, name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, _copy_file)
        elif kind in (stat.S_IFLNK, stat.S_IFIFO):
            if kind == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=to)
            else:
                os.mkfifo(name, 0o600, dir_fd=to)
            os.chown(name, at.st_uid, at.st_gid, dir_fd=to, follow_symlinks=False)
            if kind == stat.S_IFIFO:
                os.chmod(name, stat.S_IMODE(at.st_mode), dir_fd=to)
            os.utime(name, ns=(at.st_atime_ns, at.st_mtime_ns), dir_fd=to, follow_symlinks=False)

    def _both(self, source: int, to: int, name: str, flags: int, copy: Callable[[int, int], None]) -> None:
        """Open `name` in both, for reading in the one, and copy."""
        theirs = os.open(name, flags & ~os.O_RDWR | os.O_RDONLY, dir_fd=source)
        try:
            ours = os.open(name, flags, dir_fd=to)
            try:
                copy(theirs, ours)
            finally:
                os.close(ours)
        finally:
            os.close(theirs)


def _copy_file(source: int, to: int) -> None:
    files.copy_data(source, to)
    _be_like(to, source)


def _be_like(to: int, source: int) -> None:
    """Give `to` the owner, mode, attributes and times of `source`, in the order in which none undoes another."""
    at = os.fstat(source)
    os.fchown(to, at.st_uid, at.st_gid)
    os.fchmod(to, stat.S_IMODE(at.st_mode))
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    for name in names:
        if name.startswith(("user.", "system.posix_acl_")) or name == "security.capability":
            os.setxattr(to, name, os.getxattr(source, name))
    os.utime(to, ns=(at.st_atime_ns, at.st_mtime_ns))
