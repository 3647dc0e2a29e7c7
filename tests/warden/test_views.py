"""What a box with ``proc="limits"`` sees, read inside it by a process without the plugin."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from pytest_nsbox.kernel import listener
from pytest_nsbox.policy.proc_files import meminfo_bytes
from pytest_nsbox.policy.spec import Spec
from pytest_nsbox.warden.client import Warden
from tests.capabilities import missing, times
from tests.warden.boxes import collect, fork_into, run, started, status_field

pytestmark = [
    pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:cpu", "seccomp listener"),
    pytest.mark.keeps_running("the module's warden"),
]

MIB = 1 << 20
LATE = 0.2  # seconds that numbers may be behind
SMALL: dict[str, Any] = {"mem": 96 * MIB, "swap": 0, "cpu": 0.5, "proc": "limits"}
NODES = os.path.isdir("/sys/devices/system/node")
FILES = ("meminfo", "cpuinfo", "stat", "uptime", "loadavg", "swaps", "vmstat")


def text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def keys(content: str) -> list[str]:
    return [re.split(r"[\s:]", line, maxsplit=1)[0] for line in content.splitlines()]


def eventually(found: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """What `found` returns, as soon as it is as `wanted`; at the latest when it may not be late any more."""
    # The machine may be busy with others. In the virtual machine a warden may make its next boxes for seconds.
    deadline = time.monotonic() + times(10, in_vm=50) * LATE
    while not wanted(value := found()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def behind() -> float:
    """Seconds that /proc/uptime is behind the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - float(text("/proc/uptime").split()[0])


def test_every_file_has_the_hosts_keys_in_their_order(warden: Warden):
    def look() -> dict[str, str]:
        return {name: text(f"/proc/{name}") for name in FILES}

    box, host = run(warden, look, **SMALL), look()
    assert keys(box["meminfo"]) == keys(host["meminfo"])
    assert keys(box["vmstat"]) == keys(host["vmstat"])
    assert [len(line) for line in box["meminfo"].splitlines()] == [len(line) for line in host["meminfo"].splitlines()]
    rest = [key for key in keys(host["stat"]) if not key.startswith("cpu")]
    assert keys(box["stat"])[2:] == rest
    columns = {len(line.split()) for line in host["stat"].splitlines() if line.startswith("cpu")}
    assert {len(line.split()) for line in box["stat"].splitlines() if line.startswith("cpu")} == columns
    first = host["cpuinfo"].partition("\n\n")[0]
    assert keys(box["cpuinfo"].strip("\n")) == keys(first)
    for name in ("uptime", "loadavg"):
        assert [re.sub(r"\d+", "0", part) for part in box[name].split()] == [
            re.sub(r"\d+", "0", part) for part in host[name].split()
        ]
    assert box["swaps"] == host["swaps"].partition("\n")[0] + "\n"


def test_memory_is_live(warden: Warden):
    def look() -> tuple[int, int, int]:
        def free() -> int:
            return meminfo_bytes(text("/proc/meminfo"))["MemFree"]

        before = free()
        block = bytearray(48 * MIB)
        during = eventually(free, lambda value: value < before - 40 * MIB)
        del block
        return before, during, eventually(free, lambda value: value > before - 10 * MIB)

    before, during, after = run(warden, look, **SMALL)
    assert before <= 96 * MIB
    assert before - during > 40 * MIB
    assert after > before - 10 * MIB


def test_cpu_time_load_and_uptime_are_the_boxs_own(warden: Warden):
    def look() -> dict[str, Any]:
        began = [float(part) for part in text("/proc/uptime").split()]
        apart = eventually(behind, lambda seconds: abs(seconds) < LATE)
        # The kernel gives whole ticks of user and of system time, and did so when the box began: up to four are lost.
        end = time.process_time() + 0.55
        while time.process_time() < end:
            pass
        used = eventually(
            lambda: [int(part) for part in text("/proc/stat").splitlines()[0].split()[1:]],
            lambda row: row[0] + row[2] >= 50,
        )
        rows = dict(line.split(" ", 1) for line in text("/proc/stat").splitlines())
        start = int(text("/proc/self/stat").rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return {
            "began": began,
            "apart": apart,
            "used": used,
            "spent": time.process_time(),
            "uptime": [float(part) for part in text("/proc/uptime").split()],
            "load": text("/proc/loadavg").split(),
            "btime": int(rows["btime"]),
            "start": start,
        }

    before = time.time()
    found = run(warden, look, **SMALL)
    # The box may have been made while another test ran.
    assert 0 <= found["began"][0] < 60
    if missing("time namespace") is None:
        assert abs(found["apart"]) < LATE
        assert 0 <= found["start"] <= found["uptime"][0]
    # Of the box's own, and of no more: what else its processes spent, and not what the machine did.
    assert 50 <= found["used"][0] + found["used"][2] < 100 * found["spent"] + 40
    assert found["uptime"][0] > found["began"][0] + 0.4
    assert 0 <= found["uptime"][1] <= found["uptime"][0]
    assert float(found["load"][0]) < 1
    assert re.fullmatch(r"\d+/\d+", found["load"][3])
    assert before - 61 < found["btime"] <= time.time() + 1


def test_cpus_agree_in_every_place(warden: Warden):
    def look() -> dict[str, Any]:
        directory = "/sys/devices/system/node"
        nodes = [name for name in os.listdir(directory) if re.fullmatch(r"node\d+", name)] if NODES else []
        return {
            "affinity": os.sched_getaffinity(0),
            "count": (os.cpu_count(), os.sysconf("SC_NPROCESSORS_ONLN"), os.sysconf("SC_NPROCESSORS_CONF")),
            "lists": [text(f"/sys/devices/system/cpu/{name}") for name in ("online", "possible", "present")],
            "nodes": "".join(text(f"/sys/devices/system/node/{name}/cpulist").strip() for name in nodes),
            "masks": sum(int(text(f"/sys/devices/system/node/{name}/cpumap").replace(",", ""), 16) for name in nodes),
            "cpuinfo": re.findall(r"^processor\s*: (\d+)$", text("/proc/cpuinfo"), re.MULTILINE),
            "stat": re.findall(r"^cpu(\d+) ", text("/proc/stat"), re.MULTILINE),
            "with_topology": [
                name for name in os.listdir("/sys/devices/system/cpu")
                if re.fullmatch(r"cpu\d+", name) and os.listdir(f"/sys/devices/system/cpu/{name}")
            ],
        }  # fmt: skip

    for net in ("host", "none"):
        found = run(warden, look, **SMALL, net=net)
        (cpu,) = found["affinity"]
        assert found["count"] == (1, 1, 1)
        assert found["lists"] == [f"{cpu}\n"] * 3
        assert found["nodes"] == (str(cpu) if NODES else "")
        assert found["masks"] == (1 << cpu if NODES else 0)
        assert found["cpuinfo"] == found["stat"] == [str(cpu)]
        assert found["with_topology"] == [f"cpu{cpu}"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: nothing to go round")
def test_boxes_take_turns_on_the_cpus(warden: Warden):
    seen = [run(warden, lambda: os.sched_getaffinity(0), **SMALL) for _ in range(4)]
    assert seen[0] != seen[1]
    assert set().union(*seen) <= os.sched_getaffinity(0)


def test_sysinfo_speaks_of_the_limits(warden: Warden):
    def look() -> tuple[int, int, float]:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages, free, os.getloadavg()[0]

    pages, free, load = run(warden, look, **SMALL)
    assert pages == 96 * MIB
    assert 80 * MIB < free < 96 * MIB
    assert load < 1


def test_without_limits_the_machines_memory_is_seen(warden: Warden):
    def look() -> tuple[int, str, int | None]:
        return os.sysconf("SC_PHYS_PAGES"), text("/proc/meminfo").split("\n")[0], os.cpu_count()

    pages, total, count = run(warden, look, proc="limits")
    assert (pages, total, count) == (*look()[:2], len(os.sched_getaffinity(0)))


def test_an_ordinary_user_in_the_box_sees_the_same_and_cannot_write_it(warden: Warden):
    def look() -> tuple[int, int, list[str]]:
        refused = []
        for path in ("/proc/meminfo", "/sys/devices/system/cpu/online"):
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError as error:
                refused.append(type(error).__name__)
        return os.getuid(), os.sysconf("SC_PHYS_PAGES"), refused

    assert run(warden, look, **SMALL, user="nobody") == (65534, 24576, ["PermissionError"] * 2)


def test_root_in_the_box_cannot_change_what_it_sees(warden: Warden):
    def look() -> list[str]:
        errors = []
        for attempt in (lambda: os.open("/proc/meminfo", os.O_WRONLY), lambda: os.truncate("/proc/meminfo", 0)):
            try:
                attempt()
            except OSError as error:
                errors.append(error.strerror or "")
        return errors

    assert run(warden, look, **SMALL) == ["Read-only file system"] * 2


@pytest.mark.needs("time namespace")
def test_a_clock_of_the_users_stays(warden: Warden):
    hour = 3600.0

    def look() -> tuple[float, float]:
        return time.clock_gettime(time.CLOCK_BOOTTIME), eventually(behind, lambda seconds: abs(seconds) < LATE)

    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    clock, apart = run(warden, look, **SMALL, clock=(("boottime", hour),))
    assert now + hour <= clock < now + hour + 60
    assert abs(apart) < LATE


def test_the_cgroup_file_system_can_be_hidden(warden: Warden):
    def look() -> tuple[list[str], bool]:
        return os.listdir("/sys/fs/cgroup"), "cgroup" in text("/proc/self/mountinfo")

    assert run(warden, look, cgroup_view=False) == ([], False)
    assert run(warden, look)[1] is True


def test_where_another_listener_is_the_files_remain(warden: Warden, monkeypatch: pytest.MonkeyPatch):
    outer = listener.listen

    def twice() -> int:
        os.close(outer())
        return outer()

    def look() -> str:
        return text("/proc/meminfo").split("\n")[0].split()[1]

    monkeypatch.setattr(listener, "listen", twice)
    assert run(warden, look, **SMALL) == "98304"


def test_nothing_of_it_is_done_for_other_boxes(warden: Warden):
    def look() -> tuple[int, bool]:
        return int(status_field("Seccomp_filters")), " /proc/meminfo " in text("/proc/self/mountinfo")

    with started() as fresh:
        run(fresh, lambda: None, mem=96 * MIB, swap=0)
        mapped = os.readlink(f"/proc/{fresh.pid}/cwd")
        assert os.listdir(f"{mapped}/views") == []
        descriptors = f"/proc/{fresh.pid}/fd"
        opened = ""
        for fd in os.listdir(descriptors):
            # It may be at work still.
            with suppress(FileNotFoundError):
                opened += os.readlink(f"{descriptors}/{fd}")
        assert "timerfd" not in opened
    # The listener is a filter more.
    every, _ = run(warden, look)
    assert run(warden, look, mem=96 * MIB, swap=0) == (every, False)
    assert run(warden, look, **SMALL) == (every + 1, True)


@pytest.mark.slow
def test_twenty_live_boxes_cost_little():
    def cpu_time(pid: int) -> float:
        fields = text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with started() as warden:
        boxes = [warden.acquire(Spec(**SMALL)) for _ in range(20)]
        reader, writer = os.pipe()
        children = [fork_into(box, lambda: os.read(reader, 1)) for box in boxes]
        time.sleep(0.5)
        # The same work takes longer beside others, never shorter.
        shares: list[float] = []
        while len(shares) < 5 and (not shares or shares[-1] >= 0.05):
            begun, used = time.monotonic(), cpu_time(warden.pid)
            time.sleep(2)
            shares.append((cpu_time(warden.pid) - used) / (time.monotonic() - begun))
        os.write(writer, b"x" * 20)
        for child in children:
            collect(*child)
        for box in boxes:
            box.release()
        os.close(reader)
        os.close(writer)
    assert min(shares) < 0.05, shares
