"""What a program or library of ELF is loaded with. Source: elf(5), ld.so(8), glibc's dl-cache.h."""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_LARGEST = 64 << 20


class Needs(NamedTuple):
    """The loader (programs only, else ""), the libraries by name, and directories to look in first."""

    loader: str
    libraries: tuple[str, ...]
    directories: tuple[str, ...]


def read_needs(path: str) -> Needs | None:
    """Return what the file at `path` needs; None if it is no ELF file that this interpreter could load (by word size,
    byte order and machine).
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:4] != b"\x7fELF" or _kind_of(head) != _own_kind():
                return None
            wide = head[4] == 2
            table, size, count = _program_headers(head, wide=wide)
            file.seek(table)
            rows = [_segment(file.read(size), wide=wide) for _ in range(count)]
            return _needs(file.fileno(), rows, os.path.dirname(os.path.realpath(path)), wide=wide)
    except (OSError, struct.error, ValueError, IndexError):
        # Cut off, or made up: the loader would not take it either.
        return None


def _kind_of(head: bytes) -> tuple[bytes, bytes]:
    """Return word size and byte order, and the machine."""
    return head[4:6], head[18:20]


@functools.cache
def _own_kind() -> tuple[bytes, bytes]:
    with open("/proc/self/exe", "rb") as file:
        return _kind_of(file.read(64))


def _program_headers(head: bytes, *, wide: bool) -> tuple[int, int, int]:
    table = struct.unpack_from("=Q" if wide else "=I", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from("=HH", head, 54 if wide else 42)
    return table, size, count


def _segment(row: bytes, *, wide: bool) -> tuple[int, int, int, int]:
    """Return kind, offset in the file, address, size in the file."""
    if wide:
        kind, _, offset, address, _, size = struct.unpack_from("=IIQQQQ", row)
    else:
        kind, offset, address, _, size = struct.unpack_from("=IIIII", row)
    return kind, offset, address, size


def _needs(fd: int, rows: list[tuple[int, int, int, int]], origin: str, *, wide: bool) -> Needs:
    loader, entries = "", []
    pair = struct.Struct("=QQ" if wide else "=II")
    for kind, offset, _, size in rows:
        if size > _LARGEST:
            raise ValueError("no such segment can be read")
        if kind == _PT_INTERP:
            loader = os.fsdecode(os.pread(fd, size, offset).rstrip(b"\0"))
        elif kind == _PT_DYNAMIC:
            data = os.pread(fd, size, offset)
            entries = list(pair.iter_unpack(data[: len(data) - len(data) % pair.size]))
    address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if address is None:
        return Needs(loader, (), ())
    base = next(
        offset + address - start
        for kind, offset, start, size in rows
        if kind == _PT_LOAD and start <= address < start + size
    )

    def text(at: int) -> str:
        return os.fsdecode(os.pread(fd, 4096, base + at).split(b"\0", 1)[0])

    libraries = tuple(text(value) for tag, value in entries if tag == _DT_NEEDED)
    paths = [text(value) for tag, value in entries if tag in (_DT_RUNPATH, _DT_RPATH)]
    places = [part for path in paths for part in path.split(":") if part]
    return Needs(loader, libraries, tuple(p.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for p in places))


def read_cache(path: str = _CACHE) -> dict[str, list[str]]:
    """Return {name: paths} of the libraries that the loader knows, the best first, those of other machines and word
    sizes among them; nothing where there is no such file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST)
        start = data.index(_CACHE_MAGIC)
        (count,) = struct.unpack_from("=I", data, start + 20)
        found: dict[str, list[str]] = {}
        for number in range(count):
            _, key, value = struct.unpack_from("=iII", data, start + 48 + 24 * number)
            name, place = (data[start + at : data.index(b"\0", start + at)] for at in (key, value))
            found.setdefault(os.fsdecode(name), []).append(os.fsdecode(place))
    except (OSError, ValueError, struct.error):
        return {}
    return found


def closure(paths: Iterable[str], loaded: Iterable[str], cache: str = _CACHE) -> set[str]:
    """Return the paths of all that the files `paths` are loaded with, as the loader looks them up.

    loaded  libraries that the process has already, wherever it found them
    cache   the loader's
    """
    known = read_cache(cache)
    by_name = {os.path.basename(path): path for path in loaded}
    found: set[str] = set()
    waiting = [needs for path in paths if (needs := read_needs(path)) is not None]
    while waiting:
        needs = waiting.pop()
        if needs.loader:
            found.add(needs.loader)
        for name in needs.libraries:
            places = [*(f"{directory}/{name}" for directory in needs.directories), *known.get(name, ())]
            for place in map(os.path.normpath, [*places, by_name.get(name, name)]):
                if place in found:
                    break
                # One for another machine, the loader passes over.
                below = read_needs(place)
                if below is not None:
                    found.add(place)
                    waiting.append(below)
                    break
    return found
