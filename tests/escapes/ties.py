"""The inner suite of test_ties.py: what still ties a box to the host, and what can be done with it."""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.escapes.attempt import WORKED


def test_descriptors(record_property: Callable[[str, object], None]) -> None:
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path):
            record_property("descriptor", os.readlink(path))


def test_terminal(record_property: Callable[[str, object], None]) -> None:
    """Type something for who sits there: a shell will take it for its user's when pytest has ended."""
    record_property("came_of_it", type_into_terminal())


def type_into_terminal() -> str:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
        try:
            fcntl.ioctl(terminal, termios.TIOCSTI, b"X")
        finally:
            os.close(terminal)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return WORKED


def test_cache(pytestconfig: pytest.Config) -> None:
    """A link in a directory that boxes share, where pytest will write on the host."""
    cache = Path(os.environ["NSBOX_CACHE"]) / "v" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "nodeids").symlink_to(os.environ["NSBOX_TARGET"])
