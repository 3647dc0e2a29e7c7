"""What a box costs per test: `tox -e benchmark -- [-w WORKLOAD] [-r ROUNDS] [--check]`.

Runs the same generated suite under plain pytest, pytest-forked, pytest-isolate and pytest-nsbox, in interleaved rounds
(a loaded machine is slow for all of them alike), and prints the median over the rounds of wall time, of cost per test
above plain pytest of the same round, and of that cost relative to pytest-forked's; and so for the least that a fork of
pytest for each test can cost, and that one into a box can (see `tests/bench/bare.py`; the latter as root, with cgroup
v1). What pytest-nsbox takes more is what it tells of a test, looks after and checks. Where bwrap and crun are
installed, some of the tests are run by them as well: each in a pytest of its own, which is what a box by hand is.

The workload `cpu` is about several at once: its boxes one after the other, in two workers and in sixteen.

What is asked of the figures are ratios, which another machine has as well; --check makes a missed one an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.bench.bare import CGROUPS, HIERARCHIES
from tests.bench.containers import make_bundle

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
CPU = """
import pytest

@pytest.mark.parametrize("i", range({tests}))
def test_cpu(i):
    assert sum(number * number for number in range(4_400_000))  # about 0.2 s
"""
LIMITS = ("mem=512M", "cpu=100%", "pids=64", "net=false")


class Workload(NamedTuple):
    tests: int
    source: str
    memory: int = 0  # bytes that a run of it may need


WORKLOADS = {
    "noop200": Workload(200, NOOP.format(tests=200)),
    "noop1000": Workload(1000, NOOP.format(tests=1000)),
    "heap": Workload(200, HEAP + NOOP.format(tests=200), 2 << 30),
    "fixture": Workload(50, FIXTURE),
}
ALONE = ("-p", "no:nsbox")
OTHERS = ("-p", "no:pytest_forked", "-p", "no:pytest_isolate", "-p", "no:xdist")
BARE = (*ALONE, *OTHERS, "-p", "bare")
BOXED = ("--sandbox-all", "--sandbox-report=none")
LIMITED = tuple(word for limit in LIMITS for word in ("--sandbox-set", limit))
CONTENDERS = {
    "plain": (*ALONE, *OTHERS),
    "bare fork": (*BARE, "--bare=fork"),
    "bare ahead": (*BARE, "--bare=ahead"),
    "forked": (*ALONE, "-p", "no:pytest_isolate", "--forked"),
    "nsbox": (*OTHERS, *BOXED),
    "nsbox+limits": (*OTHERS, *BOXED, *LIMITED),
}
if os.geteuid() == 0 and os.uname().machine == "x86_64":
    CONTENDERS["bare boxes"] = (*BARE, "--bare=boxes")
    if all(os.path.isdir(f"{CGROUPS}/{name}") for name in HIERARCHIES):
        CONTENDERS["bare limits"] = (*BARE, "--bare=limits")
if importlib.util.find_spec("pytest_isolate") is not None:
    CONTENDERS["isolate"] = (*ALONE, *OTHERS[:2], *OTHERS[4:], "--isolate")
# {workload: {contender: what its cost may be, of pytest-forked's}}
ASKED = {"noop200": {"nsbox": 0.8, "nsbox+limits": 0.6}, "heap": {"nsbox": 0.3, "nsbox+limits": 0.3}}
LEAST = {"nsbox": "bare boxes", "nsbox+limits": "bare limits"}  # what is left of it if all that is ours cost nothing
BY_HAND = 10  # tests
BWRAP = ("bwrap", "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all")
# crun refuses a machine on which cgroup v2 has controllers beside v1's hierarchies: it is not to see that one.
WITHOUT_V2 = ("unshare", "--mount", "sh", "-c", f'umount {CGROUPS}/unified && exec "$@"', "sh")
SEVERAL = 200  # tests: with fewer it would be about the time that workers take to start
WORKERS = (2, 16)
SCALES, HOLDS = 1.8, 1.25  # two workers against none at least, sixteen against two at most


def run_once(directory: Path, arguments: tuple[str, ...], tests: int) -> float:
    """Wall time in seconds of one run in which all tests passed; raises RuntimeError otherwise."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - started
    if done.returncode or f"{tests} passed" not in done.stdout:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return elapsed


def have_memory_ready(size: int) -> None:
    """Use memory in huge pages, for a moment: where the host of a virtual machine has taken what is free, it needs as
    long to find 500 MB again as a whole run takes.
    """
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for place in range(0, size, mmap.PAGESIZE):
            memory[place] = 1


def run_by_hand(name: str, directory: Path) -> float | None:
    """Seconds that a test takes in a pytest of its own under bwrap or crun; None where that does not run here."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", *CONTENDERS["plain"]]
    bundle = None
    if shutil.which(name) is None or (name == "crun" and os.geteuid()):
        return None
    try:
        bundle = make_bundle(directory / "crun") if name == "crun" else None
        seconds = []
        for number in range(BY_HAND + 1):
            arguments = [*words, f"test_bench.py::test_noop[{number}]"]
            command = [*BWRAP, *arguments]
            if bundle is not None:
                spec = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
                environment = [f"{name}={value}" for name, value in os.environ.items()]
                spec["process"] |= {"args": arguments, "cwd": str(directory), "env": environment}
                (bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
                name_of_it = f"bench-{os.getpid()}-{number}"
                command = ["crun", "--cgroup-manager=cgroupfs", "run", "-b", str(bundle), name_of_it]
                if os.path.isdir(f"{CGROUPS}/unified"):
                    command = [*WITHOUT_V2, *command]
            started = time.perf_counter()
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - started)
            if done.returncode or "1 passed" not in done.stdout:
                print(f"  {name}: {(done.stderr or done.stdout).strip()[-200:]}")
                return None
        return statistics.median(seconds[1:])
    finally:
        if bundle is not None:
            subprocess.run(["umount", bundle / "rootfs"], check=False)


def measure_several(rounds: int) -> tuple[float, float]:
    """How much faster two workers are than none, and how much slower sixteen than two (medians over the rounds)."""
    tests = SEVERAL
    few, many = [], []
    with tempfile.TemporaryDirectory(prefix="nsbench-") as scratch:
        directory = Path(scratch)
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (directory / "test_bench.py").write_text(CPU.format(tests=tests), encoding="utf-8")
        boxed = (*OTHERS[:4], *BOXED, *LIMITED[:2])
        for _ in range(rounds):
            alone = run_once(directory, boxed, tests)
            two, sixteen = (run_once(directory, (*boxed, "-n", str(count)), tests) for count in WORKERS)
            print(f"  one after the other {alone:.2f} s, -n 2 {two:.2f} s, -n 16 {sixteen:.2f} s", flush=True)
            few.append(alone / two)
            many.append(sixteen / two)
    return statistics.median(few), statistics.median(many)


def measure(workload: Workload, rounds: int) -> dict[str, list[float]]:
    """contender -> wall time in seconds, one for each round."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="nsbench-") as scratch:
        directory = Path(scratch)
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (directory / "test_bench.py").write_text(workload.source, encoding="utf-8")
        shutil.copy(Path(__file__).parent / "bare.py", directory)
        order = list(CONTENDERS)
        for number in range(rounds + 1):
            for name in order:
                if workload.memory:
                    have_memory_ready(workload.memory)
                elapsed = run_once(directory, CONTENDERS[name], workload.tests)
                if number:  # the first round warms the caches
                    times[name].append(elapsed)
            order.append(order.pop(0))
    return times


def relative_cost(times: dict[str, list[float]], contender: str) -> float:
    """What it costs above plain pytest, of what pytest-forked does: the median over the rounds."""
    triples = zip(times[contender], times["plain"], times["forked"], strict=True)
    return statistics.median((wall - plain) / (forked - plain) for wall, plain, forked in triples)


def table(name: str, tests: int, times: dict[str, list[float]]) -> list[str]:
    lines = [f"{name} ({tests} tests)", f"  {'':14}{'wall s':>9}{'/plain':>9}{'ms/test':>9}{'/forked':>9}"]
    for contender, walls in times.items():
        pairs = list(zip(walls, times["plain"], strict=True))
        cost = statistics.median((wall - plain) / tests * 1000 for wall, plain in pairs)
        relative = relative_cost(times, contender)
        of_plain = statistics.median(wall / plain for wall, plain in pairs)
        lines.append(
            f"  {contender:14}{statistics.median(walls):9.2f}{of_plain:9.2f}"
            + ("" if contender == "plain" else f"{cost:9.2f}{relative:9.2f}")
        )
    return lines


def show_by_hand(plain: float) -> None:
    """The rows of those that want a pytest for each test; `plain` is what plain pytest takes for all of noop200."""
    with tempfile.TemporaryDirectory(prefix="nsbench-", dir="/var/tmp") as scratch:
        directory = Path(scratch)
        (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (directory / "test_bench.py").write_text(WORKLOADS["noop200"].source, encoding="utf-8")
        for name in ("bwrap", "crun"):
            seconds = run_by_hand(name, directory)
            if seconds is not None:
                print(f"  {name + ' per test':32}{(seconds - plain / 200) * 1000:9.2f}", flush=True)


def main() -> int:
    """Print the tables; 1 if --check was given and a ratio is not as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "-w", "--workload", action="append", choices=[*WORKLOADS, "cpu"], help="default: all but noop1000"
    )
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="a ratio that is not as asked is an error")
    options = parser.parse_args()
    missed = []
    for name in options.workload or ["noop200", "heap", "fixture", "cpu"]:
        found = []
        if name == "cpu":
            print(f"cpu ({SEVERAL} tests)", flush=True)
            few, many = measure_several(options.rounds)
            found = [
                ("-n 2 is faster by", few, SCALES, few >= SCALES),
                ("-n 16 against it", many, HOLDS, many <= HOLDS),
            ]
        else:
            times = measure(WORKLOADS[name], options.rounds)
            print("\n".join(table(name, WORKLOADS[name].tests, times)), flush=True)
            if name == "noop200":
                show_by_hand(statistics.median(times["plain"]))
            for contender, most in ASKED.get(name, {}).items():
                ratio = relative_cost(times, contender)
                least = LEAST[contender]
                told = f" ({least}: {relative_cost(times, least):.2f})" if least in times else ""
                found.append((f"{contender} of forked{told}", ratio, most, ratio <= most))
        for what, figure, asked, holds in found:
            print(f"  {what}: {figure:.2f}, asked {asked}: {'holds' if holds else 'missed'}", flush=True)
            missed += [] if holds else [what]
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
