"""A clock that ticks on a descriptor. Source: timerfd_create(2)."""

from __future__ import annotations

import os
import struct

from pytest_nsbox.kernel import libc

_CLOCK_MONOTONIC = 1


def open_ticks(seconds: float) -> int:
    """Return a descriptor that becomes readable every `seconds`; `count` reads it."""
    fd = libc.call("timerfd_create", "", _CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    nanoseconds = round(seconds * 1_000_000_000)
    each = divmod(nanoseconds, 1_000_000_000)
    # struct itimerspec: interval, first time; seconds and nanoseconds of each.
    libc.call("timerfd_settime", str(seconds), fd, 0, struct.pack("@llll", *each, *each), None)
    return fd


def count(fd: int) -> int:
    """Return how many times it ticked since the last call."""
    try:
        return int.from_bytes(os.read(fd, 8), "little" if struct.pack("@H", 1)[0] else "big")
    except BlockingIOError:
        return 0
