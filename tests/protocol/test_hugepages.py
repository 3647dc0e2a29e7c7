"""Folding large heaps before they are forked."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import types

import pytest

from pytest_nsbox import hugepages
from pytest_nsbox.hugepages import FEW, LOOK_EVERY, MIB, REPAID_BY, HugePages, large_mappings
from pytest_nsbox.kernel.memory import HUGE_PAGE, PAGE, Pins, collapse
from pytest_nsbox.policy.errors import KernelError

SMAPS = """\
7f0000000000-7f0004000000 rw-p 00000000 00:00 0 
Size:              65536 kB
Anonymous:         {anonymous} kB
AnonHugePages:         {huge} kB
VmFlags: rd wr mr mw me ac
7f0010000000-7f0014000000 {flags} 00000000 00:00 {inode} {path}
Size:              65536 kB
Anonymous:         65536 kB
AnonHugePages:         0 kB
"""  # noqa: W291 - as the kernel prints it


def smaps(anonymous=65536, huge=0, flags="r--p", inode=0, path=""):
    return SMAPS.format(anonymous=anonymous, huge=huge, flags=flags, inode=inode, path=path)


def nobody():
    """Asked which pages are written to."""
    return False


def used_memory():
    """64 MiB, every page of which was written to, and their address."""
    memory = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for place in range(0, len(memory), 4096):
        memory[place] = 1
    return memory, ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_a_large_full_anonymous_mapping_is_found():
    assert large_mappings(smaps()) == [(0x7F0000000000, 0x7F0004000000)]


def test_a_mapping_is_found_again_when_it_has_grown_by_enough():
    assert large_mappings(smaps(huge=65536 - 4096)) == [(0x7F0000000000, 0x7F0004000000)]
    assert large_mappings(smaps(huge=65536 - 2048)) == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(smaps(anonymous=30000), id="half empty"),
        pytest.param(smaps(huge=65536), id="in huge pages already"),
        pytest.param(smaps(anonymous=0, flags="rw-s"), id="shared"),
        pytest.param(smaps(anonymous=0, flags="rw-p", inode=77, path="/usr/lib/x.so"), id="of a file"),
    ],
)
def test_other_mappings_are_left_alone(text):
    assert large_mappings(text) == []


def test_the_heap_of_a_process_is_put_into_huge_pages_when_enough_tests_are_left():
    memory, address = used_memory()
    try:
        collapse(address, 4 * MIB)
    except KernelError as error:
        pytest.skip(f"this kernel folds no memory: {error}")
    pages = HugePages()
    pages.before_fork(REPAID_BY, nobody)
    assert huge_kilobytes(address) > 50 * 1024
    assert memory[4096] == 1


def huge_kilobytes(address):
    """Of the mapping that holds `address`."""
    inside = False
    for line in hugepages._smaps().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "AnonHugePages:":
            return int(rest.split()[0])
    raise AssertionError(f"{address:#x} is not mapped")


def test_nothing_is_looked_at_when_too_few_tests_are_left_or_between_looks(monkeypatch):
    looks = []

    def look():
        looks.append(1)
        return 0

    monkeypatch.setattr(hugepages, "_resident", look)
    pages = HugePages()
    pages.before_fork(REPAID_BY - 1, nobody)
    assert looks == []
    pages = HugePages()
    for _ in range(LOOK_EVERY):
        pages.before_fork(1000, nobody)
    assert looks == [1]


@pytest.mark.parametrize(
    ("number", "asked"),
    [(errno.EINVAL, 1), (errno.EPERM, 1), (errno.ENOMEM, 3), (errno.EBUSY, 3), (errno.EAGAIN, 3)],
)
def test_a_kernel_that_folds_nothing_is_asked_once_and_one_that_cannot_now_again(monkeypatch, number, asked):
    places = []

    def refuse(address, length):
        places.append(address)
        raise KernelError("madvise", "", number)

    numbers = itertools.count(16)

    def moved():
        number = next(numbers)
        return smaps().replace("7f0000000000-7f0004000000", f"7f{number:02x}00000000-7f{number:02x}04000000")

    monkeypatch.setattr(hugepages, "collapse", refuse)
    monkeypatch.setattr(hugepages, "_smaps", moved)
    sizes = itertools.count(1)
    monkeypatch.setattr(hugepages, "_resident", lambda: next(sizes) << 30)
    pages = HugePages()
    for _ in range(3 * LOOK_EVERY):
        pages.before_fork(1000, nobody)
    assert len({place >> 32 for place in places}) == asked, "mappings"


def test_where_tests_tell_what_they_write_to_it_is_folded_when_they_have(monkeypatch):
    folded = folding(monkeypatch)
    asked = []

    def ask():
        asked.append(1)
        return True

    pages = HugePages()
    pages.before_fork(1000, ask)
    assert asked == [1]
    assert folded == []
    pages.settle([])
    assert folded == [(0x7F0000000000, 64 * MIB)]
    pages.settle([])
    assert len(folded) == 1, "nothing is due any more"


def folding(monkeypatch):
    """What would be folded (address, length of all that is asked in a row), in a heap of 64 MiB that grows from look to
    look.
    """
    folded: list[tuple[int, int]] = []
    sizes = itertools.count(1)

    def fold(address, length):
        if folded and sum(folded[-1]) == address:
            address, length = folded[-1][0], folded.pop()[1] + length
        folded.append((address, length))

    monkeypatch.setattr(hugepages, "collapse", fold)
    monkeypatch.setattr(hugepages, "_smaps", smaps)
    monkeypatch.setattr(hugepages, "_resident", lambda: next(sizes) << 30)
    return folded


def written(area, count):
    """Numbers of so many pages in one of the areas of a huge page in that heap."""
    first = (0x7F0000000000 + area * HUGE_PAGE) // PAGE
    return list(range(first, first + count))


def test_areas_that_every_test_writes_to_stay_as_they_are_and_are_pinned(monkeypatch):
    folded = folding(monkeypatch)
    pages = HugePages()
    pages.before_fork(1000, lambda: True)
    elsewhere = [1, 2, 3]
    many, few = written(2, FEW), written(5, FEW - 1)
    assert pages.settle([*elsewhere, *many, *few]) == [*elsewhere, *many]
    assert folded == [
        (0x7F0000000000, 2 * HUGE_PAGE),
        (0x7F0000000000 + 3 * HUGE_PAGE, 64 * MIB - 3 * HUGE_PAGE),
    ]
    assert pages.settle([*many, *few]) == many, "what is folded stays folded"


def test_an_area_that_tests_have_come_to_write_to_is_pinned_from_the_next_folding_on(monkeypatch):
    folding(monkeypatch)
    pages = HugePages()
    pages.before_fork(1000, lambda: True)
    many = written(4, FEW)
    pages.settle([])
    assert pages.settle(many) == []
    for _ in range(LOOK_EVERY):
        pages.before_fork(1000, lambda: True)
    assert pages.settle(many) == many


def test_pages_that_were_pinned_can_be_folded_as_soon_as_they_are_released():
    memory, address = used_memory()
    try:
        pins = Pins([(address + number * MIB, 4096) for number in range(64)])
    except KernelError as error:
        pytest.skip(f"nothing is pinned here: {error}")
    before = huge_kilobytes(address)  # of another test's memory, where the kernel has joined the two mappings
    try:
        collapse(address, len(memory))
    except KernelError as error:
        if error.errno != errno.EAGAIN:
            pytest.skip(f"this kernel folds no memory: {error}")
    assert huge_kilobytes(address) - before < 10 * 1024
    pins.release()
    try:
        collapse(address, len(memory))
    except KernelError as error:
        if error.errno == errno.ENOMEM:
            pytest.skip(f"no huge page is free: {error}")
        raise
    assert huge_kilobytes(address) > 50 * 1024


def test_a_mapping_that_fell_apart_is_folded_again_when_the_heap_has_grown(monkeypatch):
    folded = folding(monkeypatch)
    pages = HugePages()
    for _ in range(2 * LOOK_EVERY):
        pages.before_fork(1000, nobody)
    assert folded == [(0x7F0000000000, 64 * MIB)] * 2


@pytest.mark.parametrize(
    ("seconds", "areas"),
    [
        pytest.param(0.0001, 32, id="soon repaid"),
        pytest.param(0.01, 1, id="never repaid"),
    ],
)
def test_a_heap_is_folded_only_where_the_tests_that_are_left_repay_it(monkeypatch, seconds, areas):
    folded = folding(monkeypatch)
    monkeypatch.setattr(hugepages, "_resident", lambda: 64 * MIB)

    def now():
        return seconds * sum(length for _, length in folded) / HUGE_PAGE

    monkeypatch.setattr(hugepages, "time", types.SimpleNamespace(perf_counter=now))
    pages = HugePages()
    pages.before_fork(100, lambda: True)
    pages.forked(0.001)  # so a hundred take 0.1 s, and 32 areas may take half of that
    pages.settle([])
    assert folded == [(0x7F0000000000, areas * HUGE_PAGE)]
