"""Programs that size themselves by the machine, in boxes with and without ``proc="limits"``: the real ones."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.capabilities import require

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory", "cgroup:cpu", "seccomp listener")

HERE = """
    import json, os, re, subprocess
    import pytest

    def out(*command, **more):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
"""
SMALL = ("--sandbox-set", "mem=96M", "--sandbox-set", "cpu=50%", "--sandbox-set", "proc=limits")


def suite(pytester: pytest.Pytester, *parts: str) -> None:
    pytester.makepyfile("\n".join(map(textwrap.dedent, (HERE, *parts))))


@pytest.mark.needs("program:free", "program:vmstat", "program:top", "program:busybox", "program:htop")
def test_programs_of_a_distribution_see_the_limits(pytester: pytest.Pytester):
    suite(
        pytester,
        """
        def test_free():
            assert out("free", "-m").splitlines()[1].split()[1] == "96"
            assert out("free", "-m").splitlines()[2].split()[1:] == ["0", "0", "0"]

        def test_busybox():
            assert out("busybox", "free", "-m").splitlines()[1].split()[1] == "96"
            assert out("busybox", "nproc") == "1\\n"
            assert re.search(r"up 0 min,", out("busybox", "uptime"))

        def test_nproc():
            assert out("nproc") == out("nproc", "--all") == "1\\n"

        def test_top():
            head = out("top", "-b", "-n", "1")
            assert re.search(r"MiB Mem : +96.0 total", head)
            assert re.search(r"up 0 min,", head)
            assert re.search(r"load average: 0\\.", head)

        def test_vmstat():
            row = out("vmstat").splitlines()[-1].split()
            assert row[2] == "0" and int(row[3]) < 96 << 10
            # Not what the machine did since it was started, divided by the seconds of the box.
            assert row[8:10] == ["0", "0"] and max(map(int, row[10:12])) < 10_000_000

        def test_uptime_and_ps():
            assert re.search(r"up 0 min,", out("uptime"))
            ages = [int(line) for line in out("ps", "-eo", "etimes=").splitlines()]
            assert len(ages) >= 3 and max(ages) < 60

        def test_htop():
            screen = out("htop", "-C", input="q", env={**os.environ, "TERM": "xterm", "HTOPRC": "/dev/null"})
            text = re.sub(r"\\x1b[^A-Za-z]*[A-Za-z]", " ", screen)
            assert re.search(r"Mem *\\[\\D*[\\d.]+[KM]/96\\.0M", text), text
        """,
    )
    pytester.runpytest_subprocess("--sandbox-all", *SMALL).assert_outcomes(passed=7)


def test_python_sees_the_limits(pytester: pytest.Pytester):
    pytest.importorskip("psutil")
    suite(
        pytester,
        """
        def test_os():
            assert os.cpu_count() == len(os.sched_getaffinity(0)) == os.sysconf("SC_NPROCESSORS_ONLN") == 1
            assert os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") == 96 << 20
            assert os.getloadavg()[0] < 1

        def test_psutil():
            import psutil, time
            assert psutil.cpu_count() == psutil.cpu_count(logical=False) == 1
            assert psutil.virtual_memory().total == 96 << 20
            assert psutil.swap_memory().total == 0
            assert time.time() - psutil.boot_time() < 60
            assert 0 <= time.time() - psutil.Process().create_time() < 60
            assert len(psutil.cpu_percent(0.1, percpu=True)) == 1

        @pytest.mark.sandbox(proc="host")
        def test_the_bug():
            assert os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 96 << 20

        def test_a_pool_of_processes():
            import concurrent.futures
            with concurrent.futures.ProcessPoolExecutor() as pool:
                assert pool._max_workers == 1
                assert pool.submit(os.cpu_count).result() == 1
        """,
    )
    pytester.runpytest_subprocess("--sandbox-all", *SMALL).assert_outcomes(passed=4)


def test_a_box_in_such_a_box_says_what_it_cannot_have(pytester: pytest.Pytester):
    inner = pytester.mkdir("inner")
    (inner / "test_inner.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.sandbox(proc='limits', mem='64M', cpu=1, net=False)\n"
        "def test_files():\n"
        "    assert open('/proc/meminfo').readline().split()[1] == '65536'\n"
        "    assert os.cpu_count() == 1\n"
        "    assert os.sysconf('SC_PHYS_PAGES') == 65536\n",
        encoding="utf-8",
    )
    suite(
        pytester,
        f"""
        import sys

        def test_outer():
            print(out(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", {str(inner)!r}))
        """,
    )
    # The controller of a limit must be seen in the outer box.
    outer = ("--sandbox-set", "mem=256M", "--sandbox-set", "cpu=1", "--sandbox-set", "proc=limits")
    result = pytester.runpytest_subprocess("--sandbox-all", "-s", *outer, "--ignore=inner")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["sandbox: sysinfo(2) tells the limits of the box around this one: *"])


JAVA = """
    def heap(*options):
        text = out("java", *options, "-XX:+PrintFlagsFinal", "-XX:+UseSerialGC", "-version")
        return int(re.search(r"MaxHeapSize += (\\d+)", text)[1])
"""


def test_openjdk_sees_the_limits(pytester: pytest.Pytester):
    require("runtime:java")
    suite(
        pytester,
        JAVA,
        """
        # Half of a memory as small as this, by the rules of the JVM.
        @pytest.mark.sandbox(proc="limits")
        def test_without_container_support():
            assert heap("-XX:-UseContainerSupport") <= 64 << 20
            assert "processor count set to 1" in out("java", "-XX:-UseContainerSupport", "-Xlog:os=debug", "-version")

        def test_container_support_reads_the_cgroup_view():
            assert heap() <= 64 << 20

        @pytest.mark.sandbox(cgroup_view=False)
        def test_the_bug():
            assert heap() > 96 << 20

        @pytest.mark.sandbox(cgroup_view=False, proc="limits")
        def test_the_bug_is_gone():
            assert heap() <= 64 << 20
        """,
    )
    result = pytester.runpytest_subprocess("--sandbox-all", *SMALL[:4])
    result.assert_outcomes(passed=4)


def test_node_sees_the_limits(pytester: pytest.Pytester):
    require("runtime:node")
    suite(
        pytester,
        """
        def ask():
            script = "const os = require('os'); console.log(JSON.stringify([os.totalmem(), os.cpus().length, " \\
                "os.availableParallelism ? os.availableParallelism() : 1, os.freemem(), os.uptime()]))"
            return json.loads(out("node", "-e", script))

        def test_limits():
            total, cpus, parallel, free, uptime = ask()
            assert (total, cpus, parallel) == (96 << 20, 1, 1)
            assert free <= 96 << 20 and uptime < 60

        @pytest.mark.sandbox(proc="host")
        def test_the_bug():
            assert ask()[0] > 96 << 20
        """,
    )
    pytester.runpytest_subprocess("--sandbox-all", *SMALL).assert_outcomes(passed=2)


def test_go_sees_the_limits(pytester: pytest.Pytester, tmp_path: Path):
    require("runtime:go")
    source = tmp_path / "count.go"
    source.write_text(
        'package main\nimport ("fmt"; "runtime")\n'
        "func main() { fmt.Println(runtime.NumCPU(), runtime.GOMAXPROCS(0)) }\n",
        encoding="utf-8",
    )
    program = tmp_path / "count"
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", str(program), str(source)], check=True, env=environment, timeout=300)
    suite(
        pytester,
        f"""
        def test_cpus():
            assert out({str(program)!r}) == "1 1\\n"
        """,
    )
    pytester.runpytest_subprocess("--sandbox-all", *SMALL).assert_outcomes(passed=1)
