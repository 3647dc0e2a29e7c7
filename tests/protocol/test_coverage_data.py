"""What a forked test measured is added to pytest's own measurement, with contexts, and nothing else of it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("coverage")

SCRIPT = """
    import json
    import os
    import sys
    import coverage
    from pytest_nsbox.coverage_data import Gathered, Measured

    measurement = coverage.Coverage(data_file=None, branch={branch}, source_pkgs=["measured"], config_file=False)
    measurement.start()
    measurement.switch_context("of pytest")
    import measured
    measured.in_parent(1)

    gathered = Gathered()
    for number in range(3):
        read, write = os.pipe()
        if os.fork() == 0:
            child = Measured.start()
            measurement.switch_context(f"of test {{number}}")
            measured.in_child(number)
            os.write(write, json.dumps(child.collect()).encode())
            os._exit(0)
        os.wait()
        gathered.add(json.loads(os.read(read, 1 << 16)))
    gathered.hand_over()
    measured.in_parent(0)
    measurement.stop()
    data = measurement.get_data()
    [file] = data.measured_files()
    print(json.dumps({{str(line): sorted(names) for line, names in data.contexts_by_lineno(file).items()}}))
    print(json.dumps(sorted(data.arcs(file) or [])))
"""
MEASURED = """\
def in_parent(value):
    if value:
        return 1
    return 2


def in_child(value):
    if value == 2:
        return "two"
    return "other"
"""


@pytest.mark.parametrize("branch", [False, True])
def test_lines_arcs_and_contexts_of_children_are_added_once(pytester: pytest.Pytester, branch: bool):
    Path("measured.py").write_text(MEASURED, encoding="utf-8")
    Path("script.py").write_text(textwrap.dedent(SCRIPT).format(branch=branch), encoding="utf-8")
    result = pytester.run(sys.executable, "-W", "ignore", "script.py")
    assert result.ret == 0, result.stderr.str()
    contexts, arcs = (json.loads(line) for line in result.outlines)
    assert contexts["9"] == ["of test 2"]
    assert contexts["10"] == ["of test 0", "of test 1"]
    assert contexts["8"] == ["of test 0", "of test 1", "of test 2"]
    assert contexts["3"] == ["of pytest"]
    assert "of test 0" not in contexts["2"]
    if branch:
        assert [8, 9] in arcs
        assert [8, 10] in arcs


def test_without_a_measurement_nothing_is_started():
    if "COV_CORE_SOURCE" in os.environ or sys.gettrace() is not None:
        pytest.skip("this run is itself measured")
    from pytest_nsbox.coverage_data import Gathered, Measured

    assert Measured.start() is None
    gathered = Gathered()
    gathered.add({"": {"lines": {"/a.py": [1]}}})
    gathered.hand_over()
