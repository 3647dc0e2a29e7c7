"""Roots on other file systems than this machine's: each real, on a loop device that goes with its mount namespace, or
on a server of NFS in the virtual machine.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capabilities import require

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "program:losetup")

LOOP = ('mount -o loop -t "$1" "$2" "$3"; filled=$3', "")
# The kernel's server of NFS. What rpc.mountd would answer it, asked whose address that is, what is exported to it and
# what a file handle stands for, is told in advance. Flags: any port, async, no check of the folders above, a number for
# the root; root is root. It keeps a record of its clients, and so need not wait for those of an earlier server.
SERVER = """
mount -t nfsd nfsd /proc/fs/nfsd
mount -t tmpfs none /var/lib
mkdir -p /var/lib/nfs/v4recovery
rpc=/proc/net/rpc never=2147483647
echo "-2 -3 +4 +4.1 +4.2" >/proc/fs/nfsd/versions
echo "tcp 2049" >/proc/fs/nfsd/portlist
echo 4 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace
echo "nfsd 127.0.0.1 $never box" >$rpc/auth.unix.ip/channel
echo "box $1 $never $((0x2 + 0x10 + 0x400 + 0x2000)) 65534 65534 0" >$rpc/nfsd.export/channel
printf '%s\\n' "box 1 \\\\x00000000 $never $1" >$rpc/nfsd.fh/channel
shift
status=0
unshare --mount "$@" || status=$?
echo 0 >/proc/fs/nfsd/threads
exit $status
"""
# Filled on the server's side, which is a good deal faster.
CLIENT = ("filled=$2", 'mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys 127.0.0.1:/ "$3"')
# Below the new root, /etc, /tmp and /var lie on it; what else there is of this machine's root is bound.
ENTER = """
for path in /*; do
    if [ -L "$path" ]; then cp -P "$path" "$filled/"; elif [ -d "$path" ]; then mkdir "$filled$path"; fi
done
cp -a /etc/. "$filled/etc"
mkdir -p "$filled/old" "$filled/suite" "$filled/var/tmp"
cp "$4"/* "$filled/suite"
{late}
for path in /*; do
    case $path in
        /etc|/tmp|/var) ;;
        *) if [ -d "$path" ] && [ ! -L "$path" ]; then mount --rbind "$path" "$3$path"; fi;;
    esac
done
# Where the interpreter and this package are, they may lie below /tmp or /var.
root=$3
shift 4
for path; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
done
cd "$root"
pivot_root . old
umount -l /old
cd /suite
"""
SUITE = """
import os, pytest

def test_files(sandbox):
    open("/etc/added", "w").close()
    os.link("/etc/passwd", "/etc/linked")
    os.rename("/etc/debian_version", "/etc/renamed")
    assert os.stat("/etc/passwd").st_nlink == 2
    changed = {change.path for change in sandbox.changes()}
    assert changed >= {"/etc/added", "/etc/linked", "/etc/renamed", "/etc/debian_version"}

def test_they_are_thrown_away():
    assert os.path.exists("/etc/debian_version") and not os.path.exists("/etc/added")

def test_a_command_gets_a_box(nsbox):
    assert nsbox.run(["cat", "/suite/pytest.ini"]).stdout == "[pytest]\\n"
"""
# Where boxes have ids of their own.
SHIFTED = """
def test_a_directory_gets_another_name():
    os.rename("/etc/default", "/etc/other")

@pytest.mark.sandbox(user="nobody")
def test_ids_are_stored_as_they_look(tmp_path):
    (tmp_path / "mine").write_text("x")
    assert os.stat(tmp_path / "mine").st_uid == os.getuid() == 65534
"""


def play(mount: tuple[str, str], kind: str, source: Path, tmp_path: Path, *before: str) -> str:
    """What pytest prints in a root on `source`, which the shell commands `mount` mount at $3, before or after it is
    filled; `before` starts it.
    """
    suite, place = tmp_path / "suite", tmp_path / "root"
    suite.mkdir()
    place.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (suite / "test_root.py").write_text(SUITE if kind == "nfs4" else SUITE + SHIFTED, encoding="utf-8")
    used = sorted({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])})
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_nsbox.plugin", "--sandbox-all"]
    script = (
        f"set -eu\nmount --make-rprivate /\n{mount[0]}\n{ENTER.replace('{late}', mount[1])}\nexec {shlex.join(run)}"
    )
    environment = {
        **os.environ,
        "TMPDIR": "/var/tmp",
        "PYTEST_DEBUG_TEMPROOT": "/var/tmp",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [*before, "sh", "-c", script, "enter", kind, *map(str, (source, place, suite, *used))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(r"= \d passed in ", done.stdout), done.stdout + done.stderr
    return done.stdout


def require_kind(kind: str) -> None:
    # Which ones a kernel has is its maker's choice, and nothing that a machine of ours could have lost.
    if kind not in Path("/proc/filesystems").read_text(encoding="utf-8").split():
        pytest.skip(f"this kernel has no {kind}")


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_boxes_work_with_a_root_on(kind: str, tmp_path: Path) -> None:
    require(f"program:mkfs.{kind}")
    require_kind(kind)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, stderr=subprocess.DEVNULL)
    printed = play(LOOP, kind, image, tmp_path, "unshare", "--mount")
    assert "as root, with idmapped files" in printed
    assert "= 5 passed in " in printed


def test_boxes_work_with_a_root_on_nfs(tmp_path: Path) -> None:
    require_kind("nfsd")
    if os.environ.get("NSBOX_VM") != "uml":
        pytest.skip("a server of NFS is started in the virtual machine alone")
    source = tmp_path / "exported"
    source.mkdir()
    serve = ("unshare", "--mount", "sh", "-euc", SERVER, "serve", str(source))
    printed = play(CLIENT, "nfs4", source, tmp_path, *serve)
    assert "as root, with the host's ids" in printed
    assert "= 3 passed in " in printed
