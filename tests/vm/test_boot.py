"""The virtual machine itself: what its tests rely on."""

from __future__ import annotations

import sys

import pytest

from tests.vm.boot import run_in_vm

pytestmark = pytest.mark.needs("vm kernel")


def test_the_machine_has_the_v2_controllers_and_passes_output_and_status_on(capsys: pytest.CaptureFixture[str]):
    script = "cat /sys/fs/cgroup/cgroup.subtree_control; echo; pwd; exit 7"
    assert run_in_vm(["sh", "-c", script], timeout=120) == 7
    assert capsys.readouterr().out.split()[:4] == ["cpu", "io", "memory", "pids"]


def test_a_command_that_dies_by_a_signal_is_told_from_one_that_exits():
    assert run_in_vm([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], timeout=120) == 128 + 9


def test_a_machine_that_hangs_is_stopped_at_the_deadline(capsys: pytest.CaptureFixture[str]):
    assert run_in_vm(["sleep", "600"], timeout=8) == 124
    assert "stopped after 8 s" in capsys.readouterr().err
