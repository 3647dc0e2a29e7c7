"""The pages of pytest's memory that every test writes to, copied by the fork itself.

After a fork the first write to a page, on either side, is a page fault: about 1,300 in a test's process and a thousand
in pytest's, for the reference counts that Python keeps in its objects. It is the same pages again and again. So two of
the first tests tell which ones theirs were, and those of both are pinned, which makes the kernel copy them in the fork:
half the price of a fault, and none on pytest's side. What pytest itself writes to settles once tests follow each other
as they will, so others are asked some tests later, and again after many. Nothing but the time it takes can tell the
difference.
"""

from __future__ import annotations

import bisect
import contextlib
from typing import TYPE_CHECKING, Final

from pytest_nsbox.hugepages import HugePages
from pytest_nsbox.kernel.memory import PAGE, Pins, anonymous_mappings, as_ranges, written_since_fork
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import read_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

MOST: Final = 4096  # pages; a test that writes to more is not like the others
LEARN_FROM: Final = range(2, 6)  # which tests, counted from the last time of learning; two are enough
LEARN_IN_ZYGOTE: Final = 3  # tests
TOLD_WITHIN: Final = 8  # tests after the last one that was asked: it may have been forked ahead of some others
LEARN_AGAIN: Final = (16, 500)  # tests after the first time, and then each time: pytest's own memory moves on
REPAID_BY: Final = 30  # tests


class Pages:
    """pytest's process."""

    def __init__(self) -> None:
        self._huge_pages = HugePages()
        self._works = True
        self._asks = True
        self._tests = 0
        self._due = LEARN_AGAIN[0]
        self._learn_from = LEARN_FROM
        self._seen: set[int] | None = None
        self._pins: Pins | None = None
        self._pinned: list[int] = []
        self.pass_on: Callable[[list[int]], None] | None = None  # to the zygote whose tests tell theirs

    @property
    def are_settled(self) -> bool:
        """Whether nobody is asked."""
        return not self._asks

    def move(self) -> None:
        """In a zygote: pin what pytest's process had pinned, and find out what its own tests write to. That is less."""
        self.close()
        self._huge_pages.rest()
        self._learn_from = LEARN_FROM[:2]  # they come in a row, and nothing disturbs them
        self._tests, self._due = LEARN_FROM.stop, LEARN_FROM.stop + LEARN_IN_ZYGOTE
        if self._pinned:
            self._pin(self._pinned)

    def before_fork(self, tests_left: int) -> bool:
        """Count a test; return whether it is to tell the pages that it wrote to."""
        self._huge_pages.before_fork(tests_left, self._ask)
        self._tests += 1
        if self._tests > self._due:
            self._due = LEARN_AGAIN[1]
            self._ask()
        if self._asks and self._tests > self._learn_from.stop + TOLD_WITHIN:
            self._settle([])
        tells = self._asks and self._tests in self._learn_from and tests_left > REPAID_BY
        if tells:  # a page that the fork copied would look as if the test had written to it
            self._let_go()
        return tells

    def forked(self, seconds: float) -> None:
        """Note what a fork took."""
        self._huge_pages.forked(seconds)

    def _ask(self) -> bool:
        """Ask the next tests; False if nothing can be pinned here."""
        self._asks, self._seen = self._works, None
        self._tests = min(self._tests, 1)
        return self._works

    def learn(self, pages: object) -> None:
        """Take what a test told: rubbish costs time, and nothing else."""
        if not _are_pages(pages):
            return
        if self.pass_on is not None:
            if len(pages) <= MOST:
                self.pass_on(pages)
            return
        if not self._asks:
            return
        if not self._seen:
            self._seen = set(pages)
            return
        common, self._seen = sorted(self._seen.intersection(pages)), None
        self._settle(common)

    def _settle(self, written: list[int]) -> None:
        self._asks = False
        chosen = self._huge_pages.settle(written)
        if chosen and len(written) <= MOST:
            self._pin(chosen)

    def _let_go(self) -> None:
        pins, self._pins = self._pins, None
        if pins is not None:
            with contextlib.suppress(KernelError):
                pins.release()

    def _pin(self, pages: list[int]) -> None:
        self._let_go()
        # Linux before 6.5 does not pin private pages of files (a library's variables).
        for choose in (list, _in_anonymous_mappings):
            with contextlib.suppress(KernelError):
                self._pins = Pins(as_ranges(choose(pages)))
                self._pinned = pages
                return
        self._works = False

    def close(self) -> None:
        """Let them go, or in a child the descriptor that it has no use for."""
        if self._pins is not None:
            self._pins.close()
            self._pins = None


def _are_pages(told: object) -> TypeGuard[list[int]]:
    return isinstance(told, list) and told != [] and all(type(page) is int and 0 < page < 1 << 52 for page in told)


def _in_anonymous_mappings(pages: list[int]) -> list[int]:
    mappings = sorted(anonymous_mappings(read_text("/proc/self/maps")))
    starts = [start for start, _ in mappings]
    found = []
    for page in pages:  # and not by mapping: one may be of terabytes that nobody uses
        number = bisect.bisect_right(starts, page * PAGE) - 1
        if number >= 0 and page * PAGE < mappings[number][1]:
            found.append(page)
    return found


def written() -> list[int]:
    """In a test's process, at its end: numbers of the pages that it wrote to. None where the test left it no way to."""
    try:
        return written_since_fork(MOST)
    except Exception:  # noqa: BLE001 - the test may have left anything of this process
        return []
