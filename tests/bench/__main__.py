"""What a box costs per test: `tox -e benchmark -- [-w WORKLOAD] [-r ROUNDS]`.

Runs the same generated suite under plain pytest, pytest-forked and pytest-nsbox, in interleaved rounds (a loaded
machine is slow for all of them alike), and prints the median over the rounds of wall time, of cost per test above
plain pytest of the same round, and of that cost relative to pytest-forked's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

NOOP = "import pytest\n\n@pytest.mark.parametrize('i', range({tests}))\ndef test_noop(i):\n    pass\n"
HEAP = "HEAP = bytearray(500 << 20)\nHEAP[::4096] = b'x' * len(HEAP[::4096])\n"
FIXTURE = """
import pytest, time

@pytest.fixture(scope="session")
def database():
    time.sleep(1)
    return {}

@pytest.mark.parametrize("i", range(50))
def test_database(database, i):
    assert database == {}
"""
LIMITS = ("mem=512M", "cpu=100%", "pids=64", "net=false")


class Workload(NamedTuple):
    tests: int
    source: str


WORKLOADS = {
    "noop200": Workload(200, NOOP.format(tests=200)),
    "noop1000": Workload(1000, NOOP.format(tests=1000)),
    "heap": Workload(200, HEAP + NOOP.format(tests=200)),
    "fixture": Workload(50, FIXTURE),
}
ALONE = ("-p", "no:nsbox")
CONTENDERS = {
    "plain": (*ALONE, "-p", "no:pytest_forked"),
    "forked": (*ALONE, "--forked"),
    "nsbox": ("-p", "no:pytest_forked", "--sandbox-all"),
    "nsbox+limits": (
        *("-p", "no:pytest_forked", "--sandbox-all"),
        *(word for limit in LIMITS for word in ("--sandbox-set", limit)),
    ),
}


def run_once(directory: Path, arguments: tuple[str, ...], tests: int) -> float:
    """Wall time in seconds of one run in which all tests passed; raises RuntimeError otherwise."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - started
    if done.returncode or f"{tests} passed" not in done.stdout:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return elapsed


def measure(workload: Workload, rounds: int) -> dict[str, list[float]]:
    """contender -> wall time in seconds, one for each round."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="nsbench-") as scratch:
        directory = Path(scratch)
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (directory / "test_bench.py").write_text(workload.source, encoding="utf-8")
        order = list(CONTENDERS)
        for number in range(rounds + 1):
            for name in order:
                elapsed = run_once(directory, CONTENDERS[name], workload.tests)
                if number:  # the first round warms the caches
                    times[name].append(elapsed)
            order.append(order.pop(0))
    return times


def table(name: str, tests: int, times: dict[str, list[float]]) -> list[str]:
    lines = [f"{name} ({tests} tests)", f"  {'':14}{'wall s':>9}{'/plain':>9}{'ms/test':>9}{'/forked':>9}"]
    for contender, walls in times.items():
        pairs = list(zip(walls, times["plain"], times["forked"], strict=True))
        cost = statistics.median((wall - plain) / tests * 1000 for wall, plain, _ in pairs)
        relative = statistics.median((wall - plain) / (forked - plain) for wall, plain, forked in pairs)
        of_plain = statistics.median(wall / plain for wall, plain, _ in pairs)
        lines.append(
            f"  {contender:14}{statistics.median(walls):9.2f}{of_plain:9.2f}"
            + ("" if contender == "plain" else f"{cost:9.2f}{relative:9.2f}")
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-w", "--workload", action="append", choices=[*WORKLOADS], help="default: all but noop1000")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.workload or ["noop200", "heap", "fixture"]:
        times = measure(WORKLOADS[name], options.rounds)
        print("\n".join(table(name, WORKLOADS[name].tests, times)), flush=True)


if __name__ == "__main__":
    main()
