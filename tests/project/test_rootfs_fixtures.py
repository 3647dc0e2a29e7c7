"""The definitions of root file systems can be built, here and now."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "rootfs-fixtures"


@pytest.mark.needs("debian archive")
def test_the_busybox_root_file_system_has_a_shell_that_runs(tmp_path: Path):
    root = tmp_path / "root"
    subprocess.run([FIXTURES / "build", "busybox", root], check=True, timeout=300)
    shell = root / "bin" / "sh"
    assert shell.readlink() == Path("/bin/busybox")
    echo = subprocess.run([root / "bin" / "busybox", "echo", "works"], capture_output=True, text=True, check=True)
    assert echo.stdout == "works\n"


def test_building_into_a_directory_that_exists_is_refused(tmp_path: Path):
    done = subprocess.run([FIXTURES / "build", "busybox", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(f"{tmp_path} exists\n")


def test_an_unknown_definition_is_refused(tmp_path: Path):
    done = subprocess.run([FIXTURES / "build", "wings", tmp_path / "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("no definition wings\n")
