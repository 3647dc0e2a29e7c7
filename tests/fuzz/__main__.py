"""`python -m tests.fuzz [-max_total_time=60]`: whatever is written, parsers refuse it as their callers expect.

Wants atheris (not among the project's dependencies, since it has wheels for few versions of Python). It goes on until
its time is up, or until something raises what no user may see, and prints the case. `-max_len=2048 -len_control=0`
gives it long inputs from the start, as archives want them.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import socket
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import atheris
from _pytest.config import get_config

with atheris.instrument_imports(include=["pytest_nsbox"]):
    from pytest_nsbox import frames, relay
    from pytest_nsbox.images.store import Store
    from pytest_nsbox.policy import cpus, proc_files, proc_use, proc_vmstat, units
    from pytest_nsbox.policy.errors import BadValueError, ImageError
    from pytest_nsbox.policy.keys import KEYS
    from pytest_nsbox.warden.wire import BrokenWireError, Wire

from tests.fuzz import made
from tests.protocol.test_frames import FRAMES, use

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


TEXTS = (
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


def texts(given: Any) -> None:
    """Markers, sizes, `/proc`."""
    target = TEXTS[given.ConsumeIntInRange(0, len(TEXTS) - 1)]
    target(given.ConsumeUnicodeNoSurrogates(400), given.ConsumeUnicodeNoSurrogates(200))


def markers(given: Any) -> None:
    """Any value of any key."""
    key = list(KEYS.values())[given.ConsumeIntInRange(0, len(KEYS) - 1)]
    try:
        key.parse(made.plain(given))
    except BadValueError:
        return


def reports(given: Any) -> None:
    """Frames of tests with anything anywhere."""
    frame = copy.deepcopy(FRAMES[given.ConsumeIntInRange(0, len(FRAMES) - 1)])
    made.spoil(given, frame)
    data = json.dumps(frame).encode()
    read_frame(len(data).to_bytes(4, "big") + data)


def bare_bytes(given: Any) -> None:
    """Frames of tests, and of connections for containers, that are none."""
    data = given.ConsumeBytes(200)
    read_frame(data)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours)
        theirs.sendall(data or b"x")
        wire.fill()
        try:
            while wire.pop() is not None:
                pass
        except BrokenWireError:
            return


def read_frame(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = relay.Channel(ours)
        theirs.sendall(data or b"x")
        channel.fill()
        try:
            frame = channel.take()
            if frame is not None:
                frames.check(frame)
                use(CONFIG, frame)
        except relay.ChannelClosedError:
            return


def roots(given: Any) -> None:
    """Tars of a root file system."""
    import_archive(made.tar(given))


def images(given: Any) -> None:
    """What other tools save."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in made.saved(given):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    import_archive(out.getvalue())


def import_archive(content: bytes) -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    archive = PLACE / "archive.tar"
    archive.write_bytes(content)
    store = Store(str(PLACE / "store"))
    try:
        store.add(str(archive))
    except ImageError:
        # Nothing of it is kept.
        assert not store.images()
        return


CONFIG = get_config()
TARGETS = (texts, markers, reports, bare_bytes, roots, images)
COUNTS: Counter[str] = Counter()


def one(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data)
    target = TARGETS[given.ConsumeIntInRange(0, len(TARGETS) - 1)]
    COUNTS[target.__name__] += 1
    total = sum(COUNTS.values())
    if total & (total - 1) == 0:
        # libFuzzer ends the process itself.
        sys.stderr.write(f"{total}: {dict(COUNTS)}\n")
    target(given)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nsbox-fuzz-") as scratch:
        PLACE = Path(scratch, "place")
        # libFuzzer ends its process itself, and nobody would remove the directory.
        fuzzer = os.fork()
        if fuzzer == 0:
            atheris.Setup(sys.argv, one)
            atheris.Fuzz()
        status = os.waitstatus_to_exitcode(os.waitpid(fuzzer, 0)[1])
    sys.exit(status)
