"""What a test used: properties, junit.xml, the summary table, --sandbox-json, --sandbox-html."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

import pytest_nsbox
from pytest_nsbox.policy.usage import NAMES
from tests.acceptance.comparing import Recorded, Runs

pytestmark = pytest.mark.needs("root", "overlay", "cgroup:memory", "cgroup:cpu")

SUITE = {
    "test_usage.py": """
        import os
        import subprocess
        import sys
        import time
        import pytest

        BURN = "import time; end = time.process_time() + 0.5\\nwhile time.process_time() < end: pass"
        FILL = "x = bytearray(80 * 2**20); x[::4096] = b'x' * len(x[::4096])"

        def test_nothing():
            pass

        def test_burns_in_a_child(sandbox):
            subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
            used = sandbox.usage()
            assert used["cpu_s"] >= 0.5 and used["wall_s"] >= 0.5, used

        @pytest.mark.sandbox(mem="256M")
        def test_fills_in_a_child():
            subprocess.run([sys.executable, "-S", "-c", FILL], check=True)

        @pytest.mark.sandbox(cpu="5%")  # less than a busy machine leaves it
        def test_is_throttled():
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass

        def test_sleeps_and_writes():
            time.sleep(0.4)
            open("/etc/made-by-a-test", "w").close()
            open("made-by-a-test", "w").close()

        @pytest.mark.sandbox(False)
        def test_outside():
            open("really-made", "w").close()

        @pytest.mark.skip
        def test_skipped():
            pass

        def test_starts_processes():
            for process in [subprocess.Popen(["sleep", "0.2"]) for _ in range(5)]:
                process.wait()

        def test_fails(record_property):
            record_property("own", "kept")
            assert 0

        @pytest.mark.sandbox(mem="64M", timeout=30, ulimits={"nofile": 256}, pids=50)
        @pytest.mark.xfail
        def test_limits():
            assert 0
    """
}


@pytest.fixture
def usage(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """One run for all tests of this module, with junit and JSON."""
    monkeypatch.setenv("COLUMNS", "150")
    files = ("--junitxml=junit.xml", "--sandbox-json=usage.json", "--sandbox-html=page.html")
    return runs.once("usage", SUITE, *files, "--sandbox-report=3")


def of(run: Recorded, name: str) -> dict[str, float]:
    return {
        key.removeprefix("sandbox."): float(value)
        for key, value in run.properties(name).items()
        if key.startswith("sandbox.")
    }


def test_every_test_in_a_box_has_its_usage_as_properties(usage: Recorded):
    usage.result.assert_outcomes(passed=7, failed=1, skipped=1, xfailed=1)
    used = of(usage, "test_nothing")
    assert set(used) <= set(NAMES)
    assert {"wall_s", "cpu_s", "memory_peak_bytes", "oom_kills", "files_changed"} <= set(used)
    assert 0 < used["cpu_s"] < 2
    assert 0 < used["wall_s"] < 5
    assert 10_000 < used["memory_peak_bytes"] < 100 * 2**20
    assert used["oom_kills"] == used["files_changed"] == 0
    for name in ("test_outside", "test_skipped"):
        assert of(usage, name) == {}
    assert usage.properties("test_fails")["own"] == "kept"


def test_subprocesses_count(usage: Recorded):
    assert 0.5 <= of(usage, "test_burns_in_a_child")["cpu_s"] < 3
    used = of(usage, "test_fills_in_a_child")
    assert 80 * 2**20 <= used["memory_peak_bytes"] < 150 * 2**20
    assert used["memory_limit_bytes"] == 256 * 2**20
    assert of(usage, "test_starts_processes").get("pids_peak", 6) >= 6


def test_throttling_wall_clock_and_files_are_told(usage: Recorded):
    used = of(usage, "test_is_throttled")
    assert used["cpu_nr_throttled"] >= 1
    assert used["cpu_throttled_s"] > 0
    used = of(usage, "test_sleeps_and_writes")
    assert used["wall_s"] >= 0.4
    assert used["files_changed"] == 2
    assert not (usage.path / "made-by-a-test").exists()
    assert (usage.path / "really-made").exists()


def test_junit_has_the_usage_once_for_each_test(usage: Recorded):
    cases = {case.get("name"): case for case in ET.parse(usage.path / "junit.xml").iter("testcase")}
    for name in ("test_nothing", "test_fails", "test_limits"):
        found = [element.get("name") for element in cases[name].iter("property")]
        assert found.count("sandbox.wall_s") == 1, name
        assert len(found) == len(set(found)), name
    assert not list(cases["test_outside"].iter("property"))


def test_the_table_shows_the_heaviest_and_the_totals(usage: Recorded):
    lines = usage.result.outlines
    start = next(number for number, line in enumerate(lines) if "sandbox usage: 3 heaviest of 8" in line)
    assert lines[start + 1].split() == ["test", "wall", "cpu", "throttled", "memory", "limit", "pids", "files"]
    names = {line.split()[0] for line in lines[start + 2 : start + 5]}
    assert {"test_usage.py::test_burns_in_a_child", "test_usage.py::test_fills_in_a_child"} <= names
    assert lines[start + 5].startswith("8 tests in boxes, cpu ")


def test_the_json_file_has_limits_and_usage_of_every_test(usage: Recorded):
    document = json.loads((usage.path / "usage.json").read_text(encoding="utf-8"))
    assert document["schema"] == 1
    assert {"kernel", "cpus", "python", "pytest"} <= set(document["host"])
    assert document["host"]["pytest_nsbox"] == pytest_nsbox.__version__
    tests = {test["nodeid"].partition("::")[2]: test for test in document["tests"]}
    assert len(tests) == 10
    assert {name: test["outcome"] for name, test in tests.items() if test["outcome"] != "passed"} == {
        "test_skipped": "skipped",
        "test_fails": "failed",
        "test_limits": "xfailed",
    }
    limits = tests["test_limits"]["limits"]
    assert (limits["mem"], limits["pids"], limits["timeout"]) == (64 * 2**20, 50, 30)
    assert limits["ulimits"] == {"nofile": [256, 256]}
    assert tests["test_limits"]["usage"]["memory_limit_bytes"] == 64 * 2**20
    assert tests["test_outside"]["usage"] == tests["test_outside"]["limits"] == {}


def test_the_page_shows_every_test_its_limits_and_what_it_is_made_of(usage: Recorded):
    usage.result.stdout.fnmatch_lines(["sandbox report written to *page.html"])
    page = (usage.path / "page.html").read_text(encoding="utf-8")
    assert page.count("<tr class=") == 10
    assert "@pytest.mark.sandbox(mem=&#x27;64M&#x27;, pids=50, ulimits={&#x27;nofile&#x27;: 256}, timeout=30)" in page
    assert "<p>every test in a box, as root" in page
    assert '<label class="failed">' in page


def test_xdist_gathers_the_usage_and_none_hides_the_table(runs: Runs):
    runs.autoload()
    suite = {"test_two.py": "def test_one(): pass\n\ndef test_two(): pass\n"}
    directory = runs.write(suite, "boxed")
    ours = ["-n2", "-p", "no:hypothesispytest", "--sandbox-json=usage.json"]
    run = runs.run(directory, *ours)
    run.result.stdout.fnmatch_lines(
        ["*= sandbox usage =*", "2 tests in boxes, cpu *", "sandbox usage written to *usage.json"]
    )
    document = json.loads((directory / "usage.json").read_text(encoding="utf-8"))
    assert all(test["usage"]["wall_s"] > 0 for test in document["tests"])
    assert len(document["tests"]) == 2
    assert "sandbox usage =" not in runs.run(directory, "--sandbox-report=none", "-p", "no:xdist").result.stdout.str()
