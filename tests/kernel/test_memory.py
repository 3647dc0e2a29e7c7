"""Pages that a fork copies at once."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import time
from pathlib import Path

import pytest

from pytest_nsbox.kernel import memory
from pytest_nsbox.policy.errors import KernelError
from tests.warden.boxes import in_a_process

PAGES = 600


@pytest.fixture
def area() -> tuple[mmap.mmap, int]:
    """Private memory, written to, and its address."""
    found = mmap.mmap(-1, PAGES * memory.PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for number in range(PAGES):
        found[number * memory.PAGE] = 1
    for start, end in memory.anonymous_mappings(Path("/proc/self/maps").read_text()):
        if end - start >= len(found):
            # Neighbouring mappings look like one; look for it by what stands in it.
            found[0:16] = b"here it is, yes!"
            offset = _find(start, end, b"here it is, yes!")
            if offset is not None:
                return found, start + offset
    raise AssertionError("the mapping is not in /proc/self/maps")


def _find(start: int, end: int, text: bytes) -> int | None:
    with open("/proc/self/mem", "rb", buffering=0) as file:
        for address in range(start, end, memory.PAGE):
            file.seek(address)
            if file.read(len(text)) == text:
                return address - start
    return None


def faults_of_writing(area: mmap.mmap) -> int:
    def write() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for number in range(PAGES):
            area[number * memory.PAGE] = 2
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults: int = in_a_process(write)
    return faults


def test_a_child_tells_which_pages_it_wrote_to(area: tuple[mmap.mmap, int]):
    content, address = area
    wanted = [3, 4, 5, 100]

    def write() -> list[int]:
        for number in wanted:
            content[number * memory.PAGE] = 2
        return memory.written_since_fork(10_000)

    first = address // memory.PAGE
    told = {page - first for page in in_a_process(write)}
    assert told.issuperset(wanted)
    assert len(told.intersection(range(PAGES))) < 20


def test_a_huge_page_that_the_parent_has_broken_up_is_not_what_the_child_wrote():
    huge = memory.HUGE_PAGE
    content = mmap.mmap(-1, 3 * huge, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(content))
    start = -(-address // huge) * huge - address
    for place in range(0, len(content), memory.PAGE):
        content[place] = 1
    try:
        memory.collapse(address + start, huge)
    except KernelError as error:
        pytest.skip(f"this kernel folds no memory: {error}")
    first = (address + start) // memory.PAGE
    go_on, told = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(go_on[0], 1)
            pages = memory.written_since_fork(100_000)
            os.write(told[1], b"%d" % sum(0 <= page - first < huge // memory.PAGE for page in pages))
        finally:
            os._exit(0)
    for place in range(start, start + huge, memory.PAGE):
        content[place] = 2
    os.write(go_on[1], b"x")
    os.close(told[1])
    count = int(os.read(told[0], 10))
    os.waitpid(child, 0)
    for fd in (*go_on, told[0]):
        os.close(fd)
    assert count < huge // memory.PAGE // 2


def test_pinned_pages_are_copied_by_the_fork(area: tuple[mmap.mmap, int]):
    content, address = area
    assert faults_of_writing(content) >= PAGES
    try:
        pins = memory.Pins([(address, len(content))])
    except KernelError as error:
        pytest.skip(f"no io_uring here: {error}")
    try:
        assert not os.get_inheritable(pins.fd)
        assert faults_of_writing(content) < PAGES // 10
        assert content[0] == ord("h"), "the child wrote to ours"
    finally:
        pins.close()
    deadline = time.monotonic() + 10  # the kernel lets go in its own time
    while faults_of_writing(content) < PAGES:
        assert time.monotonic() < deadline


def test_what_cannot_be_pinned_is_an_error_and_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KernelError) as caught:
        memory.Pins([(memory.PAGE, memory.PAGE)])  # nothing is mapped there
    assert caught.value.call in ("io_uring_register", "io_uring_setup")
    assert os.listdir("/proc/self/fd") == before


def test_pages_in_a_row_are_one_range():
    page = memory.PAGE
    assert memory.as_ranges([]) == []
    assert memory.as_ranges([1, 2, 3, 7, 9, 10]) == [(page, 3 * page), (7 * page, page), (9 * page, 2 * page)]
