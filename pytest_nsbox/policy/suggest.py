"""Limits for tests from what they used: ``--sandbox-suggest``.

Head room is on top of the peak: half of it for memory, as many processes again, and five times the wall clock, which
varies most; each rounded up to a number that reads well. CPU time gives no limit: a quota slows a test, it does not
fit one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_nsbox.policy.units import write_size

MIB = 1 << 20
_MEMORY_ROOM = 1.5
_SMALLEST_ROOM = 16 * MIB  # Python itself, and the cache of the files that it reads
_SMALLEST_PIDS = 8
_WALL_ROOM = 5
_TIMEOUTS = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


@dataclass(frozen=True)
class Suggestion:
    """Values of the marker's keys: bytes, a count, seconds. None where there is no counter to tell."""

    mem: int | None = None
    pids: int | None = None
    timeout: int | None = None

    def items(self) -> list[tuple[str, str]]:
        """Keys and values as they are written in an ini."""
        found = []
        if self.mem is not None:
            found.append(("mem", write_size(self.mem)))
        if self.pids is not None:
            found.append(("pids", str(self.pids)))
        if self.timeout is not None:
            found.append(("timeout", f"{self.timeout}s"))
        return found

    def marker(self) -> str:
        """The marker's line."""
        values = ", ".join(f"{key}={value}" if value.isdigit() else f'{key}="{value}"' for key, value in self.items())
        return f"@pytest.mark.sandbox({values})"


def suggest(usage: Mapping[str, float]) -> Suggestion:
    """The limits for one test, from its usage (names of ``usage.NAMES``)."""
    peak, pids, wall = (usage.get(name) for name in ("memory_peak_bytes", "pids_peak", "wall_s"))
    return Suggestion(
        mem=_readable(max(peak * _MEMORY_ROOM, peak + _SMALLEST_ROOM)) if peak is not None else None,
        pids=max(_SMALLEST_PIDS, _power(2 * pids)) if pids is not None else None,
        timeout=_timeout(wall * _WALL_ROOM) if wall is not None else None,
    )


def combine(suggestions: Sequence[Suggestion]) -> Suggestion:
    """Limits that every one of them fits into."""
    return Suggestion(
        _largest(each.mem for each in suggestions),
        _largest(each.pids for each in suggestions),
        _largest(each.timeout for each in suggestions),
    )


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _power(count: float) -> int:
    power = 1
    while power < count:
        power *= 2
    return power


def _readable(size: float) -> int:
    """The next of 16M, 20M, 24M, 28M, 32M, 40M, …: four steps from each power of two to the next."""
    step = MIB
    while size > 8 * step:
        step *= 2
    return -int(-size // step) * step


def _timeout(seconds: float) -> int:
    fitting = [value for value in _TIMEOUTS if value >= seconds]
    return fitting[0] if fitting else -int(-seconds // 3600) * 3600


def render(rows: Sequence[tuple[str, Mapping[str, float]]], left_out: int) -> list[str]:
    """Lines for the terminal: a marker for each test function, and ini defaults that suit them all.

    ``rows``: node id and usage of each test; a function's marker suits every case that it was parametrised with.

    ``left_out``: tests in boxes that did not pass, whose usage says nothing.
    """
    if not rows:
        return ["no test passed in a box: there is nothing to suggest limits from (try --sandbox-all)"]
    found: dict[str, list[Suggestion]] = {}
    for name, usage in rows:
        found.setdefault(_function(name), []).append(suggest(usage))
    lines = []
    for name, cases in found.items():
        counted = f" ({len(cases)} cases)" if len(cases) > 1 else ""
        lines += [f"{name}{counted}", f"    {combine(cases).marker()}"]
    everything = combine([each for cases in found.values() for each in cases])
    values = ", ".join(f'"{key}={value}"' for key, value in everything.items())
    lines += ["", "for all of them, in the ini:", f"    sandbox_defaults = [{values}]"]
    if left_out:
        lines.append(f"{left_out} test{'' if left_out == 1 else 's'} did not pass and got no suggestion")
    return lines


def _function(nodeid: str) -> str:
    """The node id without the parameters of the case: a marker stands at the function."""
    function, bracket, _ = nodeid.partition("[")
    return function if bracket and nodeid.endswith("]") and "::" in function else nodeid
