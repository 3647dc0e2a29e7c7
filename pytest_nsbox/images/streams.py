"""Bytes of archives: decompressed, counted against bombs, and hashed, in a thread beside the one that uses them."""

from __future__ import annotations

import hashlib
import importlib
import os
import queue
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

from pytest_nsbox.policy.errors import ImageError
from pytest_nsbox.policy.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

CHUNK = 1 << 20
# What an archive may hold: this much, and so many times its own size. Those of real systems hold up to some 20 times.
_FREE = 1 << 30
_RATIO = 200

_GZIP, _XZ, _BZIP2, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd"


class Readable(Protocol):
    """What is read in chunks and closed."""

    def read(self, count: int = -1, /) -> bytes:
        """Return up to `count` bytes, none at the end."""

    def close(self) -> None:
        """Let go of it."""


def read_all(file: Readable) -> Iterator[bytes]:
    """Yield what is in `file`."""
    while chunk := file.read(CHUNK):
        yield chunk


def decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield the bytes of an archive that may be compressed (gzip, xz, bzip2, zstd): what it is its first bytes tell.

    Raises ImageError for broken data, for a compression that this Python cannot undo, and for an archive that grows
    beyond all measure.
    """
    first = next(chunks, b"")
    make = _decompressor(first, name)
    if make is None:
        yield first
        yield from chunks
        return
    yield from _guarded(_decompress(_with_first(first, chunks), make, name), name)


def is_compressed(first: bytes) -> bool:
    """Say if an archive that begins with `first` is compressed."""
    return first.startswith((_GZIP, _XZ, _BZIP2, _ZSTD))


def _with_first(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


def _decompressor(first: bytes, name: str) -> Callable[[], Any] | None:
    if first.startswith(_GZIP):
        import zlib

        return lambda: zlib.decompressobj(wbits=31)
    if first.startswith(_XZ):
        import lzma

        return lambda: lzma.LZMADecompressor(memlimit=1 << 30)
    if first.startswith(_BZIP2):
        import bz2

        return bz2.BZ2Decompressor
    if first.startswith(_ZSTD):
        try:
            zstd: Any = importlib.import_module("compression.zstd")
        except ImportError:
            raise ImageError(
                f"{name}: compressed with zstd, which Python can read since 3.14 (accepted here: plain, gzip, xz, "
                "bzip2; `zstd -d` makes it plain)"
            ) from None
        made: Callable[[], Any] = zstd.ZstdDecompressor
        return made
    return None


def _decompress(chunks: Iterator[bytes], make: Callable[[], Any], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (compressed bytes that were read so far, some decompressed bytes)."""
    engine, read, ended = make(), 0, False
    try:
        for chunk in chunks:
            read += len(chunk)
            rest, more = chunk, True
            while more:
                if ended:
                    # Several streams in a row are one, gzip(1), xz(1); zeros at the end are padding.
                    if not rest.strip(b"\0"):
                        break
                    engine, ended = make(), False
                # Never more than a chunk at once: a bomb must be seen before it has filled the memory.
                out = engine.decompress(rest, CHUNK)
                if out:
                    yield read, out
                if engine.eof:
                    ended, rest = True, engine.unused_data
                else:
                    rest = getattr(engine, "unconsumed_tail", b"")
                    more = bool(rest) or len(out) >= CHUNK or not getattr(engine, "needs_input", True)
    except (ImageError, GeneratorExit):
        raise
    except Exception as error:  # noqa: BLE001
        # zlib.error, LZMAError, ZstdError, OSError (bzip2): they have no base in common.
        raise ImageError(f"{name}: the archive is broken ({error})") from None
    if not ended:
        raise ImageError(f"{name}: the archive is cut off")


def _guarded(pairs: Iterator[tuple[int, bytes]], name: str) -> Iterator[bytes]:
    total = 0
    for read, out in pairs:
        total += len(out)
        if total > _FREE + _RATIO * read:
            raise ImageError(
                f"{name}: more than {_RATIO} times larger when it is unpacked ({format_size(total)} of "
                f"{format_size(read)}): a decompression bomb"
            )
        yield out


class Hashed:
    """The chunks of an iterator, taken and hashed in a thread of their own, a few ahead of whoever iterates this.

    As a context: the thread ends with it. `digest` is valid once all has been read.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=4)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="nsbox-archive", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()
        # Generators close what they read when they are closed, not when somebody forgets them.
        if isinstance(self._chunks, Generator):
            self._chunks.close()

    def _run(self) -> None:
        try:
            for chunk in self._chunks:
                if self._stopped:
                    return
                self._queue.put(chunk)
                self._hash.update(chunk)
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001  # raised again where the chunks are used
            self._queue.put(error)

    def __iter__(self) -> Iterator[bytes]:
        while (chunk := self._queue.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    @property
    def digest(self) -> str:
        """The sha256 of all that was read, in hex."""
        self._thread.join()
        return self._hash.hexdigest()


def check_space(directory: int, name: str) -> Callable[[int], None]:
    """Return what is called with the bytes about to be written; it raises ImageError before the last tenth of the file
    system is filled.
    """
    at = os.fstatvfs(directory)
    left = at.f_bavail * at.f_frsize - at.f_blocks * at.f_frsize // 20

    def written(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise ImageError(f"{name}: too large for what is free on the store's file system")

    return written
