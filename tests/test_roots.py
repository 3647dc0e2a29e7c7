"""Roots on other file systems than this machine's: each real, on a loop device that goes with its mount namespace."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capabilities import require

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "program:losetup")

# Below the new root, /etc, /tmp and /var lie on it; what else there is of this machine's root is bound.
ENTER = """
set -eu
mount --make-rprivate /
mount -o loop -t "$1" "$2" "$3"
for path in /*; do
    if [ -L "$path" ]; then cp -P "$path" "$3/"; continue; fi
    [ -d "$path" ] || continue
    mkdir -p "$3$path"
    case $path in
        /etc) cp -a /etc/. "$3/etc";;
        /tmp|/var) ;;
        *) mount --rbind "$path" "$3$path";;
    esac
done
# Where the interpreter and this package are, they may lie below /tmp or /var.
root=$3 suite=$4
shift 4
for path; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
done
cd "$root"
mkdir -p old suite var/tmp
cp "$suite"/* suite
pivot_root . old
umount -l /old
cd /suite
"""
SUITE = """
import os, pytest

def test_files(sandbox):
    open("/etc/added", "w").close()
    os.link("/etc/passwd", "/etc/linked")
    os.rename("/etc/default", "/etc/renamed")
    assert os.stat("/etc/passwd").st_nlink == 2
    changed = {change.path for change in sandbox.changes()}
    assert changed >= {"/etc/added", "/etc/linked", "/etc/renamed", "/etc/default"}

def test_they_are_thrown_away():
    assert os.path.exists("/etc/default") and not os.path.exists("/etc/added")

@pytest.mark.sandbox(user="nobody")
def test_ids_are_stored_as_they_look(tmp_path):
    (tmp_path / "mine").write_text("x")
    assert os.stat(tmp_path / "mine").st_uid == os.getuid() == 65534

def test_a_command_gets_a_box(nsbox):
    assert nsbox.run(["cat", "/suite/pytest.ini"]).stdout == "[pytest]\\n"
"""


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_boxes_work_with_a_root_on(kind: str, tmp_path: Path) -> None:
    require(f"program:mkfs.{kind}")
    # Which ones a kernel has is its maker's choice, and nothing that a machine of ours could have lost.
    if kind not in Path("/proc/filesystems").read_text(encoding="utf-8").split():
        pytest.skip(f"this kernel has no {kind}")
    suite, image, place = tmp_path / "suite", tmp_path / "image", tmp_path / "root"
    suite.mkdir()
    place.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (suite / "test_root.py").write_text(SUITE, encoding="utf-8")
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, stderr=subprocess.DEVNULL)
    used = sorted({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_nsbox.plugin", "--sandbox-all"]
    script = f"{ENTER}\nexec {shlex.join(run)}"
    environment = {
        **os.environ,
        "TMPDIR": "/var/tmp",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "enter", kind, *map(str, (image, place, suite, *used))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    assert "as root, with idmapped files" in done.stdout
