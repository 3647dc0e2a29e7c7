"""pytest's process ends as soon as without the plugin: Python takes down in one go what nobody holds any more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# The loader that rewrites asserts, which leads to all of pytest, is that of installed plugins.
LAST = """
import atexit, gc
import pytest
pytest.register_assert_rewrite("pytest_nsbox")
atexit.register(gc.set_debug, gc.DEBUG_STATS)
"""


def collected(tmp_path: Path, plugin: str) -> list[int]:
    """How many objects each of Python's last collections of garbage found."""
    (tmp_path / "last.py").write_text(LAST, encoding="utf-8")
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n", encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "last", "-p", plugin]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    return [int(number) for number in re.findall(r"gc: done, (\d+) unreachable", done.stderr)]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is CPython's garbage")
def test_python_takes_all_of_pytest_down_at_once(tmp_path: Path):
    found = collected(tmp_path, "nsbox"), collected(tmp_path, "no:nsbox")
    with_plugin, without = found
    assert len(with_plugin) == len(without)
    largest = without.index(max(without))
    assert with_plugin[largest] >= without[largest], found
