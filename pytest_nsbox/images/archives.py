"""What a path holds: a directory, a tar of a root, or a layout (a directory or an archive) that holds images.

A layout may come from anywhere: its files are opened below its own directory, whatever links it has.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pytest_nsbox.images import streams, tarstream
from pytest_nsbox.images.tarstream import FILE, LINK, SYMLINK, FileStream, Reader
from pytest_nsbox.kernel import mount
from pytest_nsbox.policy.errors import ImageError, KernelError

if TYPE_CHECKING:
    from pytest_nsbox.images.streams import Readable

_LARGEST_DOCUMENT = 16 << 20
# How the first entry of a saved image is called, by docker, podman, skopeo, kaniko, bazel.
_SAVED = re.compile(
    rb"(\./)?(blobs/|(oci-layout|index\.json|manifest\.json|repositories)$|sha256:|[0-9a-f]{64}(/|\.json|\.tar|$))"
)


class Layout(Protocol):
    """A set of named files."""

    name: str

    def has(self, path: str) -> bool:
        """Say if there is such a file."""

    def open(self, path: str) -> Readable:
        """Open a file. Raises ImageError if it is missing."""

    def close(self) -> None:
        """Let go of it."""


def document(layout: Layout, path: str) -> bytes:
    """Return all of a small file of `layout`. Raises ImageError."""
    file = layout.open(path)
    try:
        parts, size = [], 0
        while chunk := file.read(streams.CHUNK):
            parts.append(chunk)
            size += len(chunk)
            if size > _LARGEST_DOCUMENT:
                raise ImageError(f"{layout.name}: {path} has more than {_LARGEST_DOCUMENT >> 20} MiB")
        return b"".join(parts)
    finally:
        file.close()


class DirectoryLayout:
    """The files of a directory."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def has(self, path: str) -> bool:
        try:
            self.open(path).close()
        except ImageError:
            return False
        return True

    def open(self, path: str) -> Readable:
        try:
            fd = mount.open_in(self._root, path, os.O_RDONLY | os.O_NONBLOCK)
        except KernelError as error:
            raise ImageError(f"{self.name}: {error}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{self.name}: {path} is no file")
        return open(fd, "rb", buffering=0)

    def close(self) -> None:
        os.close(self._root)


class ArchiveLayout:
    """The files in a tar that is not compressed, read where they lie in it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        stream = FileStream(file, name)
        reader = Reader(stream, name)
        for entry in reader:
            path = _tidy(os.fsdecode(entry.name))
            if entry.kind == FILE and len(entry.pieces) < 2:
                self._places[path] = stream.position, entry.size
            elif entry.kind == SYMLINK:
                self._links[path] = os.path.join(os.path.dirname(path), os.fsdecode(entry.link))
            elif entry.kind == LINK:
                self._links[path] = os.fsdecode(entry.link)
            reader.skip(entry)

    def _place(self, path: str) -> tuple[int, int] | None:
        path = _tidy(path)
        for _ in range(8):
            # docker save writes links for layers that several images share.
            if path in self._places or path not in self._links:
                return self._places.get(path)
            path = _tidy(self._links[path])
        return None

    def has(self, path: str) -> bool:
        return self._place(path) is not None

    def open(self, path: str) -> Readable:
        place = self._place(path)
        if place is None:
            raise ImageError(f"{self.name}: {path} is missing")
        return _Part(self._file.fileno(), *place)

    def close(self) -> None:
        self._file.close()


class _Part:
    """Some bytes of a file."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._at, self._left = fd, offset, size

    def read(self, count: int = -1, /) -> bytes:
        wanted = self._left if count < 0 else min(count, self._left)
        data = os.pread(self._fd, wanted, self._at)
        self._at += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Nothing is held."""


def _tidy(path: str) -> str:
    return os.path.normpath("/" + path).lstrip("/")


def open_layout(path: str, aside: str) -> Layout | None:
    """Return the layout that the directory or archive `path` is; None for a directory that is a root itself, and for a
    tar of a root. Raises ImageError for what is neither.

    aside  an unused path: a compressed archive is decompressed to there; it is unlinked at once
    """
    if os.path.isdir(path):
        is_layout = all(os.path.isfile(f"{path}/{name}") for name in ("oci-layout", "index.json"))
        return DirectoryLayout(path) if is_layout else None
    file = open_file(path)
    try:
        start = file.read(1 << 16)
        first = next(streams.decompressed(iter([start]), path), b"") if not streams.is_compressed(start) else None
        file.seek(0)
        if first is None:
            first = next(iter(streams.decompressed(streams.read_all(file), path)), b"")
        _check_is_tar(first, path)
        file.seek(0)
        if _SAVED.match(first[:100].split(b"\0", 1)[0]) is None:
            file.close()
            return None
        if streams.is_compressed(start):
            file = _decompress(file, path, aside)
        layout = ArchiveLayout(file, path)
        if layout.has("manifest.json") or (layout.has("oci-layout") and layout.has("index.json")):
            return layout
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def open_file(path: str) -> BinaryIO:
    """Open a regular file. Raises ImageError."""
    try:
        file: BinaryIO = open(  # noqa: SIM115  # who asks closes it
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0
        )
    except OSError as error:
        raise ImageError(f"{path}: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ImageError(f"{path}: neither a directory nor a file")
    return file


def _check_is_tar(first: bytes, path: str) -> None:
    if len(first) < tarstream.BLOCK:
        raise ImageError(f"{path}: no image (accepted: a directory, a tar, an archive of docker save, an OCI layout)")
    try:
        # One header tells; extended ones are entries like others here.
        for entry in Reader(tarstream.Stream(iter([first]), path), path):
            del entry
            break
    except ImageError as error:
        if "cut off" not in str(error):
            raise ImageError(
                f"{path}: no image (accepted: a directory, a tar, an archive of docker save, an OCI layout): {error}"
            ) from None


def _decompress(file: BinaryIO, path: str, aside: str) -> BinaryIO:
    with file:
        fd = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        out = open(fd, "w+b")  # noqa: SIM115  # the result
        os.unlink(aside)
        try:
            out.writelines(streams.decompressed(streams.read_all(file), path))
            out.flush()
            out.seek(0)
        except BaseException:
            out.close()
            raise
        return out


def open_directory(root: int, path: bytes) -> int:
    """Open the directory `path` below the descriptor `root`. Raises ImageError."""
    try:
        return mount.open_in(root, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY)
    except KernelError as error:
        raise ImageError(str(error)) from None
