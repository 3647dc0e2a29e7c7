"""A directory as a tar: always the same bytes for the same content, in the form of OCI layers. Source: POSIX pax(1),
the OCI image specification (layer.md).

Entries are sorted; numbers and names that the old header cannot hold are pax records; whiteouts and opaque directories
of an overlay's upper directory become `.wh.` files; sockets and devices are left out.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from pytest_nsbox.images.layers import OPAQUE, OPAQUE_XATTRS, WHITEOUT
from pytest_nsbox.images.tarstream import BLOCK
from pytest_nsbox.policy.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_CHUNK = 1 << 20
_DEEPEST = 200
_FLAGS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}
_REDIRECT_XATTRS = (b"trusted.overlay.redirect", b"user.overlay.redirect")
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default")


class _Member(NamedTuple):
    """One entry; `mtime` in nanoseconds."""

    path: bytes
    flag: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""


class Packer:
    """Packs directories of one tree.

    name       of the tree, for the texts of errors
    ids        owners that are written as others: {host id: id in the image}
    leave_out  absolute paths in the tree (bytes) that are not packed, with all below them
    upper      the tree is an overlay's upper directory
    merged     (upper only) opens a path of the whole overlay, to which a renamed directory leads
    """

    def __init__(
        self,
        name: str,
        ids: Mapping[int, int] | None = None,
        leave_out: Collection[bytes] = (),
        *,
        upper: bool = False,
        merged: Callable[[bytes], int] | None = None,
    ) -> None:
        self._name = name
        self._ids = ids or {}
        self._leave_out = frozenset(leave_out)
        self._upper = upper
        self._merged = merged
        self._links: dict[tuple[int, int], bytes] = {}
        self.entries = 0

    def pack(self, directory: int) -> Iterator[bytes]:
        """Yield the tar of the tree whose root is open as `directory`, in chunks of any size."""
        if not self._upper:
            yield self._header(b"./", os.fstat(directory), b"5", directory)
        yield from self._below(directory, b"", upper=self._upper)
        yield bytes(2 * BLOCK)

    def _below(self, directory: int, path: bytes, *, upper: bool) -> Iterator[bytes]:
        if path.count(b"/") > _DEEPEST:
            raise ImageError(f"{self._name}: more than {_DEEPEST} directories deep, in {os.fsdecode(path[:100])!r}")
        for name in sorted(os.fsencode(name) for name in os.listdir(directory)):
            shown = path + name
            if b"/" + shown in self._leave_out:
                continue
            try:
                at = os.lstat(name, dir_fd=directory)
            except FileNotFoundError:
                continue
            if name.startswith(WHITEOUT):
                raise ImageError(
                    f"{self._name}: {os.fsdecode(shown)!r}: no layer can hold a name that begins with '.wh.'"
                )
            yield from self._entry(directory, name, shown, at, upper=upper)

    def _entry(self, directory: int, name: bytes, path: bytes, at: os.stat_result, *, upper: bool) -> Iterator[bytes]:
        kind = stat.S_IFMT(at.st_mode)
        if kind == stat.S_IFDIR:
            yield from self._directory(directory, name, path, at, upper=upper)
        elif kind == stat.S_IFCHR and at.st_rdev == 0 and upper:
            self.entries += 1
            yield self._plain(path[: -len(name)] + WHITEOUT + name)
        elif kind not in _FLAGS:
            # A socket is dead without its server; a box has devices of its own.
            return
        elif at.st_nlink > 1 and (at.st_dev, at.st_ino) in self._links:
            yield self._header(path, at, b"1", None, link=self._links[at.st_dev, at.st_ino])
        elif kind == stat.S_IFREG:
            yield from self._file(directory, name, path, at)
        else:
            link = os.readlink(name, dir_fd=directory) if kind == stat.S_IFLNK else b""
            self._remember(at, path)
            yield self._header(path, at, _FLAGS[kind], None, link=link)

    def _remember(self, at: os.stat_result, path: bytes) -> None:
        if at.st_nlink > 1:
            self._links[at.st_dev, at.st_ino] = path

    def _directory(
        self, directory: int, name: bytes, path: bytes, at: os.stat_result, *, upper: bool
    ) -> Iterator[bytes]:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            renamed = upper and _has(fd, _REDIRECT_XATTRS)
            if upper and not renamed and self._only_way(fd, path):
                # Made to mount something on.
                return
            yield self._header(path + b"/", at, b"5", fd)
            if renamed or (upper and _has(fd, OPAQUE_XATTRS)):
                self.entries += 1
                yield self._plain(path + b"/" + OPAQUE)
            if not renamed:
                yield from self._below(fd, path + b"/", upper=upper)
                return
        finally:
            os.close(fd)
        if self._merged is None:
            raise ImageError(
                f"{self._name}: {os.fsdecode(path)!r}: a renamed directory, without what it was renamed from"
            )
        # Only its name is here: all of it goes into the layer.
        whole = self._merged(path)
        try:
            yield from self._below(whole, path + b"/", upper=False)
        finally:
            os.close(whole)

    def _only_way(self, fd: int, path: bytes) -> bool:
        """Say if nothing of a directory is packed but what is left out, and it has to be left out itself then."""
        prefix = b"/" + path + b"/"
        if not any(left.startswith(prefix) for left in self._leave_out):
            return False
        names = [prefix + os.fsencode(name) for name in os.listdir(fd)]
        return bool(names) and all(name in self._leave_out for name in names) and not _has(fd, OPAQUE_XATTRS)

    def _file(self, directory: int, name: bytes, path: bytes, at: os.stat_result) -> Iterator[bytes]:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            at = os.fstat(fd)
            if not stat.S_ISREG(at.st_mode):
                raise ImageError(f"{self._name}: {os.fsdecode(path)!r} is being changed")
            self._remember(at, path)
            yield self._header(path, at, b"0", fd)
            left = at.st_size
            while left:
                data = os.read(fd, min(left, _CHUNK))
                if not data:
                    raise ImageError(f"{self._name}: {os.fsdecode(path)!r} was cut while it was read")
                left -= len(data)
                yield data
            if at.st_size % BLOCK:
                yield bytes(BLOCK - at.st_size % BLOCK)
        finally:
            os.close(fd)

    def _plain(self, path: bytes) -> bytes:
        return _pack(_Member(path, b"0", 0o600), {})

    def _header(self, path: bytes, at: os.stat_result, flag: bytes, fd: int | None, link: bytes = b"") -> bytes:
        self.entries += 1
        uid, gid = (self._ids.get(number, number) for number in (at.st_uid, at.st_gid))
        size = at.st_size if flag == b"0" else 0
        member = _Member(path, flag, stat.S_IMODE(at.st_mode), uid, gid, size, at.st_mtime_ns, link)
        return _pack(member, _xattrs(fd) if fd is not None else {})


def _has(fd: int, names: tuple[bytes, ...]) -> bool:
    try:
        found = os.listxattr(fd)
    except OSError:
        return False
    return any(os.fsencode(name) in names for name in found)


def _xattrs(fd: int) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    kept = [name for name in names if name.startswith(_KEPT_XATTRS) and not name.startswith("user.overlay.")]
    return {b"SCHILY.xattr." + os.fsencode(name): os.getxattr(fd, name) for name in sorted(kept)}


def _pack(member: _Member, xattrs: dict[bytes, bytes]) -> bytes:
    """Return the header of one entry, with a pax header before it where one is needed."""
    records = dict(xattrs)
    if len(member.path) > 100:
        records[b"path"] = member.path
    if len(member.link) > 100:
        records[b"linkpath"] = member.link
    for name, number, limit in (
        (b"uid", member.uid, 8**7),
        (b"gid", member.gid, 8**7),
        (b"size", member.size, 8**11),
    ):
        if number >= limit:
            records[name] = str(number).encode()
    seconds, nanoseconds = divmod(member.mtime, 1_000_000_000)
    if nanoseconds or not 0 <= seconds < 8**11:
        sign, whole = ("-", -member.mtime) if member.mtime < 0 else ("", member.mtime)
        records[b"mtime"] = f"{sign}{whole // 10**9}.{whole % 10**9:09d}".encode()
    header = b""
    if records:
        content = b"".join(_record(name, records[name]) for name in sorted(records))
        header = _ustar(_Member(b"PaxHeaders/entry", b"x", 0o644, size=len(content)))
        header += content + bytes(-len(content) % BLOCK)
    return header + _ustar(member)


def _record(name: bytes, value: bytes) -> bytes:
    """Return a pax record; its length, in front, counts itself."""
    rest = b" " + name + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _ustar(member: _Member) -> bytes:
    """Return the old header, with 0 for numbers that it cannot hold."""
    seconds = max(0, min(member.mtime // 1_000_000_000, 8**11 - 1))
    block = _HEADER.pack(
        member.path[:100],
        b"%07o" % member.mode,
        b"%07o" % (member.uid if member.uid < 8**7 else 0),
        b"%07o" % (member.gid if member.gid < 8**7 else 0),
        b"%011o" % (member.size if member.size < 8**11 else 0),
        b"%011o" % seconds,
        b" " * 8,
        member.flag,
        member.link[:100],
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"%07o" % 0,
        b"%07o" % 0,
        b"",
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
