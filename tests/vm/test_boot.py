"""The virtual machine itself: what its tests rely on."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from tests.vm import boot, registers
from tests.vm.boot import run_in_vm

pytestmark = pytest.mark.needs("vm kernel")


def test_the_machine_has_the_v2_controllers_and_passes_output_and_status_on(capsys: pytest.CaptureFixture[str]):
    script = "cat /sys/fs/cgroup/cgroup.subtree_control; echo; pwd; exit 7"
    assert run_in_vm(["sh", "-c", script], timeout=120) == 7
    assert capsys.readouterr().out.split()[:4] == ["cpu", "io", "memory", "pids"]


def test_a_command_that_dies_by_a_signal_is_told_from_one_that_exits():
    assert run_in_vm([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], timeout=120) == 128 + 9


def test_a_machine_that_hangs_is_stopped_at_the_deadline(capsys: pytest.CaptureFixture[str]):
    assert run_in_vm(["sh", "-c", "printf unended; exec sleep 600"], timeout=8) == 124
    shown = capsys.readouterr()
    assert shown.err == "the virtual machine was stopped after 8 s\n"
    said, _, told = shown.out.partition(boot.LATE)
    assert said == "unended\n"
    assert "sleep 600" in told


def test_a_machine_that_stands_still_is_started_once_more(capsys: pytest.CaptureFixture[str]):
    # It has one CPU, which a real-time process without a limit leaves to nobody.
    script = "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; echo begun; exec chrt -f 99 sh -c 'while :; do :; done'"
    assert run_in_vm(["sh", "-c", script], timeout=8) == 125
    shown = capsys.readouterr()
    assert shown.out == "begun\n" * 2
    assert shown.err == "the virtual machine was stopped after 8 s: it stood still, its first process too\n" * 2


def test_a_machine_that_does_not_come_up_is_tried_again_and_shows_its_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kernel = tmp_path / boot.KERNEL
    kernel.write_text("#!/bin/sh\necho hanging here\nexec sleep 600\n")
    kernel.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(boot, "BOOTS", (1.0, 1.0))
    assert run_in_vm(["true"]) == 125
    shown = capsys.readouterr()
    assert shown.out == "hanging here\nhanging here\n"
    assert shown.err == "the virtual machine was not up after 1 s\n" * 2


@pytest.mark.needs("program:as", "program:ld")
def test_a_machine_runs_where_the_processor_has_more_registers_than_it_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(registers, "are_too_many", lambda: True)
    assert run_in_vm([sys.executable, "-c", "import hashlib; print(hashlib.sha256(bytes(10**7)).hexdigest()[:8])"]) == 0
    assert capsys.readouterr().out.strip() == hashlib.sha256(bytes(10**7)).hexdigest()[:8]


@pytest.mark.parametrize(("flags", "many"), [("fpu avx512f pku", False), ("fpu amx_tile avx512f", True), ("", False)])
def test_registers_that_are_too_many(flags: str, many: bool):
    assert registers.are_too_many(f"processor : 0\nflags\t\t: {flags}\nbugs\t\t: amx_tile\n") is many


@pytest.mark.slow
def test_a_disk_has_interpreter_and_checkout_and_takes_writes(capsys: pytest.CaptureFixture[str]):
    script = f"{sys.executable} -c 'import pytest, ssl, sqlite3' && echo x > left && grep ' / ' /proc/mounts"
    assert run_in_vm(["sh", "-c", script], timeout=120, root="disk") == 0
    assert " / ext4 rw," in capsys.readouterr().out
    assert not Path("left").exists()
