"""Large heaps in huge pages before they are forked: a fork copies one entry per page of memory, and an exit drops it.

With 500 MB in pages of 4 KiB a fork takes 8 to 20 ms, in huge pages (2 MiB) about 1 ms. To fold them costs 0.3 ms per
MiB, once, or up to 3 ms in a virtual machine whose host has to find the memory first; so it is done where the tests
left repay it, by what forks took and the first pages take. Source: madvise(2), MADV_COLLAPSE (Linux 6.1).

Python's small objects lie in arenas of 1 MiB, which the kernel joins to mappings of some 4 to 16 MiB. Where every test
writes a huge page would fall apart with the next fork, and those of its pages that are pinned (see `pages`) would keep
the others from being shared: such an area stays in small pages. Most of a large heap is nobody's any more but was
imported, collected or reported. It falls apart bit by bit where each test has its own item, and all of it in a full
collection of garbage; so it is folded anew whenever the heap has grown.
"""

from __future__ import annotations

import errno
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from pytest_nsbox.kernel.memory import HUGE_PAGE, anonymous_mappings, area_of, collapse
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MIB: Final = 1 << 20
LARGE: Final = 4 * MIB  # mappings below this are left alone: the least that surely holds a whole huge page
FULL: Final = 0.8  # of a mapping must be in memory: the kernel fills the holes of what it folds
GROWN: Final = 16 * MIB  # since the last look: less is not worth another one
REPAID_BY: Final = 60  # forks, at the least
SAVED: Final = 0.5  # of the time of a fork that copies entries of small pages; the rest of it, and of a test, stays
AT_ONCE: Final = 16  # huge pages, between looks at the clock
LOOK_EVERY: Final = 16  # tests
FEW: Final = 16  # small pages that every test writes to do not keep the others of an area from being folded
_NOT_NOW: Final = (errno.ENOMEM, errno.EBUSY)  # no huge page is free, or our cgroup has no room for one


class HugePages:
    """Folds the large mappings of pytest's process when it has grown and enough tests are left."""

    def __init__(self) -> None:
        self._folded: set[int] = set()  # numbers of areas, each as large as a huge page
        self._resident = 0
        self._tests = 0
        self._tests_left = 0
        self._fork_took = math.inf  # seconds, the last one
        self._due = False
        self._works = True

    def before_fork(self, tests_left: int, ask: Callable[[], bool]) -> None:
        """Look now and then if the heap has grown; costs a few microseconds otherwise.

        ask  has tests tell which pages they write to, whereupon `settle` is called; False if none will
        """
        self._tests += 1
        self._tests_left = tests_left
        if not self._works or tests_left < REPAID_BY or self._tests % LOOK_EVERY != 1:
            return
        resident = _resident()
        if resident - self._resident < GROWN:
            return
        self._resident = resident
        self._due = True
        if not ask():
            self.settle([])

    def rest(self) -> None:
        """Fold nothing any more."""
        self._works = self._due = False

    def forked(self, seconds: float) -> None:
        """Note what a fork took."""
        self._fork_took = seconds

    def settle(self, written: list[int]) -> list[int]:
        """Fold what is due, while nothing is pinned; return which of the pages (numbers) that every test writes to are
        to be pinned.
        """
        if self._due:
            self._due = False
            self._fold(Counter(map(area_of, written)))
        return [page for page in written if area_of(page) not in self._folded]

    def _fold(self, written: Counter[int]) -> None:
        self._folded = {area for area in self._folded if written[area] < FEW}

        def runs_in(mappings: Iterable[tuple[int, int]]) -> list[range]:
            return [run for each in mappings for run in _runs(area for area in _areas(*each) if written[area] < FEW)]

        # Few programs have anything to fold, and to look at what is in memory takes milliseconds.
        mappings = anonymous_mappings(read_text("/proc/self/maps"))
        large = [(start, end) for start, end in mappings if end - start >= LARGE]
        runs = runs_in(large_mappings(_smaps())) if runs_in(large) else []
        wanted = sum(map(len, runs))
        worth = SAVED * self._tests_left * self._fork_took * wanted * HUGE_PAGE / max(self._resident, 1)
        done, began = 0, time.perf_counter()
        for areas in _portions(runs):
            try:
                collapse(areas.start * HUGE_PAGE, len(areas) * HUGE_PAGE)
            except KernelError as error:
                # Some page was in use, and all others are folded.
                if error.errno != errno.EAGAIN:
                    self._works = error.errno in _NOT_NOW  # else an older kernel, or forbidden
                    return
            self._folded.update(areas)
            done += len(areas)
            if (time.perf_counter() - began) / done * wanted > worth:
                return


def _portions(runs: Iterable[range]) -> Iterator[range]:
    """Parts of these runs, in their order: a single area first, to see what it costs."""
    size = 1
    for run in runs:
        rest = run
        while rest:
            yield rest[:size]
            rest, size = rest[size:], AT_ONCE


def _areas(start: int, end: int) -> range:
    return range(-(-start // HUGE_PAGE), end // HUGE_PAGE)


def _runs(numbers: Iterable[int]) -> Iterator[range]:
    run = range(0)
    for number in numbers:
        if number != run.stop:
            if run:
                yield run
            run = range(number, number)
        run = range(run.start, number + 1)
    if run:
        yield run


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
