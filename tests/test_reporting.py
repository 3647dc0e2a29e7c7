"""Table, JSON, header and endings, in runs of pytest that hold only the part of the plugin that reports."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_nsbox import reporting
from pytest_nsbox.reporting import Facts, header
from pytest_nsbox.results import Result, host_facts, write_json
from tests.html.reader import Reader

MIB = 2**20

# Stands for the plugin: usage by a marker, and endings by exceptions of the plugin.
CONFTEST = """
import os
from pathlib import Path
import pytest
from pytest_nsbox import reporting
from pytest_nsbox.policy.usage import as_properties

def pytest_addoption(parser):
    parser.addoption("--rows", type=lambda text: None if text == "all" else int(text), default=10)
    parser.addoption("--json", type=Path)
    parser.addoption("--html", type=Path)

def pytest_configure(config):
    config.addinivalue_line("markers", "used(**usage)")
    config.addinivalue_line("markers", "dies(error, phase)")
    if not hasattr(config, "workerinput"):
        option = config.option
        summary = reporting.Summary(rows=option.rows, json_path=option.json, html_path=option.html,
                                    about=lambda: ["sandbox: by a test"])
        config.pluginmanager.register(summary)

def die(item, phase):
    mark = item.get_closest_marker("dies")
    if mark and mark.args[1] == phase:
        raise reporting.placed(mark.args[0], *reporting.place_of(item))

def pytest_runtest_setup(item):
    die(item, "setup")

def pytest_runtest_call(item):
    die(item, "call")

@pytest.hookimpl(trylast=True)  # after pytest's own, or the next test's setup fails
def pytest_runtest_teardown(item):
    die(item, "teardown")

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and item.get_closest_marker("dies") and report.failed:
        report.longrepr = reporting.ending_repr(call.excinfo, {"stacks": "Thread 1"})
    mark = item.get_closest_marker("used")
    if mark and call.when == "teardown":
        reporting.attach(report, as_properties(mark.kwargs), {"mem": 2**28, "cpu": 0.2, "net": "none",
                         "ulimits": [["nofile", 10, 20]]})
    return report
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest on `source`, 120 columns wide, with the plugins named in the arguments and no others."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("PYTHONPATH", str(Path(reporting.__file__).parents[1]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(CONFTEST)

    def go(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=source)
        result: pytest.RunResult = pytester.runpytest("-p", "no:cacheprovider", *arguments)
        return result

    return go


TWO = """
import pytest

@pytest.mark.used(wall_s=2.5, cpu_s=1.25, memory_peak_bytes=2**28, memory_limit_bytes=2**28, pids_peak=3, oom_kills=1)
def test_heavy(): pass

@pytest.mark.used(wall_s=0.5, cpu_s=0.01, memory_peak_bytes=9 * 2**20, pids_peak=1, oom_kills=0)
@pytest.mark.parametrize("n", range(3))
def test_light(n): pass

def test_plain(): pass
"""


HEAVY_LINE = "test_it.py::test_heavy     2.50s  1.25s    256M   256M     3    1"


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_summary_shows_what_boxed_tests_used(run):
    result = run(TWO)
    result.stdout.fnmatch_lines(
        [
            "=* sandbox usage =*",
            "test                        wall    cpu  memory  limit  pids  oom",
            HEAVY_LINE,
            "test_it.py::test_light?0?  500ms   10ms      9M      -     1    0",
            "test_it.py::test_light?2? *",
            "4 tests in boxes, cpu 1.28s, largest memory peak 256M, 1 OOM kill",
        ]
    )
    result.stdout.no_fnmatch_line("*test_plain*")
    result.stdout.no_fnmatch_line("*sandbox usage written*")


def test_only_the_heaviest_are_shown_when_fewer_rows_are_wanted(run):
    result = run(TWO, "--rows=1")
    result.stdout.fnmatch_lines(
        [
            "=* sandbox usage: 1 heaviest of 4 (CPU, memory and wall time) =*",
            "test *",
            "*::test_heavy *",
            "4 tests in boxes*",
        ]
    )
    result.stdout.no_fnmatch_line("*::test_light*")


def test_no_table_when_none_is_wanted_or_no_test_ran_in_a_box(run):
    run(TWO, "--rows=0").stdout.no_fnmatch_line("*sandbox*")
    run("def test_plain(): pass").stdout.no_fnmatch_line("*sandbox*")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_of_the_table_is_wider_than_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run(TWO, "--rows=all").outlines
    start = next(index for index, line in enumerate(lines) if " sandbox usage" in line)
    table = lines[start : start + 6]
    assert "4 tests in boxes" not in " ".join(table)
    assert max(map(len, table)) <= columns


def test_the_controller_of_xdist_shows_and_writes_what_its_workers_measured(run, tmp_path):
    pytest.importorskip("xdist")
    path = tmp_path / "usage.json"
    result = run(TWO, "-p", "xdist", "-n2", f"--json={path}")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines([HEAVY_LINE, "4 tests in boxes*"])
    document = json.loads(path.read_text(encoding="utf-8"))
    heavy = next(test for test in document["tests"] if test["nodeid"].endswith("test_heavy"))
    assert heavy["limits"] == {"cpu": 0.2, "mem": 2**28, "ulimits": {"nofile": [10, 20]}}
    assert heavy["usage"]["memory_peak_bytes"] == 256 * MIB


def test_notes_are_shown_once_collection_is_over(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    summary = reporting.Summary()
    summary.notes.append("sandbox: 3 test(s) are skipped: no overlay")
    pytester.makepyfile("def test_a(): pass")
    result = pytester.runpytest_inprocess(plugins=[summary])
    result.stdout.fnmatch_lines(["collected 1 item", "sandbox: 3 test(s) are skipped: no overlay", "*.py . *"])


# --- JSON -----------------------------------------------------------------------------------------------------------


def outcomes(path: Path) -> dict[str, str]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return {test["nodeid"].partition("::")[2]: test["outcome"] for test in document["tests"]}


def test_the_json_file_holds_host_limits_and_usage(run, tmp_path):
    path = tmp_path / "made" / "on the way" / "usage.json"
    run(TWO, f"--json={path}").stdout.fnmatch_lines([f"sandbox usage written to {path}"])
    document = json.loads(path.read_text(encoding="utf-8"))
    assert set(document) == {"schema", "host", "tests"}
    assert document["schema"] == 1
    assert document["host"]["kernel"] == os.uname().release
    assert document["host"]["cpus"] == os.cpu_count()
    heavy, *_, plain = document["tests"]
    assert heavy == {
        "nodeid": "test_it.py::test_heavy",
        "outcome": "passed",
        "limits": {"cpu": 0.2, "mem": 2**28, "ulimits": {"nofile": [10, 20]}},
        "usage": {
            "wall_s": 2.5, "cpu_s": 1.25, "memory_peak_bytes": 256 * MIB, "memory_limit_bytes": 2**28,
            "oom_kills": 1, "pids_peak": 3,
        },
    }  # fmt: skip
    assert plain == {"nodeid": "test_it.py::test_plain", "outcome": "passed", "limits": {}, "usage": {}}


OUTCOMES = """
import pytest, unittest

@pytest.fixture
def breaks_before():
    raise OSError

@pytest.fixture
def breaks_after():
    yield
    raise OSError

def test_passed(): pass
def test_failed(): assert 0
def test_error(breaks_before): pass
def test_teardown_error(breaks_after): pass
def test_failed_and_teardown_error(breaks_after): assert 0
def test_skipped_inside_and_teardown_error(breaks_after): pytest.skip()
def test_skipped(): pytest.skip()
@pytest.mark.skip
def test_skipped_by_mark(): pass
@pytest.mark.xfail
def test_xfailed(): assert 0
@pytest.mark.xfail(run=False)
def test_xfailed_unrun(): assert 0
@pytest.mark.xfail(strict=False)
def test_xpassed(): pass
@pytest.mark.xfail(strict=True)
def test_xpassed_strict(): pass

class TestCase(unittest.TestCase):
    def test_subtests(self):
        for n in range(3):
            with self.subTest(n=n):
                assert n != 1
"""


def test_the_outcome_is_the_final_one_over_all_phases(run, tmp_path):
    run(OUTCOMES, f"--json={tmp_path / 'usage.json'}")
    assert outcomes(tmp_path / "usage.json") == {
        "test_passed": "passed",
        "test_failed": "failed",
        "test_error": "error",
        "test_teardown_error": "error",
        "test_failed_and_teardown_error": "failed",
        "test_skipped_inside_and_teardown_error": "error",
        "test_skipped": "skipped",
        "test_skipped_by_mark": "skipped",
        "test_xfailed": "xfailed",
        "test_xfailed_unrun": "xfailed",
        "test_xpassed": "xpassed",
        "test_xpassed_strict": "failed",
        "TestCase::test_subtests": "failed",
    }


@pytest.mark.skipif(int(pytest.__version__.partition(".")[0]) < 9, reason="subtests came with pytest 9")
def test_a_failed_subtest_is_a_failed_test_and_a_skipped_one_is_none(run, tmp_path):
    source = """
        import pytest
        def test_fails(subtests):
            with subtests.test(): assert 0
        def test_passes(subtests):
            with subtests.test(): pytest.skip()
    """
    run(source, f"--json={tmp_path / 'usage.json'}")
    assert outcomes(tmp_path / "usage.json") == {"test_fails": "failed", "test_passes": "passed"}


def test_of_a_test_that_is_run_again_the_last_attempt_counts(run, tmp_path):
    pytest.importorskip("pytest_rerunfailures")
    source = """
        import pytest
        tries = []
        @pytest.mark.used(cpu_s=1.0)
        def test_second_time_lucky():
            tries.append(1)
            assert len(tries) > 1
        def test_never(): assert 0
    """
    run(source, "-p", "pytest_rerunfailures", "--reruns=2", f"--json={tmp_path / 'usage.json'}")
    assert outcomes(tmp_path / "usage.json") == {"test_second_time_lucky": "passed", "test_never": "failed"}


def test_a_test_in_whose_midst_the_run_ended_is_interrupted(run, tmp_path):
    # pytester raises a KeyboardInterrupt again, after the run.
    with pytest.raises(KeyboardInterrupt):
        run("def test_first(): pass\ndef test_second(): raise KeyboardInterrupt", f"--json={tmp_path / 'usage.json'}")
    assert outcomes(tmp_path / "usage.json") == {"test_first": "passed", "test_second": "interrupted"}


def test_a_nodeid_that_is_run_twice_stands_twice(run, tmp_path):
    run("def test_a(): pass", "--keep-duplicates", "test_it.py", "test_it.py", f"--json={tmp_path / 'usage.json'}")
    document = json.loads((tmp_path / "usage.json").read_text(encoding="utf-8"))
    assert len(document["tests"]) == 2


def test_a_path_that_cannot_be_written_fails_an_otherwise_good_run(run, tmp_path):
    (tmp_path / "file").touch()
    result = run("def test_a(): pass", f"--json={tmp_path / 'file' / 'usage.json'}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"--sandbox-json: cannot write {tmp_path}/file/usage.json: Not a directory"])


def test_collecting_alone_keeps_the_last_file(run, tmp_path):
    path = tmp_path / "usage.json"
    path.write_text("old", encoding="utf-8")
    run(TWO, "--collect-only", f"--json={path}")
    assert path.read_text(encoding="utf-8") == "old"


def test_a_relative_path_is_meant_from_where_pytest_started(run, pytester):
    run("import os\ndef test_a(): os.chdir('/')", "--json=usage.json")
    assert (pytester.path / "usage.json").is_file()


def test_a_file_that_is_replaced_is_replaced_whole_and_through_a_link(tmp_path, monkeypatch):
    path, link = tmp_path / "usage.json", tmp_path / "link"
    path.write_text("old", encoding="utf-8")
    link.symlink_to(path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write_json(link, {}, [])
    assert path.read_text(encoding="utf-8") == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "usage.json"]
    write_json(link, {}, [Result("test_é\udcff.py::test_a")])
    assert link.is_symlink()
    (test,) = json.loads(path.read_text(encoding="utf-8"))["tests"]
    assert test["nodeid"] == "test_é\udcff.py::test_a"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    write_json(Path("/dev/null"), {}, [])
    assert Path("/dev/null").is_char_device()


# --- the page -------------------------------------------------------------------------------------------------------

TELLING = """
import pytest

@pytest.fixture
def breaks_after():
    yield
    raise OSError("torn")

def test_fails():
    print("written before")
    assert 0, "the reason"

def test_fails_twice(breaks_after):
    print("once")
    assert 0
@pytest.mark.skip(reason="not today")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_xfailed(): assert 0
def test_passes(): print("nobody asks")
"""


def told(path: Path) -> dict[str, dict[str, str]]:
    return Reader(path.read_text(encoding="utf-8")).told()


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "xdist"])
def test_the_page_has_what_tests_told(run, tmp_path, workers):
    if workers:
        pytest.importorskip("xdist")
    path = tmp_path / "made" / "page.html"
    result = run(TELLING, f"--html={path}", *workers)
    result.stdout.fnmatch_lines([f"sandbox report written to {path}"])
    text = told(path)
    assert "AssertionError: the reason" in text["test_fails"]["call failed"]
    assert text["test_fails"]["Captured stdout call"] == "written before\n"
    assert list(text["test_fails_twice"]) == ["call failed", "Captured stdout call", "teardown failed"]
    assert path.read_text(encoding="utf-8").count("<pre>once\n</pre>") == 1
    assert text["test_skipped"] == {"skipped": "not today"}
    assert text["test_xfailed"] == {"xfail": "known"}
    assert text["test_passes"] == {}
    assert "<p>by a test</p>" in path.read_text(encoding="utf-8")


def test_the_page_shows_usage_and_limits(run, tmp_path):
    path = tmp_path / "page.html"
    run(TWO, f"--html={path}", "-p", "no:terminal")
    text = path.read_text(encoding="utf-8")
    assert (
        "@pytest.mark.sandbox(cpu=&#x27;20%&#x27;, mem=&#x27;256M&#x27;, ulimits={&#x27;nofile&#x27;: [10, 20]})"
        in text
    )
    assert '<td class="number" data-value="1.25">1.25s</td>' in text
    assert "100% of mem" in text


def test_of_a_long_text_the_page_has_the_beginning_and_the_end(run, tmp_path):
    path = tmp_path / "page.html"
    run("def test_a():\n    print('first' + 'x' * 300_000 + 'last')\n    assert 0", f"--html={path}")
    text = told(path)["test_a"]["Captured stdout call"]
    assert text.startswith("firstxxx")
    assert text.endswith("xxxlast\n")
    assert "characters are left out" in text
    assert len(text) < 101_000


def test_without_the_page_no_texts_are_kept(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    summary = reporting.Summary()
    pytester.makepyfile("def test_a(): assert 0")
    pytester.runpytest_inprocess(plugins=[summary])
    assert [result.texts for result in summary.results.all()] == [None]


def test_a_page_that_cannot_be_written_is_told_beside_a_file_that_can(run, tmp_path):
    (tmp_path / "file").touch()
    result = run("def test_a(): pass", f"--html={tmp_path}/file/page.html", f"--json={tmp_path}/usage.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(
        [
            f"--sandbox-html: cannot write {tmp_path}/file/page.html: Not a directory",
            f"sandbox usage written to {tmp_path}/usage.json",
        ]
    )


def test_host_facts_are_plain_json():
    assert json.loads(json.dumps(host_facts()))["python"] == sys.version.partition(" ")[0]


# --- endings --------------------------------------------------------------------------------------------------------

DEATHS = """
import pytest
from pytest_nsbox import SandboxOOM, SandboxTimeout, SandboxCrash, SandboxError

OOM = SandboxOOM("OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB\\nraise mem=, e.g. mem='512M'")

@pytest.mark.dies(OOM, "call")
def test_oom():
    pass

@pytest.mark.dies(SandboxTimeout("timed out after 30.0 s (sandbox timeout)"), "setup")
@pytest.mark.parametrize("n", ["x"])
def test_timeout(n):
    pass

@pytest.mark.dies(SandboxCrash("killed by SIGSEGV"), "teardown")
def test_crash():
    pass

@pytest.mark.xfail(raises=SandboxOOM, strict=True)
@pytest.mark.dies(OOM, "call")
def test_expected():
    pass

@pytest.mark.xfail(raises=SandboxTimeout)
@pytest.mark.dies(OOM, "call")
def test_expected_otherwise():
    pass
"""


@pytest.mark.parametrize("style", ["auto", "long", "short", "native", "line", "no"])
def test_an_ending_is_told_by_its_own_text_and_honours_xfail(run, style):
    result = run(DEATHS, f"--tb={style}", "-ra")
    result.assert_outcomes(failed=2, errors=2, passed=1, xfailed=1)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_oom - OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB",
            "ERROR test_it.py::test_timeout?x? - timed out after 30.0 s (sandbox timeout)",
            "ERROR test_it.py::test_crash - killed by SIGSEGV",
            "FAILED test_it.py::test_expected_otherwise - OOM-killed: *",
        ]
    )
    for word in ("reporting.py", "die(item", "conftest"):
        result.stdout.no_fnmatch_line(f"*{word}*")


def test_the_text_begins_with_the_error_then_hints_then_stacks(run):
    lines = run(DEATHS).outlines
    start = next(index for index, line in enumerate(lines) if line.startswith("____") and " test_oom " in line)
    assert lines[start + 1 : start + 5] == [
        "OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB",
        "raise mem=, e.g. mem='512M'",
        " stacks ".center(120, "-"),
        "Thread 1",
    ]


def test_the_crash_line_names_the_test(run):
    result = run(DEATHS, "--tb=line")
    result.stdout.fnmatch_lines(
        [
            "*/test_it.py:6: OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB",
            "*/test_it.py:24: OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB",
        ]
    )


def test_an_ending_reads_the_same_through_xdist(run):
    pytest.importorskip("xdist")
    result = run(DEATHS, "-p", "xdist", "-n1", "-ra")
    result.assert_outcomes(failed=2, errors=2, passed=1, xfailed=1)
    result.stdout.fnmatch_lines(["raise mem=, e.g. mem='512M'", "-* stacks -*", "Thread 1"])
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_oom - OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB"])


def test_junit_has_usage_as_properties_and_endings_as_messages(run, pytester):
    run(TWO + DEATHS, "--junitxml=junit.xml")
    text = (pytester.path / "junit.xml").read_text(encoding="utf-8")
    assert '<property name="sandbox.memory_peak_bytes" value="268435456" />' in text
    assert '<failure message="OOM-killed: memory limit 256.0 MiB, peak 256.0 MiB"' in text
    assert "sandbox_limits" not in text


def test_placing_keeps_the_exception_and_gives_it_one_entry():
    error = ValueError("x")
    assert reporting.placed(error, "/nowhere/test_a.py", 7, "test_b") is error
    traceback = error.__traceback__
    assert traceback is not None
    assert traceback.tb_next is None
    assert (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) == ("/nowhere/test_a.py", 7)
    assert traceback.tb_frame.f_code.co_name == "test_b"


def test_a_test_whose_name_is_no_identifier_is_placed_too():
    error = reporting.placed(ValueError("x"), "/nowhere/readme.rst", 1, "readme.rst::2")
    assert error.__traceback__ is not None


OOM_LINE = "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB"


@pytest.mark.parametrize("way", ["direct", "through serialisation"])
def test_an_oom_kill_that_a_failed_test_outlived_ends_its_message(pytester, monkeypatch, way):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    item = pytester.getitem("def test_x():\n    assert 1 == 2\n", "test_x")
    call = pytest.CallInfo.from_call(item.runtest, when="call")
    report = pytest.TestReport.from_item_and_call(item, call)
    if way != "direct":
        hook = item.config.hook
        data = hook.pytest_report_to_serializable(config=item.config, report=report)
        report = hook.pytest_report_from_serializable(config=item.config, data=json.loads(json.dumps(data)))
    reporting.note_limit(report, OOM_LINE)
    assert f"E   {OOM_LINE}" in report.longreprtext
    longrepr: Any = report.longrepr
    assert longrepr.reprcrash.message.endswith(f"\n{OOM_LINE}")
    assert report.sections == [("sandbox", OOM_LINE)]


def test_an_oom_kill_that_a_passed_test_outlived_is_a_section_only(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    item = pytester.getitem("def test_x(): pass", "test_x")
    report = pytest.TestReport.from_item_and_call(item, pytest.CallInfo.from_call(item.runtest, when="call"))
    reporting.note_limit(report, OOM_LINE)
    assert report.passed
    assert report.longrepr is None
    assert report.sections == [("sandbox", OOM_LINE)]


def test_an_oom_kill_ends_a_message_that_is_plain_text():
    report = pytest.TestReport("a", ("a", 0, "a"), {}, "failed", "contains 1 failed subtest", "call")
    reporting.note_limit(report, OOM_LINE)
    assert report.longrepr == f"contains 1 failed subtest\n{OOM_LINE}"


# --- header ---------------------------------------------------------------------------------------------------------


def test_the_header_tells_what_boxes_are_made_of_and_which_limits_are_on():
    facts = Facts(mode="shifted", cgroup_version=1, controllers=("cpu", "cpuset", "memory", "pids"))
    assert header(mode="all", facts=facts, defaults={"mem": "256M", "net": False}) == [
        "sandbox: every test in a box, as root, with idmapped files",
        "sandbox: cgroup v1 (cgroupfs); on: cpu, cpu_shares, cpuset, mem, swap, pids",
        "sandbox: defaults: mem=256M net=False",
    ]


def test_the_header_never_hides_what_is_missing():
    assert header(mode="marked", facts=Facts(mode="rootless")) == [
        "sandbox: marked tests in boxes, rootless",
        (
            "sandbox: no cgroup; off: cpu, cpu_shares, cpuset, mem, swap, pids, usage of memory and CPU "
            "(--sandbox-doctor tells why)"
        ),
    ]
    facts = Facts(mode="rootless", cgroup_version=2, cgroup_driver="systemd", controllers=("cpu", "memory", "pids"))
    assert header(mode="all", facts=facts)[1] == (
        "sandbox: cgroup v2 (systemd); on: cpu, cpu_shares, mem, swap, pids; off: cpuset (--sandbox-doctor tells why)"
    )


def test_the_header_without_facts_tells_the_wish():
    assert header(mode="all", facts=None) == ["sandbox: every test in a box"]
    assert header(mode="off", facts=None) == ["sandbox: off (--sandbox-off), marked tests run without a box"]
