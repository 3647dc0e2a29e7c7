"""Large heaps in huge pages before they are forked: a fork copies one entry per page of memory, and an exit drops it.

With 500 MB in pages of 4 KiB a fork takes some 20 ms, in huge pages (2 MiB) about 1 ms. To fold them costs about 2.4 ms
per MiB, once, so it is done where the tests left repay it. Source: madvise(2), MADV_COLLAPSE (Linux 6.1).

Python's small objects lie in arenas of 1 MiB, which the kernel joins to mappings of some 4 to 16 MiB. Those that tests
write to fall apart into small pages again, one entry each; most of a large heap is nobody's any more but was imported,
collected or reported.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pytest_nsbox.kernel.memory import collapse
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os, read_text

if TYPE_CHECKING:
    from collections.abc import Callable

MIB: Final = 1 << 20
LARGE: Final = 4 * MIB  # mappings below this are left alone: the least that surely holds a whole huge page
FULL: Final = 0.8  # of a mapping must be in memory: the kernel fills the holes of what it folds
GROWN: Final = 16 * MIB  # since the last look: less is not worth another one
REPAID_BY: Final = 60  # forks
LOOK_EVERY: Final = 16  # tests


class HugePages:
    """Folds the large mappings of pytest's process when it has grown and enough tests are left."""

    def __init__(self) -> None:
        self._folded: set[tuple[int, int]] = set()
        self._resident = 0
        self._tests = 0
        self._works = True

    def before_fork(self, tests_left: int, unpin: Callable[[], None]) -> None:
        """Look now and then; costs a few microseconds otherwise.

        unpin  called before anything is folded: nobody can move a page that is pinned (see `pages`)
        """
        self._tests += 1
        if not self._works or tests_left < REPAID_BY or self._tests % LOOK_EVERY != 1:
            return
        resident = _resident()
        if resident - self._resident < GROWN:
            return
        self._resident = resident
        new = [mapping for mapping in large_mappings(_smaps()) if mapping not in self._folded]
        if new:
            unpin()
        for start, end in new:
            self._folded.add((start, end))
            try:
                collapse(start, end - start)
            except KernelError as error:
                # Some page was in use, and all others of the mapping are folded.
                if error.errno != errno.EAGAIN:  # an older kernel, no huge page free, or forbidden
                    self._works = False
                    return


def large_mappings(smaps: str) -> list[tuple[int, int]]:
    """Addresses (start, end) of private anonymous mappings that are large, in memory, and not in huge pages yet.

    ``smaps`` is the text of /proc/self/smaps (proc(5)).
    """
    found = []
    start = end = 0
    sizes: dict[str, int] = {}
    for line in [*smaps.splitlines(), "0-0 end"]:
        first, _, rest = line.partition(" ")
        if first.endswith(":"):
            sizes[first] = int(rest.split()[0]) * 1024 if rest.strip().endswith("kB") else 0
            continue
        size = end - start
        in_memory, folded = sizes.get("Anonymous:", 0), sizes.get("AnonHugePages:", 0)
        if size - folded >= LARGE and in_memory >= FULL * size:
            found.append((start, end))
        start, end, sizes = 0, 0, {}
        fields = rest.split()
        if len(fields) >= 4 and fields[0] == "rw-p" and fields[3] == "0":
            start, end = (int(address, 16) for address in first.split("-"))
    return found


def _resident() -> int:
    return int(read_text("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _smaps() -> str:
    return read_text("/proc/self/smaps")
