"""A layer unpacked from a tar, in the form that overlayfs reads. Source: the OCI image specification (layer.md),
Documentation/filesystems/overlayfs.rst.

Archives come from anywhere and this runs as root of the host. So every name is looked up by the kernel below a
descriptor of the layer (openat2 with RESOLVE_IN_ROOT: neither ".." nor a link leads out), nothing is opened through a
link in its last part, a file is always a new one, device nodes are left out, and attributes that mean something to an
overlay or to the host's security modules are not taken over.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pytest_nsbox.images.tarstream import DIRECTORY, FIFO, FILE, LINK, SYMLINK, show
from pytest_nsbox.kernel import files, mount
from pytest_nsbox.policy.errors import ImageError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.images.frames import Frames
    from pytest_nsbox.images.tarstream import Entry, Reader

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
OPAQUE_XATTRS = (b"trusted.overlay.opaque", b"user.overlay.opaque")
# A run of zeros this long in a file becomes a hole.
_HOLE = 1 << 16
_ZEROS = bytes(_HOLE)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_XATTRS = (b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
_LONGEST = 4095
_NOBODY = 2**32 - 1
_LATEST = 2**62
_MOST_OPEN = 256


class Unpacker:
    """Unpacks entries below the directory `root` (a descriptor); `close` when all are there.

    name      of the archive, for the texts of errors
    frames    is told where the content of each file went
    written   is called with the bytes about to be written
    replaced  a directory (descriptor) for files that a later entry of the same name replaced
    """

    def __init__(self, root: int, name: str, frames: Frames, written: Callable[[int], None], replaced: int) -> None:
        self._root = root
        self._name = name
        self._frames = frames
        self._written = written
        self._replaced = replaced
        # Directories by the path in the archive: descriptor and inode.
        self._open: dict[bytes, tuple[int, int]] = {}
        # Content by (inode of the directory, name of the file).
        self._content: dict[tuple[int, bytes], int] = {}
        # Names that entries of this layer made, as opposed to its whiteouts.
        self._directories: dict[bytes, Entry] = {}
        self._devices: set[bytes] = set()
        self._owner = (os.geteuid(), os.getegid())
        self.size = 0

    def unpack(self, reader: Reader) -> None:
        """Unpack everything. Raises ImageError."""
        try:
            for entry in reader:
                self._unpack(entry, reader)
            self._finish_directories()
        finally:
            self._forget_directories()

    def _forget_directories(self, keep: int = -1) -> None:
        for fd, _ in self._open.values():
            if fd != keep:
                os.close(fd)
        self._open = {path: found for path, found in self._open.items() if found[0] == keep}

    def _problem(self, name: bytes, text: str) -> ImageError:
        return ImageError(f"{self._name}: {show(name)}: {text}")

    def _unpack(self, entry: Entry, reader: Reader) -> None:
        parts = self._parts(entry.name)
        if not (0 <= entry.uid < _NOBODY and 0 <= entry.gid < _NOBODY and -_LATEST < entry.mtime < _LATEST):
            raise self._problem(
                entry.name, f"an owner or a time out of range ({entry.uid}:{entry.gid}, {entry.mtime} ns)"
            )
        if len(self._open) >= _MOST_OPEN:
            self._forget_directories()
        try:
            if not parts:
                # The root itself.
                if entry.kind == DIRECTORY:
                    self._directories[b""] = entry
                self._skip(entry, reader)
                return
            *above, base = parts
            parent, inode = self._directory(b"/".join(above))
            if base.startswith(WHITEOUT):
                self._whiteout(parent, base, entry)
                self._skip(entry, reader)
            elif entry.kind == FILE:
                self._file(entry, reader, parent, (inode, base))
            else:
                self._other(entry, parent, b"/".join(parts))
                self._skip(entry, reader)
        except KernelError as error:
            raise self._problem(entry.name, str(error)) from None
        except OSError as error:
            raise self._problem(entry.name, os.strerror(error.errno or errno.EIO)) from None

    def _parts(self, name: bytes) -> list[bytes]:
        if b"\0" in name or len(name) > _LONGEST:
            raise self._problem(
                name, "a name with a NUL character" if b"\0" in name else "a name of more than 4095 bytes"
            )
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in name and b".." in parts:
            raise self._problem(name, "a name with '..' is refused")
        if WHITEOUT in name and any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise self._problem(name, "lies below a whiteout")
        return parts

    def _skip(self, entry: Entry, reader: Reader) -> None:
        for _ in reader.content(entry):
            raise self._problem(entry.name, "content where none can be")

    def _directory(self, path: bytes) -> tuple[int, int]:
        """Return the descriptor and the inode of a directory, made if it is missing."""
        found = self._open.get(path)
        if found is not None:
            return found
        try:
            fd = mount.open_in(self._root, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY)
        except KernelError as error:
            if error.errno == errno.ENOTDIR:
                raise self._problem(path, "lies below what is no directory") from None
            if error.errno != errno.ENOENT:
                raise
            fd = self._make_missing(path)
        self._open[path] = fd, os.fstat(fd).st_ino
        return self._open[path]

    def _make_missing(self, path: bytes) -> int:
        parts = path.split(b"/")
        fd = mount.open_in(self._root, ".", os.O_RDONLY | os.O_DIRECTORY)
        for depth, base in enumerate(parts, 1):
            here = b"/".join(parts[:depth])
            try:
                below = mount.open_in(self._root, os.fsdecode(here), os.O_RDONLY | os.O_DIRECTORY)
            except KernelError as error:
                try:
                    if error.errno != errno.ENOENT:
                        raise
                    below = self._make_directory(fd, base, here)
                finally:
                    os.close(fd)
            else:
                os.close(fd)
            fd = below
        return fd

    def _make_directory(self, parent: int, base: bytes, path: bytes) -> int:
        self._clear_way(parent, base, keep_directory=True)
        try:
            os.mkdir(base, 0o755, dir_fd=parent)
        except FileExistsError:
            raise self._problem(path, "lies below a link that leads nowhere") from None
        return files.open_directory(os.fsdecode(base), at=parent)

    def _clear_way(self, parent: int, base: bytes, *, keep_directory: bool = False) -> None:
        """Remove what an earlier entry made of that name; a whiteout counts as nothing."""
        try:
            at = os.lstat(base, dir_fd=parent)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(at.st_mode):
            if not keep_directory:
                self._forget_directories(keep=parent)
                try:
                    os.rmdir(base, dir_fd=parent)
                except OSError:
                    raise self._problem(base, "replaces a directory that is not empty") from None
        elif stat.S_ISLNK(at.st_mode) and keep_directory:
            return
        else:
            self._take_away(parent, base)

    def _take_away(self, parent: int, base: bytes) -> None:
        number = self._content.pop((os.fstat(parent).st_ino, base), None)
        if number is None:
            os.unlink(base, dir_fd=parent)
        else:
            # The archive must come back as it was, with what nobody sees any more.
            os.rename(base, str(number), src_dir_fd=parent, dst_dir_fd=self._replaced)
            self._frames.moved(number)

    def _whiteout(self, parent: int, base: bytes, entry: Entry) -> None:
        if base == OPAQUE:
            self._make_opaque(parent, entry)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden.startswith(WHITEOUT):
            # Bookkeeping of aufs, which Docker skips too.
            return
        if hidden in (b"", b".", b".."):
            raise self._problem(entry.name, "a whiteout of nothing")
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
            os.utime(hidden, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            # A whiteout hides what lower layers have, not what this one has.
            return
        except PermissionError:
            raise self._problem(
                entry.name, "the store's file system cannot keep whiteouts (an overlay, or a mount without devices)"
            ) from None

    def _make_opaque(self, directory: int, entry: Entry) -> None:
        done = False
        for name in OPAQUE_XATTRS:
            try:
                os.setxattr(directory, name, b"y")
                done = True
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise
        if not done:
            raise self._problem(entry.name, "the store's file system cannot keep opaque directories (no xattrs)")

    def _file(self, entry: Entry, reader: Reader, parent: int, key: tuple[int, bytes]) -> None:
        base = key[1]
        try:
            fd = os.open(base, _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear_way(parent, base)
            fd = os.open(base, _NEW, 0o600, dir_fd=parent)
        try:
            if entry.pieces:
                self._written(sum([length for _, length in entry.pieces]))
                self._content[key] = self._frames.content(entry)
            end = 0
            for offset, piece in reader.content(entry):
                end = _write(fd, offset, piece)
            if end != entry.size:
                os.ftruncate(fd, entry.size)
            self._own(entry, fd)
        finally:
            os.close(fd)
        self.size += entry.size

    def _own(self, entry: Entry, fd: int) -> None:
        """Give a file or directory its owner, mode, attributes and time, in the order in which one undoes another."""
        self._chown(entry, fd)
        os.fchmod(fd, entry.mode)
        for name, value in entry.xattrs:
            if name.startswith(_KEPT_XATTRS) and not name.startswith(b"user.overlay."):
                _set_xattr(fd, name, value)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _chown(self, entry: Entry, fd: int) -> None:
        if (entry.uid, entry.gid) != self._owner and self._owner[0] == 0:
            os.fchown(fd, entry.uid, entry.gid)

    def _other(self, entry: Entry, parent: int, path: bytes) -> None:
        base = path.rpartition(b"/")[2]
        if entry.kind == DIRECTORY:
            self._clear_way(parent, base, keep_directory=True)
            try:
                os.mkdir(base, 0o700, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode):
                    # A link: what was unpacked through it stays, but the name is this directory's now.
                    self._forget_directories(keep=parent)
                    os.unlink(base, dir_fd=parent)
                    os.mkdir(base, 0o700, dir_fd=parent)
            self._directories[path] = entry
            return
        if entry.kind == LINK:
            self._link(entry, parent, base)
            return
        self._clear_way(parent, base)
        if entry.kind == SYMLINK:
            if not entry.link or b"\0" in entry.link:
                raise self._problem(entry.name, "a symbolic link to nothing")
            os.symlink(entry.link, base, dir_fd=parent)
        elif entry.kind == FIFO:
            os.mkfifo(base, 0o600, dir_fd=parent)
            os.chmod(base, entry.mode, dir_fd=parent)
        else:
            # A device of the host's in a file that others might get at; a box has a /dev of its own.
            self._devices.add(path)
            return
        if self._owner[0] == 0:
            os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _link(self, entry: Entry, parent: int, base: bytes) -> None:
        *above, target = self._parts(entry.link) or [b""]
        if b"/".join((*above, target)) in self._devices:
            return
        try:
            source, _ = self._directory(b"/".join(above))
            at = os.lstat(target, dir_fd=source)
        except (FileNotFoundError, KernelError):
            raise self._problem(entry.name, f"a hard link to {show(entry.link)}, which is not there") from None
        if stat.S_ISDIR(at.st_mode) or stat.S_ISCHR(at.st_mode):
            raise self._problem(entry.name, f"a hard link to {show(entry.link)}, which is no file")
        if (at.st_dev, at.st_ino) == _identity(parent, base):
            return
        self._clear_way(parent, base)
        # Making room may have closed it, or removed it.
        source, _ = self._directory(b"/".join(above))
        os.link(target, base, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def _finish_directories(self) -> None:
        """Owners, modes and times of directories, when nothing is made in them any more."""
        for path, entry in reversed(self._directories.items()):
            try:
                fd = mount.open_in(self._root, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except KernelError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    # Replaced by a later entry.
                    continue
                raise self._problem(path, str(error)) from None
            try:
                self._own(entry, fd)
            except OSError as error:
                raise self._problem(path, os.strerror(error.errno or errno.EIO)) from None
            finally:
                os.close(fd)


def _identity(parent: int, base: bytes) -> tuple[int, int] | None:
    try:
        at = os.lstat(base, dir_fd=parent)
    except FileNotFoundError:
        return None
    return at.st_dev, at.st_ino


def _write(fd: int, offset: int, piece: memoryview) -> int:
    """Write `piece` at `offset`, with holes for long runs of zeros; return where what was written ends."""
    if len(piece) < _HOLE:
        _write_all(fd, piece, offset)
        return offset + len(piece)
    done = _count_zeros(piece)
    end = 0
    while done < len(piece):
        # Up to the next long run of zeros; most files have none, and are written in one go.
        last = _find_zeros(piece, done)
        _write_all(fd, piece[done:last], offset + done)
        end = offset + last
        done = last + _count_zeros(piece[last:])
    return end


def _write_all(fd: int, piece: memoryview, offset: int) -> None:
    while piece:
        done = os.pwrite(fd, piece, offset)
        piece, offset = piece[done:], offset + done


def _find_zeros(piece: memoryview, start: int) -> int:
    """Return where the next whole block of zeros begins, or the end."""
    for at in range(-(-start // _HOLE) * _HOLE, len(piece) - _HOLE + 1, _HOLE):
        if piece[at] == 0 and piece[at : at + _HOLE] == _ZEROS:
            return at
    return len(piece)


def _count_zeros(piece: memoryview) -> int:
    """Return how many whole blocks of zeros it begins with, in bytes."""
    count = 0
    while len(piece) - count >= _HOLE and piece[count] == 0 and piece[count : count + _HOLE] == _ZEROS:
        count += _HOLE
    return count


def _set_xattr(fd: int, name: bytes, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        # The archive keeps it; this file system, or this user, cannot.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
