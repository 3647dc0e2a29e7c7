"""What tests used in earlier runs, and whether one uses more now: ``--sandbox-baseline`` and
``--sandbox-fail-on-increase``.

Memory is judged by its peak, which varies little. CPU time varies with everything else on the machine, so it is judged
only from several runs on the same machine, and against the slowest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_nsbox.policy.table import short_bytes, short_seconds

SCHEMA = 1
KEPT = 10  # runs that are remembered of each test
ENOUGH = 3  # runs that CPU time is judged from
COUNTERS = ("memory_peak_bytes", "cpu_s")
# What a counter may grow by, whatever the percentage: pages that come and go, ticks of the scheduler's clock.
_FLOOR = {"memory_peak_bytes": 1 << 20, "cpu_s": 0.02}
_SHOWN = {"memory_peak_bytes": ("memory", short_bytes), "cpu_s": ("cpu", short_seconds)}
_SAME_MACHINE = ("system", "machine", "cpus", "memory_bytes", "python")


class BaselineError(ValueError):
    """A file that is no baseline."""


@dataclass
class Baseline:
    """Samples by test and counter, the oldest first; and the machine that CPU times are of."""

    host: dict[str, object] = field(default_factory=dict)
    tests: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @staticmethod
    def from_json(document: object) -> Baseline:
        """The way back from ``as_json``; BaselineError for anything else."""
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise BaselineError(f"not a baseline of schema {SCHEMA}")
        host, tests = document.get("host"), document.get("tests")
        if not isinstance(host, dict) or not isinstance(tests, dict):
            raise BaselineError("no tables 'host' and 'tests'")
        for nodeid, counters in tests.items():
            if not isinstance(counters, dict) or not all(_are_numbers(samples) for samples in counters.values()):
                raise BaselineError(f"the entry of {nodeid!r} has no lists of numbers")
        return Baseline(host, tests)

    def as_json(self) -> dict[str, object]:
        """The file's content."""
        return {"schema": SCHEMA, "host": self.host, "tests": dict(sorted(self.tests.items()))}

    def add(self, usages: Mapping[str, Mapping[str, float]], host: Mapping[str, object]) -> None:
        """Take in one run: usage by test. CPU times of another machine are forgotten."""
        if not self.is_of(host):
            for counters in self.tests.values():
                counters.pop("cpu_s", None)
        self.host = dict(host)
        for nodeid, usage in usages.items():
            counters = self.tests.setdefault(nodeid, {})
            for name in COUNTERS:
                if name in usage:
                    counters[name] = [*counters.get(name, ()), usage[name]][-KEPT:]

    def is_of(self, host: Mapping[str, object]) -> bool:
        """Say if its CPU times can be compared with those of ``host``."""
        return all(self.host.get(key) == host.get(key) for key in _SAME_MACHINE)

    def grown(
        self, usages: Mapping[str, Mapping[str, float]], percent: float, host: Mapping[str, object]
    ) -> list[Growth]:
        """What uses more than ``percent`` beyond the most that it used before, the largest growth first."""
        found = []
        for nodeid, usage in usages.items():
            for name, samples in self.tests.get(nodeid, {}).items():
                if name not in usage or name not in COUNTERS or not samples:
                    continue
                if name == "cpu_s" and (len(samples) < ENOUGH or not self.is_of(host)):
                    continue
                before, now = max(samples), usage[name]
                if now > before * (1 + percent / 100) and now - before > _FLOOR[name]:
                    found.append(Growth(nodeid, name, before, now))
        return sorted(found, key=lambda growth: -growth.percent)

    def notes(self, usages: Mapping[str, Mapping[str, float]], host: Mapping[str, object]) -> list[str]:
        """What was not judged, and why."""
        lines = []
        unknown = sum(nodeid not in self.tests for nodeid in usages)
        if unknown:
            lines.append(f"{unknown} test{'' if unknown == 1 else 's'} not in the baseline")
        runs = [len(self.tests[nodeid].get("cpu_s", ())) for nodeid in usages if nodeid in self.tests]
        if not self.is_of(host):
            lines.append("CPU time was not judged: the baseline is of another machine or Python")
        elif runs and min(runs) < ENOUGH:
            lines.append(f"CPU time is judged from {ENOUGH} runs in the baseline on; some tests have {min(runs)}")
        return lines


def _are_numbers(samples: object) -> bool:
    return isinstance(samples, list) and all(
        isinstance(sample, (int, float)) and not isinstance(sample, bool) for sample in samples
    )


@dataclass(frozen=True)
class Growth:
    """A counter of a test that rose from ``before`` to ``now``."""

    nodeid: str
    counter: str
    before: float
    now: float

    @property
    def percent(self) -> float:
        """By how much, of what it was."""
        return (self.now / self.before - 1) * 100 if self.before else float("inf")


def render(growths: Sequence[Growth]) -> list[str]:
    """The table: a head and a line for each."""
    rows = [("test", "counter", "baseline", "now", "growth")]
    for growth in growths:
        name, show = _SHOWN[growth.counter]
        percent = "new" if growth.before == 0 else f"+{growth.percent:.0f}%"
        rows.append((growth.nodeid, name, show(growth.before), show(growth.now), percent))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *(row[i].rjust(widths[i]) for i in (2, 3, 4))])
        for row in rows
    ]


def parse_percent(text: str) -> float:
    """A percentage of ``--sandbox-fail-on-increase``: ``20``, ``20%``, ``7.5``. ValueError for anything else."""
    value = float(text.strip().removesuffix("%"))
    if not 0 <= value < 1e6:
        raise ValueError("out of range")
    return value
