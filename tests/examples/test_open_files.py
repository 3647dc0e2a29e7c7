import contextlib
import errno

import pytest


def lines_of(paths):
    """The code under test, with its bug: every file stays open until all have been read."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path)) for path in paths]
        return [file.readline() for file in files]


def lines_of_one_by_one(paths):
    """The same, repaired."""
    lines = []
    for path in paths:
        with open(path) as file:
            lines.append(file.readline())
    return lines


@pytest.mark.sandbox(ulimits={"nofile": 64})
def test_the_bug():
    with pytest.raises(OSError) as caught:
        lines_of(["/etc/hostname"] * 100)
    print(caught.value.strerror)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.sandbox(ulimits={"nofile": 64})
def test_the_bug_is_gone():
    assert len(lines_of_one_by_one(["/etc/hostname"] * 100)) == 100
