"""Boxes on a machine that runs from its initramfs: the first mount of its namespace, which no pivot_root(2) leaves."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.vm.boot import run_in_vm

pytestmark = pytest.mark.needs("vm initramfs")

SUITE = """
import ctypes, os

def test_writes_are_thrown_away(sandbox):
    assert not os.path.exists("/var/written")
    if os.geteuid() == 0:
        open("/var/written", "w").close()
        assert [(change.kind, change.path) for change in sandbox.changes()] == [("A", "/var/written")]

def test_once_more():
    assert not os.path.exists("/var/written")

def test_the_hosts_root_is_not_to_be_had():
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    assert libc.umount2(b"/", 2) == -1  # MNT_DETACH
    libc.setns(namespace, 0x20000)
    assert " / / rw,nodev,relatime - overlay " in open("/proc/self/mountinfo").readline()

def test_a_command_gets_a_box(nsbox):
    assert nsbox.run(["cat", "/suite/pytest.ini"]).stdout == "[pytest]\\n"
"""


def test_boxes_work_in_an_initramfs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_root.py").write_text(SUITE, encoding="utf-8")
    places = (sys.executable, sys.prefix, sys.base_prefix, os.path.realpath(sys.executable))
    above = sorted({str(folder) for place in places for folder in Path(place).parents})
    run = f"{sys.executable} -m pytest -p no:cacheprovider -p pytest_nsbox.plugin --sandbox-all"
    script = f"""
        grep -c '^rootfs / rootfs ' /proc/mounts
        chmod o+x {shlex.join(above)} && chmod o+rx /suite && cd /suite && export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
        {run} && setpriv --reuid=65534 --regid=65534 --clear-groups {run}
    """
    status = run_in_vm(["sh", "-c", script], root="initramfs", more={"/suite": tmp_path}, timeout=300)
    text = capsys.readouterr().out
    assert status == 0, text
    assert text.startswith("1\n")
    assert text.count("4 passed") == 2, text
