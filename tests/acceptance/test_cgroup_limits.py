"""Limits and usage through the plugin, on whichever cgroup version the machine has; `python -m tests.vm` has v2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox.kernel import cgroup, cgroup_tree
from tests.acceptance.comparing import BARE
from tests.capabilities import require_cgroup_version, times
from tests.kernel.cgroups import groups_below
from tests.leftovers import PARENT

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:pids", "cgroup:cpu")

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)


def run(pytester: pytest.Pytester, *arguments: str) -> tuple[pytest.RunResult, dict[str, dict[str, Any]]]:
    """Run the suite with the usage written as JSON; return the result and {test name: its entry}."""
    result = pytester.runpytest_subprocess("-p", "nsbox", "--sandbox-json=usage.json", *arguments)
    entries = json.loads((pytester.path / "usage.json").read_text(encoding="utf-8"))["tests"]
    return result, {entry["nodeid"].rpartition("::")[2]: entry for entry in entries}


def test_memory_of_the_whole_process_tree_is_limited_and_counted(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import subprocess, sys
        import pytest

        HOLD = "import sys; block = bytearray(int(sys.argv[1]) << 20); print('held')"

        @pytest.mark.sandbox(mem="96M")
        def test_child_within(): subprocess.run([sys.executable, "-c", HOLD, "40"], check=True)

        @pytest.mark.sandbox(mem="64M")
        def test_child_beyond():
            assert subprocess.run([sys.executable, "-c", HOLD, "200"]).returncode == -9

        @pytest.mark.sandbox(mem="64M")
        def test_itself_beyond(): bytearray(200 << 20)
        """
    )
    result, entries = run(pytester)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["OOM-killed: memory limit 64.0 MiB, peak 6?.? MiB"])
    assert entries["test_child_within"]["usage"]["oom_kills"] == 0
    assert entries["test_child_within"]["usage"]["memory_peak_bytes"] > 40 * MIB
    assert entries["test_child_beyond"]["usage"]["oom_kills"] == 1
    assert entries["test_child_beyond"]["usage"]["memory_limit_bytes"] == 64 * MIB
    assert entries["test_itself_beyond"]["usage"]["oom_kills"] == 1


def test_a_fork_bomb_is_stopped_by_the_pids_limit(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os, time
        import pytest

        @pytest.mark.sandbox(pids=8)
        def test_bomb():
            children = 0
            with pytest.raises(BlockingIOError):
                while children < 100:
                    if os.fork() == 0:
                        time.sleep(60)
                        os._exit(0)
                    children += 1
            # The test itself is the eighth; the box's init does not count.
            assert children == 7
        """
    )
    result, entries = run(pytester)
    result.assert_outcomes(passed=1)
    assert entries["test_bomb"]["usage"].get("pids_peak", 8) == 8


def test_the_cpu_quota_slows_a_test_and_the_usage_tells(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import time
        import pytest

        # So little that the quota is used up early in each period, also where others want the CPU.
        @pytest.mark.sandbox(cpu="10%", cpu_period="20ms")
        def test_slow():
            end = time.monotonic() + 1
            while time.monotonic() < end:
                pass
        """
    )
    result, entries = run(pytester)
    result.assert_outcomes(passed=1)
    used = entries["test_slow"]["usage"]
    assert used["cpu_s"] < 0.5 * used["wall_s"]
    assert used["cpu_nr_throttled"] > 5
    # For the rest of each period, of which others that want the CPU may have left little.
    assert used["cpu_throttled_s"] > 0.02


def test_a_box_sees_its_own_limits_and_cannot_change_them(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import glob
        import pytest

        @pytest.mark.sandbox(mem="64M", pids=20)
        def test_view():
            found = {}
            for pattern in ("*memory.limit_in_bytes", "memory.max", "*pids.max"):
                for path in glob.glob(f"/sys/fs/cgroup/**/{pattern}", recursive=True):
                    found[path.rpartition("/")[2]] = open(path).read().strip()
                    with pytest.raises(OSError):
                        with open(path, "w") as file:
                            file.write("1000000000")
            assert found.get("memory.max", found.get("memory.limit_in_bytes")) == str(64 << 20), found
            assert found["pids.max"] == "20", found
            own = {line.split(":")[1]: line.strip().split(":")[2] for line in open("/proc/self/cgroup")}
            assert own.get("memory", own.get("")) == "/", own
        """
    )
    result, _ = run(pytester)
    result.assert_outcomes(passed=1)


def test_a_box_makes_groups_of_its_own_inside(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os
        import pytest

        @pytest.mark.sandbox(mem="64M")
        def test_nested():
            home = next(p for p in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if os.path.exists(f"{p}/cgroup.procs"))
            os.mkdir(f"{home}/inner")
            with open(f"{home}/inner/cgroup.procs", "w") as file:
                file.write("0")
            assert "/inner" in open("/proc/self/cgroup").read()
        """
    )
    result, _ = run(pytester)
    result.assert_outcomes(passed=1)


def test_limits_that_need_an_absent_controller_fail_the_test_and_say_so(pytester: pytest.Pytester):
    have = {name for mount in cgroup.find_mounts() for name in mount.controllers or _passed_on(mount.point)}
    if "cpuset" in have:
        pytest.skip("this machine has the cpuset controller")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.sandbox(cpuset="0")
        def test_pinned(): pass

        def test_other(): pass
        """
    )
    result, _ = run(pytester)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the cgroup controller cpuset cannot be used: *"])


def _passed_on(point: str) -> list[str]:
    return Path(point, "cgroup.controllers").read_text(encoding="utf-8").split()


def test_no_group_stays_after_a_run_with_every_ending(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os, signal, subprocess, time
        import pytest

        pytestmark = pytest.mark.sandbox(mem="64M", pids=30, cpu=0.9)

        def test_leaves_a_process(): subprocess.Popen(["sleep", "600"])
        def test_dies(): os.kill(os.getpid(), signal.SIGSEGV)
        def test_exits(): os._exit(3)
        def test_is_too_big(): bytearray(200 << 20)

        @pytest.mark.sandbox(timeout="TIMEOUT")
        def test_is_too_slow(): time.sleep(60)

        def test_passes(): pass
        """.replace("TIMEOUT", f"{times(1, 8)}s")  # not in its set-up: the VM may take a second for that
    )
    result, _ = run(pytester)
    result.assert_outcomes(passed=2, failed=4)
    place = os.environ.get(PARENT) or "nsbox-"
    assert [path for path in groups_below(place) if path.rpartition("/")[2].startswith(("nsbox-", "box-"))] == []


def test_in_a_delegated_group_pytest_makes_room_for_boxes_and_goes_back(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    require_cgroup_version(2)
    # As `systemd-run --scope -p Delegate=yes` leaves it: with pytest in the group, which so cannot limit those inside.
    root = Path("/sys/fs/cgroup")
    group = root / f"given-{os.getpid()}"
    root.joinpath("cgroup.subtree_control").write_text("+cpu +memory +pids +io", encoding="ascii")
    group.mkdir()
    try:
        os.setxattr(group, "user.delegate", b"1")
        monkeypatch.delenv(PARENT)
        pytester.makepyfile(
            """
            import pytest

            @pytest.fixture(scope="session", autouse=True)
            def outside():
                yield
                assert open("/proc/self/cgroup").read().endswith("/nsbox.host\\n")

            @pytest.mark.sandbox(mem="64M", pids=20)
            def test_limited():
                assert open("/sys/fs/cgroup/memory.max").read() == "67108864\\n"
            """
        )
        command = 'echo 0 > "$1/cgroup.procs" && shift && "$@"; s=$?; cat /proc/self/cgroup; exit $s'
        pytest_ = (sys.executable, "-m", "pytest", "-p", "nsbox", "-p", "no:cacheprovider")
        result = pytester.run("sh", "-c", command, "sh", str(group), *pytest_)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines([f"0::/{group.name}"])
        assert [path for path in group.iterdir() if path.is_dir()] == []
    finally:
        cgroup_tree.Group(str(group)).remove()


@pytest.mark.needs("cgroup:io or blkio")
def test_what_a_test_syncs_is_slowed_to_its_rate(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os, time
        import pytest

        @pytest.mark.sandbox(io={"wbps": "4M", "riops": 1000})
        def test_writes():
            began = time.monotonic()
            with open("/var/tmp/file", "wb") as file:
                for _ in range(3):
                    file.write(bytes(1 << 20))
                    file.flush()
                    os.fsync(file.fileno())
            assert time.monotonic() - began > 0.5
        """
    )
    result, entries = run(pytester)
    result.assert_outcomes(passed=1)
    assert entries["test_writes"]["limits"] == {"io": {"riops": 1000, "wbps": 4 * MIB}}


@pytest.mark.needs("swap", "program:mkswap", "program:swapon")
def test_a_test_may_swap_as_much_as_it_says_and_not_at_all_without(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    path = f"{tempfile.gettempdir()}/swap-{os.getpid()}"
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 96 * MIB)
    os.chmod(path, 0o600)
    subprocess.run(["mkswap", path], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", path], check=True)
    try:
        pytester.makepyfile(
            """
            import pytest

            def touch(): assert len(bytearray(48 << 20)) == 48 << 20

            @pytest.mark.sandbox(mem="32M", swap="64M")
            def test_swaps(): touch()

            @pytest.mark.sandbox(mem="32M", swap="8M")
            def test_swaps_too_much(): touch()

            @pytest.mark.sandbox(mem="32M")
            def test_may_not_swap(): touch()
            """
        )
        result, _ = run(pytester)
    finally:
        subprocess.run(["swapoff", path], check=True)
        os.unlink(path)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*_ test_swaps_too_much _*", "OOM-killed: memory *", "*_ test_may_not_swap _*", "OOM-killed: memory *"]
    )


def test_devices_that_are_let_in_can_be_opened(pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import os
        import pytest

        @pytest.mark.sandbox(devices=["/dev/full:rw", "/dev/kmsg"])
        def test_open():
            os.close(os.open("/dev/kmsg", os.O_WRONLY))
            assert sorted(set(os.listdir("/dev")) & {"kmsg", "loop0"}) == ["kmsg"]

        @pytest.mark.sandbox(devices=["/dev/no-such-thing"])
        def test_not_there(): pass

        @pytest.mark.sandbox(devices=["/dev/shm"])
        def test_no_device(): pass
        """
    )
    result, _ = run(pytester)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        ["devices: /dev/no-such-thing: No such file or directory", "devices: /dev/shm is no device"]
    )
