"""What a container's processes print: read from pipes as it comes, kept in the order in which it came.

The warden reads, whether anybody asks or not, so no amount of output stops a container. A little is kept in memory,
more in a file without a name in the session's directory. Both hold frames: one byte for the stream (1 stdout, 2
stderr), four for a length (big endian), and what was printed.
"""

from __future__ import annotations

import os

STDOUT = 1
STDERR = 2
_CHUNK = 1 << 16
_IN_MEMORY = 1 << 16
_HEADER = 5
_MOST_AT_ONCE = 1 << 20


class Output:
    """The log of one process."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._file = -1
        self._failed = ""
        # Bytes of all frames.
        self.size = 0

    def add(self, stream: int, data: bytes) -> None:
        """Append what came on `stream`."""
        frame = bytes((stream,)) + len(data).to_bytes(4, "big") + data
        self.size += len(frame)
        if self._file < 0:
            self._parts.append(frame)
            self._size += len(frame)
            if self._size <= _IN_MEMORY:
                return
            frame, self._parts = b"".join(self._parts), []
            self._file = _nameless_file()
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._failed:
            return
        rest = memoryview(frame)
        try:
            begun = os.lseek(self._file, 0, os.SEEK_CUR)
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                # Half a frame would hide all that follows.
                os.ftruncate(self._file, begun)
                raise
        except OSError as error:
            self.size = begun
            self._failed = f"\nnsbox: the rest of the output is lost: {error.strerror}\n"

    def read(self) -> tuple[bytes, int]:
        """Return the frames in memory, and a descriptor of the file with those before them (-1 if there is none), which
        the caller closes.
        """
        note = b"\2" + len(self._failed).to_bytes(4, "big") + self._failed.encode() if self._failed else b""
        file = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC) if self._file >= 0 else -1
        return b"".join(self._parts) + note, file

    def since(self, at: int) -> bytes:
        """Return some of what comes after the first `at` bytes of the frames, from there on."""
        if self._file >= 0:
            return os.pread(self._file, _MOST_AT_ONCE, at)
        return b"".join(self._parts)[at:]

    def close(self) -> None:
        """Forget all of it."""
        self._parts = []
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _nameless_file() -> int:
    # The warden's working directory is the session's. Not every file system has O_TMPFILE.
    name = f"log-{os.urandom(6).hex()}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(name)
    return fd


def read_pipe(fd: int) -> bytes | None:
    """Return what is in a pipe now, some of it; b"" at its end, None if it is empty."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None


def split(frames: bytes) -> list[tuple[int, bytes]]:
    """Return (stream, what was printed) for each of `frames`; a last one that is not whole is left out."""
    found = []
    at = 0
    while at + _HEADER <= len(frames):
        end = at + _HEADER + int.from_bytes(frames[at + 1 : at + _HEADER], "big")
        if end > len(frames):
            break
        found.append((frames[at], frames[at + _HEADER : end]))
        at = end
    return found
