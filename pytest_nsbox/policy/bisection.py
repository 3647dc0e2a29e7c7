"""The smallest limit under which something still works: what is left between what works and what does not is halved."""

from __future__ import annotations

from pytest_nsbox.policy import units
from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


@record
class Scale:
    """How values of one key are read and written, and how near the answer is to the limit, unless the caller says."""

    read: Callable[[object], float]
    write: Callable[[float], str | float]
    precision: float


def _size(value: float) -> str:
    return units.write_size(int(value))


SCALES = {
    "mem": Scale(units.parse_positive_size, _size, 1 << 20),
    "disk": Scale(units.parse_positive_size, _size, 1 << 20),
    "pids": Scale(units.parse_pids, int, 1),
    "cpu": Scale(units.parse_cpu, lambda value: round(value, 3), 0.05),
    "timeout": Scale(units.parse_duration, lambda value: round(value, 3), 0.1),
}


def scale_of(key: str) -> Scale:
    """The scale of ``key``; BadValueError for a key that has no smallest value to look for."""
    if key not in SCALES:
        raise BadValueError(f"{key!r} has no smallest value", ", ".join(SCALES))
    return SCALES[key]


def bisect(low: float, high: float, precision: float, works: Callable[[float], bool]) -> float | None:
    """The smallest of ``low``, ``low + precision``, … up to ``high`` that works, given that every larger one does too.

    None if not even ``high`` works. Asks ``works`` for both ends first, then for about log2 of their number.
    """
    if not works(high):
        return None
    if works(low):
        return low
    # Values are low + n * precision; the last may be less than a step below high.
    bad, good = 0, -int(-(high - low) // precision)
    while good - bad > 1:
        middle = (good + bad) // 2
        if works(low + middle * precision):
            good = middle
        else:
            bad = middle
    return min(high, low + good * precision)
