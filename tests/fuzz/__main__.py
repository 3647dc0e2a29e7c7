"""`python -m tests.fuzz [-max_total_time=60]`: whatever is written, parsers refuse it as their callers expect.

Wants atheris (not among the project's dependencies, since it has wheels for few versions of Python). It goes on until
its time is up, or until something raises what no user may see, and prints the case.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pytest_nsbox"]):
    from pytest_nsbox.policy import cpus, proc_files, proc_use, proc_vmstat, units
    from pytest_nsbox.policy.errors import BadValueError
    from pytest_nsbox.policy.keys import KEYS

USE, TASKS = proc_use.MemoryUse(), proc_use.Tasks()
PARSERS = (units.parse_size, units.parse_cpu, units.parse_duration, units.parse_cpuset, units.parse_count)


def stat(text: str, later: str) -> None:
    file = proc_files.Stat(text, (0,), 1)
    file.set_host(later)
    file.render(1.0, proc_use.CpuUse(), TASKS)


def vmstat(text: str, later: str) -> None:
    file = proc_vmstat.Vmstat(text, 4096)
    file.set_host(later)
    file.render(USE, {}, free=1, swapped=True)


def values(text: str, _later: str) -> None:
    for parse in (*PARSERS, *(key.parse for key in KEYS.values())):
        try:
            parse(text)
        except BadValueError:
            continue


TARGETS = (
    values,
    stat,
    vmstat,
    lambda text, _: proc_files.Meminfo(text, 1 << 20, 1 << 10).render(USE),
    lambda text, _: cpus.cpuinfo_text(text, (0,)),
    lambda text, _: proc_files.diskstats_text(text, {}),
    lambda text, _: proc_files.swaps_text(text, 5, 4),
    lambda text, _: proc_files.meminfo_bytes(text),
    lambda text, _: proc_use.read_task(text),
)


def one(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)
    target = TARGETS[given.ConsumeIntInRange(0, len(TARGETS) - 1)]
    target(given.ConsumeUnicodeNoSurrogates(400), given.ConsumeUnicodeNoSurrogates(200))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
