"""What of a tar is not in its unpacked files: headers, padding, the order of all. With the files it gives the archive
back, byte by byte, so a layer that was exported has the digest that it came with.

A frames file is compressed with zlib. Records: b"R", length (4 bytes), that many bytes of the archive; b"C", number (8
bytes), size (8), count of pieces (4) and for each its offset and length (8 and 8): content of file `number`. Numbers go
from 0; the last record is b"E", and for each number the length (4) and the path of its file. All are big endian.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO

from pytest_nsbox.kernel import mount
from pytest_nsbox.policy.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_nsbox.images.tarstream import Entry

_CONTENT = struct.Struct(">cQQI")
_PIECE = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_BLOCK = 1 << 20
# So many pieces of a frames file are compressed in one go.
_MANY = 2000
# In the layer's directory, beside its files.
FILES, REPLACED, FRAMES = "fs", "replaced", "frames"
_FILES = b"fs/"


class Frames:
    """Writes a frames file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._engine = zlib.compressobj(1)
        self._records: list[bytes] = []
        # Bytes since the last content.
        self._raw: list[bytes] = []
        self._paths: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Add bytes of the archive."""
        self._raw.append(data)

    def content(self, entry: Entry) -> int:
        """Add the content of the file of `entry`; return its number."""
        self._end_raw()
        number = len(self._paths)
        self._paths.append(_FILES + entry.name)
        self._records.append(_CONTENT.pack(b"C", number, entry.size, len(entry.pieces)))
        self._records += [_PIECE.pack(*piece) for piece in entry.pieces]
        if len(self._records) > _MANY:
            self._flush()
        return number

    def moved(self, number: int) -> None:
        """Say that content `number` was replaced and is kept aside."""
        self._paths[number] = f"{REPLACED}/{number}".encode()

    def close(self) -> None:
        """Write the end."""
        self._end_raw()
        self._records.append(b"E")
        self._records += [_LENGTH.pack(len(path)) + path for path in self._paths]
        self._flush()
        self._file.write(self._engine.flush())

    def _end_raw(self) -> None:
        if self._raw:
            self._records += [b"R" + _LENGTH.pack(sum(map(len, self._raw))), *self._raw]
            self._raw.clear()

    def _flush(self) -> None:
        self._file.write(self._engine.compress(b"".join(self._records)))
        self._records.clear()


def replay(layer: int, name: str) -> Iterator[bytes]:
    """Yield the tar that the layer in the directory `layer` (a descriptor) was unpacked from. Raises ImageError if its
    files are not what they were.
    """
    paths = _paths(layer)
    for kind, data in _records(layer):
        if kind == b"R":
            yield data
        elif kind == b"C":
            _, number, size, count = _CONTENT.unpack_from(data)
            pieces = [_PIECE.unpack_from(data, _CONTENT.size + n * _PIECE.size) for n in range(count)]
            yield from _file(layer, paths[number], size, pieces, name)


def _file(layer: int, path: bytes, size: int, pieces: list[tuple[int, ...]], name: str) -> Iterator[bytes]:
    root, _, below = path.partition(b"/")
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layer)
    try:
        fd = mount.open_in(directory, os.fsdecode(below), os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(directory)
    try:
        if os.fstat(fd).st_size != size:
            raise ImageError(f"{name}: {os.fsdecode(below)!r} was changed in the store: import the image again")
        for offset, length in pieces:
            done = 0
            while done < length:
                data = os.pread(fd, min(_BLOCK, length - done), offset + done)
                if not data:
                    raise ImageError(f"{name}: {os.fsdecode(below)!r} was cut off in the store: import the image again")
                done += len(data)
                yield data
    finally:
        os.close(fd)


def _paths(layer: int) -> list[bytes]:
    """Return the paths of all contents: they stand at the end, so the file is read to there once."""
    paths: list[bytes] = []
    for kind, data in _records(layer):
        if kind == b"E":
            at = 0
            while at < len(data):
                (length,) = _LENGTH.unpack_from(data, at)
                paths.append(data[at + _LENGTH.size : at + _LENGTH.size + length])
                at += _LENGTH.size + length
    return paths


def _records(layer: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, data) of each record; data of b"C" and b"E" as they stand there."""
    fd = os.open(FRAMES, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layer)
    with open(fd, "rb") as file:
        source = _Inflated(file)
        while True:
            kind = source.take(1)
            if kind == b"R":
                yield kind, source.take(*_LENGTH.unpack(source.take(_LENGTH.size)))
            elif kind == b"C":
                head = kind + source.take(_CONTENT.size - 1)
                yield kind, head + source.take(_PIECE.size * _CONTENT.unpack(head)[3])
            else:
                yield b"E", source.rest()
                return


class _Inflated:
    """The decompressed bytes of a frames file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._engine = zlib.decompressobj()
        self._buffer = bytearray()
        self._at = 0

    def take(self, length: int) -> bytes:
        while len(self._buffer) - self._at < length and self._more():
            pass
        found = bytes(self._buffer[self._at : self._at + length])
        self._at += length
        return found

    def rest(self) -> bytes:
        while self._more():
            pass
        return bytes(self._buffer[self._at :])

    def _more(self) -> bool:
        data = self._file.read(_BLOCK)
        if data:
            del self._buffer[: self._at]
            self._at = 0
            self._buffer += self._engine.decompress(data)
        return bool(data)
