"""Which tests tell of their pages, and what is made of it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from pytest_nsbox import pages
from pytest_nsbox.hugepages import HugePages
from pytest_nsbox.kernel.memory import PAGE
from pytest_nsbox.policy.errors import KernelError


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """The ranges that would be pinned, instead of that."""
    found: list[list[tuple[int, int]]] = []

    class Pins:
        def __init__(self, ranges: list[tuple[int, int]]) -> None:
            found.append(ranges)

        def close(self) -> None:
            found.append([])

        def release(self) -> None:
            found.append([])

    monkeypatch.setattr(pages, "Pins", Pins)
    return found


@pytest.mark.usefixtures("pinned")
def test_the_second_test_tells_and_those_after_it_until_two_have_and_again_after_some_and_after_many():
    found = pages.Pages()
    telling = []
    some, many = pages.LEARN_AGAIN
    for number in range(1, some + 2 * many):
        if found.before_fork(10_000):
            telling.append(number)
            if number < some:
                found.learn([] if number == 3 else [1])  # the third could not tell
    again = some + 1
    last = again + many
    assert telling == [2, 3, 4, *range(again + 1, again + 5), *range(last + 1, last + 5)]


def test_a_short_run_learns_nothing():
    found = pages.Pages()
    assert not any(found.before_fork(20 - number) for number in range(20))


def test_what_two_tests_have_in_common_is_pinned(pinned: list[list[tuple[int, int]]]):
    found = pages.Pages()
    found.learn([1, 2, 5])
    assert pinned == []
    found.learn([2, 5, 9])
    assert pinned == [[(2 * PAGE, PAGE), (5 * PAGE, PAGE)]]
    found.close()
    assert pinned[1:] == [[]]
    found.close()
    assert len(pinned) == 2


def test_nothing_is_pinned_where_tests_tell_for_it_would_look_as_if_they_had_written_to_it(
    pinned: list[list[tuple[int, int]]],
):
    found = pages.Pages()
    found.before_fork(10_000)
    for _ in range(2):
        assert found.before_fork(10_000)
        assert pinned == []
        found.learn([2, 5])
    assert pinned == [[(2 * PAGE, PAGE), (5 * PAGE, PAGE)]]
    while not found.before_fork(10_000):
        assert len(pinned) == 1
    assert pinned[1:] == [[]]


@pytest.mark.parametrize("begin", [lambda found: None, pages.Pages.move], ids=["in pytest's process", "in a zygote"])
def test_a_test_tells_late_what_was_forked_ahead_of_others(
    pinned: list[list[tuple[int, int]]], begin: Callable[[pages.Pages], None]
):
    found = pages.Pages()
    begin(found)
    asked = [number for number in range(pages.LEARN_FROM.stop + 1) if found.before_fork(10_000)]
    assert len(asked) >= 2
    found.learn([2, 5])
    assert not found.before_fork(10_000)
    found.learn([2, 5])
    assert pinned == [[(2 * PAGE, PAGE), (5 * PAGE, PAGE)]]


def test_what_was_folded_is_not_pinned(monkeypatch: pytest.MonkeyPatch, pinned: list[list[tuple[int, int]]]):
    monkeypatch.setattr(HugePages, "settle", lambda self, pages: [page for page in pages if page != 5])
    found = pages.Pages()
    for _ in range(2):
        found.learn([2, 5])
    assert pinned == [[(2 * PAGE, PAGE)]]
    found = pages.Pages()
    for _ in range(2):
        found.learn([5])
    assert len(pinned) == 1


@pytest.mark.parametrize("told", [[], list(range(1, pages.MOST + 2))], ids=["none told", "too many to pin"])
def test_what_is_due_is_folded_whatever_tests_tell(
    monkeypatch: pytest.MonkeyPatch, pinned: list[list[tuple[int, int]]], told: list[int]
):
    def settle(self: HugePages, written: list[int]) -> list[int]:
        settled.append(written)
        return written

    settled: list[list[int]] = []
    monkeypatch.setattr(HugePages, "settle", settle)
    found = pages.Pages()
    for _ in range(pages.LEARN_AGAIN[0]):
        if found.before_fork(10_000):
            found.learn(told)
    assert settled == [told]
    assert pinned == []


def test_pins_that_are_still_there_are_let_go_for_new_ones(pinned: list[list[tuple[int, int]]]):
    found = pages.Pages()
    for page in (2, 3):
        found._ask()
        for _ in range(2):
            found.learn([page])
    assert pinned == [[(2 * PAGE, PAGE)], [], [(3 * PAGE, PAGE)]]


@pytest.mark.usefixtures("pinned")
def test_tests_are_asked_again_when_the_heap_has_grown(monkeypatch: pytest.MonkeyPatch):
    def grow(self: HugePages, tests_left: int, ask: Callable[[], bool]) -> None:
        if tests_left == 100:
            assert ask()

    monkeypatch.setattr(HugePages, "before_fork", grow)
    found = pages.Pages()
    told = []
    for left in range(200, 50, -1):
        if found.before_fork(left):
            told.append(left)
            found.learn([1])
    soon = 200 - pages.LEARN_AGAIN[0]
    assert told == [199, 198, soon - 1, soon - 2, 100, 99]


@pytest.mark.parametrize("told", [None, "12", [1.5], [-1], [0], [1 << 60], [True], [[1]], {"1": 2}])
def test_rubbish_is_ignored(told: object, pinned: list[list[tuple[int, int]]]):
    found = pages.Pages()
    found.learn(told)
    found.learn(told)
    assert pinned == []


def test_more_than_tests_have_in_common_is_not_pinned(pinned: list[list[tuple[int, int]]]):
    found = pages.Pages()
    for _ in range(2):
        found.learn(list(range(1, pages.MOST + 2)))
    assert pinned == []


def test_where_nothing_can_be_pinned_nobody_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    def refuse(ranges: object) -> None:
        raise KernelError("io_uring_setup", "1", 1)

    monkeypatch.setattr(pages, "Pins", refuse)
    found = pages.Pages()
    found.learn([1, 2])
    found.learn([1, 2])
    assert not any(found.before_fork(10_000) for _ in range(2 * pages.LEARN_AGAIN[1]))


def test_a_process_that_cannot_look_into_itself_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    def refuse(most: int) -> list[int]:
        raise PermissionError("/proc/self/pagemap")

    monkeypatch.setattr(pages, "written_since_fork", refuse)
    assert pages.written() == []


def test_an_older_kernel_is_given_anonymous_pages_however_large_their_mappings_are(monkeypatch: pytest.MonkeyPatch):
    given: list[list[tuple[int, int]]] = []

    def refuse_once(ranges: list[tuple[int, int]]) -> object:
        given.append(ranges)
        if len(given) == 1:
            raise KernelError("register", "", errno.EFAULT)
        return object()

    maps = f"{PAGE:x}-{3 * PAGE:x} rw-p 0 00:00 0\n{9 * PAGE:x}-{1 << 46:x} rw-p 0 00:00 0 \n0-1000 r--p 0 08:01 7 /a\n"
    monkeypatch.setattr(pages, "Pins", refuse_once)
    monkeypatch.setattr(pages, "read_text", lambda _path: maps)
    found = pages.Pages()
    for _ in range(2):
        found.learn([2, 5, 12])
    assert given == [[(2 * PAGE, PAGE), (5 * PAGE, PAGE), (12 * PAGE, PAGE)], [(2 * PAGE, PAGE), (12 * PAGE, PAGE)]]
