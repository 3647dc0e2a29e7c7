"""Memory of this process: huge pages, and pages that a fork copies at once. Source: madvise(2),
io_uring_register(2).
"""

from __future__ import annotations

import struct
import sys

from pytest_nsbox.kernel import libc
from pytest_nsbox.real import os, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MADV_COLLAPSE = 25  # Linux 6.1
_SYS_IO_URING_SETUP = 425
_SYS_IO_URING_REGISTER = 427
_REGISTER_BUFFERS = 0
_UNREGISTER_BUFFERS = 1
_MOST_RANGES = 1 << 14  # IORING_MAX_REG_BUFFERS

PAGE = os.sysconf("SC_PAGE_SIZE")
# What one entry of the second level of page tables maps: a page of them has as many entries of 8 bytes as fit.
HUGE_PAGE = PAGE * (PAGE // 8)
# Of the most significant of the eight bytes of an entry of pagemap: mapped only here; in memory. And its place.
_EXCLUSIVE, _PRESENT = 1 << 0, 1 << 7
_FLAGS = 7 if sys.byteorder == "little" else 0
# That byte as 1 if it says both, else as 0.
_BOTH = bytes(int(flags & _EXCLUSIVE != 0 and flags & _PRESENT != 0) for flags in range(256))


def collapse(address: int, length: int) -> None:
    """Put the huge pages that lie wholly in [address, address + length) in the place of small ones, now."""
    libc.call("madvise", f"{address:#x}+{length}", address, length, _MADV_COLLAPSE)


class Pins:
    """Memory that stays where it is, as buffers of an io_uring that nobody uses.

    Nobody may find such pages elsewhere, so a fork copies them for the child there and then, and the parent goes on
    writing to its own. Other private pages are shared until one of the two writes, which costs each of them a page
    fault, and the copy all the same. Limited by RLIMIT_MEMLOCK.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Pin `ranges` (address, bytes). KernelError: no io_uring here, too much memory, or mappings that cannot be."""
        parameters = libc.Buffer(bytes(120))
        self.fd = libc.syscall("io_uring_setup", "1", _SYS_IO_URING_SETUP, 1, parameters.address)
        try:
            os.set_inheritable(self.fd, False)
            ranges = ranges[:_MOST_RANGES]
            vectors = b"".join(struct.pack("=2Q", address, length) for address, length in ranges)
            libc.syscall(
                "io_uring_register", "buffers", _SYS_IO_URING_REGISTER, self.fd, _REGISTER_BUFFERS, vectors, len(ranges)
            )
        except BaseException:
            os.close(self.fd)
            raise

    def release(self) -> None:
        """Let the memory go, now; in a forked child, where it is the parent's memory, use `close`."""
        try:
            libc.syscall("io_uring_register", "no buffers", _SYS_IO_URING_REGISTER, self.fd, _UNREGISTER_BUFFERS, 0, 0)
        finally:
            self.close()

    def close(self) -> None:
        """Let the memory go at some time. In a forked child this only closes the descriptor that it inherited."""
        os.close(self.fd)


def as_ranges(pages: list[int]) -> list[tuple[int, int]]:
    """Sorted page numbers as ranges (address, bytes)."""
    ranges: list[tuple[int, int]] = []
    for page in pages:
        if ranges and ranges[-1][0] + ranges[-1][1] == page * PAGE:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + PAGE)
        else:
            ranges.append((page * PAGE, PAGE))
    return ranges


def anonymous_mappings(maps: str) -> list[tuple[int, int]]:
    """Addresses (start, end) of private writable memory that is no file's; ``maps`` is of the form of proc(5)."""
    return [(start, end) for start, end, inode in _private(maps) if inode == "0"]


def _private(maps: str) -> list[tuple[int, int, str]]:
    found = []
    for line in maps.splitlines():
        addresses, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        if permissions == "rw-p":
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end, inode))
    return found


def written_since_fork(most: int) -> list[int]:
    """In a forked process: numbers of the pages that it has to itself, mostly because it wrote to them.

    Not many more than `most`. A whole huge page is not among them: it looks like that to one side when the other has
    just got small ones in its place. OSError if the process may not look into itself. Source: proc(5), pagemap.
    """
    per_huge_page = HUGE_PAGE // PAGE
    pages: list[int] = []
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end, _ in _private(read_text("/proc/self/maps")):
            first = start // PAGE
            own = _places(os.pread(fd, (end - start) // PAGE * 8, first * 8)[_FLAGS::8].translate(_BOTH), first)
            if len(own) >= per_huge_page:
                own = _without_whole(own, per_huge_page)
            pages += own
            if len(pages) > most:
                break
    finally:
        os.close(fd)
    return pages


def _places(marks: bytes, first: int) -> list[int]:
    """`first` plus the index of each byte that is 1: few of many, so it is for `find` to look for them."""
    found = []
    place = marks.find(1)
    while place >= 0:
        found.append(first + place)
        place = marks.find(1, place + 1)
    return found


def area_of(page: int) -> int:
    """Return the number of the area, as large as a huge page and aligned like one, that a page (by number) lies in."""
    return page * PAGE // HUGE_PAGE


def _without_whole(pages: list[int], per_huge_page: int) -> list[int]:
    found: dict[int, list[int]] = {}
    for page in pages:
        found.setdefault(area_of(page), []).append(page)
    return [page for area in found.values() if len(area) < per_huge_page for page in area]
