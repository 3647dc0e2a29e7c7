"""Reading a tar as a stream: v7, ustar, GNU and pax archives. Source: POSIX pax(1), tar(5), GNU tar's manual (sparse
formats).

Not tarfile: it seeks, loses the bytes around the files (an archive must come back identical), and takes names as text.
What the same bytes mean follows Go's archive/tar, which all container tools are built on: two readers that disagree are
a way to hide files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from zlib import adler32

from pytest_nsbox.policy.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 512
_ZEROS = bytes(BLOCK)
# Go's limit for the headers that describe others.
_LARGEST_SPECIAL = 1 << 20
_LARGEST = 1 << 62
_MANY = 1000

FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    "file",
    "link",
    "symlink",
    "char",
    "block",
    "dir",
    "fifo",
)
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE, b"1": LINK, b"2": SYMLINK, b"3": CHARACTER, b"4": BLOCK_DEVICE,
    b"5": DIRECTORY, b"6": FIFO,
}  # fmt: skip
_XATTR = b"SCHILY.xattr."


class Entry(NamedTuple):
    """One member.

    name    as it is written, bytes
    mtime   nanoseconds
    link    where a link leads
    size    of the file once unpacked
    pieces  (offset, length) of what is stored of the file, in order; all else in it is a hole
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    link: bytes
    size: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    pieces: tuple[tuple[int, int], ...]


class Stream:
    """Bytes that come in chunks, given out in the lengths that are asked for."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._name = name

    def pieces(self, length: int) -> Iterator[memoryview]:
        """Yield the next `length` bytes as they come. Raises ImageError if there are fewer."""
        while length:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks, b""))
                if not self._chunk:
                    raise ImageError(f"{self._name}: the archive is cut off")
            piece = self._chunk[:length]
            self._chunk = self._chunk[length:]
            length -= len(piece)
            yield piece

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        if len(self._chunk) >= length:
            found = bytes(self._chunk[:length])
            self._chunk = self._chunk[length:]
            return found
        return b"".join(self.pieces(length))

    def skip(self, length: int) -> None:
        """Pass over the next `length` bytes."""
        for _ in self.pieces(length):
            pass

    def is_over(self) -> bool:
        """Say if nothing is left."""
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._chunk = memoryview(chunk)
        return False

    def rest(self) -> Iterator[memoryview]:
        """Yield all that is left."""
        while not self.is_over():
            piece, self._chunk = self._chunk, memoryview(b"")
            yield piece


class FileStream(Stream):
    """The bytes of a file, which can be passed over without reading them. `position` is the file's next byte."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(iter(lambda: file.read(1 << 16), b""), name)
        self._file = file

    @property
    def position(self) -> int:
        return self._file.tell() - len(self._chunk)

    def skip(self, length: int) -> None:
        self._file.seek(self.position + length)
        self._chunk = memoryview(b"")


class Reader:
    """The entries of a tar, in order. After each, `content` must be read to its end.

    keep  is called with every byte that is no content of a file, in order: headers, padding, the end of the archive
    """

    def __init__(self, stream: Stream, name: str, keep: Callable[[bytes], object] = lambda _bytes: None) -> None:
        self._stream = stream
        self._name = name
        self._keep = keep
        self._global: dict[bytes, bytes] = {}
        self._unread = False
        # Owners and modes are the same few for most entries.
        self._numbers: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self._unread = bool(entry.pieces)
            yield entry
            assert not self._unread, "the content of an entry was not read"

    def content(self, entry: Entry) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset in the file, bytes) of what is stored of `entry`."""
        stored = 0
        for start, length in entry.pieces:
            offset = start
            for piece in self._stream.pieces(length):
                yield offset, piece
                offset += len(piece)
            stored += length
        self._unread = False
        self._pad(stored)

    def skip(self, entry: Entry) -> None:
        """Pass over the content of `entry`."""
        stored = sum(length for _, length in entry.pieces)
        self._stream.skip(stored)
        self._unread = False
        self._pad(stored)

    def _problem(self, text: str) -> ImageError:
        return ImageError(f"{self._name}: {text}")

    def _take(self, length: int) -> bytes:
        taken = self._stream.take(length)
        self._keep(taken)
        return taken

    def _pad(self, length: int) -> None:
        if length % BLOCK:
            self._take(BLOCK - length % BLOCK)

    def _next(self) -> Entry | None:
        pax: dict[bytes, bytes] = dict(self._global)
        long: dict[bytes, bytes] = {}
        sparse: list[bytes] = []
        while True:
            if self._stream.is_over():
                # As Go and GNU tar: the blocks of zeros at the end may be missing.
                return None
            block = self._take(BLOCK)
            if block == _ZEROS:
                self._end()
                return None
            self._check(block)
            flag = block[156:157]
            if flag in (b"x", b"g", b"L", b"K"):
                content = self._special(block)
                if flag == b"x":
                    pax.update(self._records(content, sparse))
                elif flag == b"g":
                    self._global.update(self._records(content, sparse))
                    pax.update(self._global)
                else:
                    long[flag] = content.split(b"\0", 1)[0]
                continue
            return self._entry(block, pax, long, sparse)

    def _end(self) -> None:
        if not self._stream.is_over() and self._take(BLOCK) != _ZEROS:
            raise self._problem("no tar (a block of zeros between entries)")
        for piece in self._stream.rest():
            self._keep(bytes(piece))

    def _check(self, block: bytes) -> None:
        # The sum of the bytes, its own field taken as spaces; Adler-32 holds the exact sum of up to 256 bytes.
        found = (adler32(block[:148]) & 0xFFFF) + (adler32(block[156:334]) & 0xFFFF) + (adler32(block[334:]) & 0xFFFF)
        if found - 3 + 256 != self._number(block[148:156]):
            raise self._problem("no tar, or a broken one (the checksum of a header is wrong)")

    def _special(self, block: bytes) -> bytes:
        size = self._number(block[124:136])
        if not 0 <= size <= _LARGEST_SPECIAL:
            raise self._problem(f"an extended header of {size} bytes (accepted: up to {_LARGEST_SPECIAL})")
        content = self._take(size)
        self._pad(size)
        return content

    def _records(self, content: bytes, sparse: list[bytes]) -> dict[bytes, bytes]:
        """Return the records of a pax header; those of sparse format 0.0, which repeat, are added to `sparse`."""
        found: dict[bytes, bytes] = {}
        while content:
            digits, _, _ = content.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            line, content = content[len(digits) + 1 : length], content[length:]
            key, equals, value = line.partition(b"=")
            if not length or not equals or line[-1:] != b"\n":
                raise self._problem("a pax header that is none")
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                sparse.append(value[:-1])
            found[key] = value[:-1]
        return found

    def _number(self, field: bytes) -> int:
        found = self._numbers.get(field)
        if found is None:
            if len(self._numbers) > _MANY:
                self._numbers.clear()
            found = self._numbers[field] = self._read_number(field)
        return found

    def _read_number(self, field: bytes) -> int:
        if field[0] & 0x80:
            # GNU's base 256: two's complement without the top bit.
            value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
            return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
        try:
            return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
        except ValueError:
            raise self._problem(f"a header with the number {field!r}") from None

    def _decimal(self, value: bytes) -> int:
        if not value.isdigit() or len(value) > 19 or int(value) > _LARGEST:
            raise self._problem(f"a pax header with the number {value[:40]!r}")
        return int(value)

    def _entry(self, block: bytes, pax: dict[bytes, bytes], long: dict[bytes, bytes], sparse: list[bytes]) -> Entry:
        flag = block[156:157]
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        name = pax.get(b"path") or long.get(b"L") or name
        link = pax.get(b"linkpath") or long.get(b"K") or block[157:257].split(b"\0", 1)[0]
        kind = _KINDS.get(flag)
        if kind is None:
            raise self._problem(f"{_shown(name)}: an entry of the unknown type {flag!r}")
        if kind == FILE and name.endswith(b"/") and flag in b"0\0":
            kind = DIRECTORY
        stored = self._decimal(pax[b"size"]) if b"size" in pax else self._number(block[124:136])
        if kind != FILE:
            stored = 0
        if not 0 <= stored <= _LARGEST:
            raise self._problem(f"{_shown(name)}: a file of {stored} bytes")
        size = stored
        pieces: tuple[tuple[int, int], ...] = ((0, stored),) if stored else ()
        if flag == b"S":
            size, pieces = self._old_sparse(block)
            self._check_pieces(name, size, pieces, stored)
        elif kind == FILE and (b"GNU.sparse.map" in pax or sparse or b"GNU.sparse.major" in pax):
            size, pieces, stored = self._pax_sparse(pax, sparse, stored)
            name = pax.get(b"GNU.sparse.name", name)
            self._check_pieces(name, size, pieces, stored)
        return Entry(
            name,
            kind,
            self._number(block[100:108]) & 0o7777,
            self._decimal(pax[b"uid"]) if b"uid" in pax else self._number(block[108:116]),
            self._decimal(pax[b"gid"]) if b"gid" in pax else self._number(block[116:124]),
            self._time(pax[b"mtime"]) if b"mtime" in pax else self._number(block[136:148]) * 1_000_000_000,
            link,
            size,
            tuple((key[len(_XATTR) :], value) for key, value in pax.items() if key.startswith(_XATTR)) if pax else (),
            pieces,
        )

    def _time(self, value: bytes) -> int:
        whole, _, part = value.partition(b".")
        negative = whole.startswith(b"-")
        digits = whole[1:] if negative else whole
        if not digits.isdigit() or len(digits) > 12 or (part and not part.isdigit()):
            raise self._problem(f"a pax header with the time {value[:40]!r}")
        nanoseconds = int(digits) * 1_000_000_000 + int(part[:9].ljust(9, b"0"))
        return -nanoseconds if negative else nanoseconds

    def _old_sparse(self, block: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
        rows = [block[386 + 24 * n : 410 + 24 * n] for n in range(4)]
        size, more = self._number(block[483:495]), block[482]
        while more:
            extension = self._take(BLOCK)
            rows += [extension[24 * n : 24 * n + 24] for n in range(21)]
            more = extension[504]
        pairs = [(self._number(row[:12]), self._number(row[12:])) for row in rows if row[0]]
        return size, tuple(pairs)

    def _pax_sparse(
        self, pax: dict[bytes, bytes], sparse: list[bytes], stored: int
    ) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """Return the size of the file, its pieces, and how many bytes of content are left to read."""
        size = self._decimal(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size") or b"")
        if b"GNU.sparse.major" in pax:
            numbers, taken = self._map_in_front(stored)
            stored -= taken
        else:
            written = sparse or pax[b"GNU.sparse.map"].split(b",")
            numbers = [self._decimal(number) for number in written if number]
        if len(numbers) % 2:
            raise self._problem("a sparse file with half a map")
        return size, tuple(zip(numbers[::2], numbers[1::2], strict=True)), stored

    def _map_in_front(self, stored: int) -> tuple[list[int], int]:
        """Read the map of sparse format 1.0: lines of decimal numbers, their count first, in whole blocks before the
        content. Return the numbers, and the bytes that they took.
        """
        text, taken, wanted = b"", 0, 1
        while (lines := text.split(b"\n"))[:-1] == [] or len(lines) - 1 < wanted:
            taken += BLOCK
            if taken > min(stored, _LARGEST_SPECIAL):
                raise self._problem("a sparse file without its map")
            text += self._take(BLOCK)
            if b"\n" in text:
                wanted = 1 + 2 * self._decimal(text.split(b"\n", 1)[0])
        return [self._decimal(line) for line in lines[1:wanted]], taken

    def _check_pieces(self, name: bytes, size: int, pieces: tuple[tuple[int, int], ...], stored: int) -> None:
        end = 0
        for offset, length in pieces:
            if offset < end or length < 0 or offset + length > size:
                raise self._problem(f"{_shown(name)}: a sparse file with the piece {offset}+{length} of {size} bytes")
            end = offset + length
        if sum(length for _, length in pieces) != stored:
            raise self._problem(f"{_shown(name)}: a sparse file whose map is not that of its content")


def _shown(name: bytes) -> str:
    return name[:200].decode("utf-8", "replace")


def show(name: bytes) -> str:
    """Return `name` for the text of an error."""
    return repr(_shown(name))
