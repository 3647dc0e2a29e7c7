"""Libraries are found where the loader finds them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from pytest_nsbox.images import elf


def cache_of(entries: list[tuple[str, str]]) -> bytes:
    """Return an ld.so.cache of (name, path) entries. Source: glibc's dl-cache.h."""
    names, at = b"", 48 + 24 * len(entries)
    rows = []
    for name, place in entries:
        key, value = at + len(names), at + len(names) + len(name) + 1
        names += name.encode() + b"\0" + place.encode() + b"\0"
        rows.append(struct.pack("=iIIIQ", 0, key, value, 0, 0))
    return b"glibc-ld.so.cache1.1" + struct.pack("=I", len(entries)) + bytes(24) + b"".join(rows) + names


def loaded_libc() -> str:
    return next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)


def test_a_library_of_another_word_size_is_passed_over(tmp_path: Path) -> None:
    libc = loaded_libc()
    content = bytearray(Path(libc).read_bytes())
    content[4] = 3 - content[4]
    other = tmp_path / "other.so"
    other.write_bytes(content)
    cache = tmp_path / "ld.so.cache"
    cache.write_bytes(cache_of([("libc.so.6", str(other)), ("libc.so.6", libc)]))
    assert elf.read_cache(str(cache)) == {"libc.so.6": [str(other), libc]}
    assert elf.read_needs(str(other)) is None
    found = elf.closure([os.path.realpath("/bin/sh")], [], str(cache))
    assert libc in found
    assert str(other) not in found


def test_a_library_that_the_cache_does_not_know_is_where_it_was_loaded_from(tmp_path: Path) -> None:
    libc = loaded_libc()
    assert libc in elf.closure([os.path.realpath("/bin/sh")], [libc], str(tmp_path / "none"))
    assert libc not in elf.closure([os.path.realpath("/bin/sh")], [], str(tmp_path / "none"))
