"""Boxes where the root cannot be shown with other ids than it has: an overlay, as in a container; an old kernel."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "overlay", "user namespace", "cgroup:memory")

# What a container's manager does: a root of layers, with what belongs to the kernel mounted on it.
ENTER = """
set -e
place=$1; shift
mount --make-rprivate /
mount -t tmpfs none "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" none "$place/root"
for name in proc sys dev; do mount --rbind "/$name" "$place/root/$name"; done
mkdir -p "$place/root/.old"
here=$PWD
pivot_root "$place/root" "$place/root/.old"
cd "$here"
umount -l /.old
rmdir /.old
exec "$@"
"""
# Linux 5.11, as far as boxes meet it: no mount_setattr, and idmapped layers are not even tried. The filter has root's
# power behind it, so that no_new_privs need not be set.
OLD = f"""
import os, sys
from tests.filters import refuse
refuse({{442: {errno.ENOSYS}}})
os.execvp("setarch", ["setarch", "--uname-2.6", *sys.argv[1:]])
"""
SUITE = """
import os, socket
import pytest

def refused(path, text):
    with pytest.raises(OSError):
        with open(path, "r+") as file:
            file.write(text)

def test_writes():
    open("/etc/nsbox-made", "w").close()
    os.chown("/etc/passwd", 5, 5)

def test_sees_nothing_of_it():
    assert not os.path.exists("/etc/nsbox-made")
    assert os.stat("/etc/passwd").st_uid == 0

@pytest.mark.sandbox(mem="64M", pids=20, net=False, hostname="inside")
def test_meets_its_limit():
    assert socket.gethostname() == "inside"
    bytearray(1 << 28)

@pytest.mark.sandbox(proc="limits", mem="128M", user="nobody", tmpfs=["/scratch"], volumes=["./shared:/shared"])
def test_has_what_a_box_has():
    assert "131072 kB" in open("/proc/meminfo").read()
    assert os.getuid() == 65534
    open("/scratch/file", "w").close()

@pytest.mark.sandbox(privileged=True)
def test_is_privileged():
    open("/etc/nsbox-made", "w").close()

def test_starts_a_container(nsbox):
    assert nsbox.run(["sh", "-c", "id -u; exit 3"], mem="64M").stdout == "0\\n"

def test_has_networks(nsbox):
    lan = nsbox.network("lan")
    with nsbox.start(["sleep", "60"], name="db", net=lan, publish={80: 0}) as db:
        assert "\tdb" in nsbox.run(["cat", "/etc/hosts"], net=lan, check=True).stdout
        assert nsbox.run(["true"], net=db).returncode == 0

def test_leaves_the_kernel_alone():
    # What is there already, in case it is written after all.
    for path in ("/proc/sys/kernel/core_pattern", "/sys/kernel/mm/transparent_hugepage/enabled"):
        refused(path, open(path).read().split("[")[-1].split("]")[0])
    refused("/proc/sysrq-trigger", "0")
    if os.path.exists("/sys/fs/cgroup/memory"):
        refused("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1G")
"""


@pytest.mark.parametrize("way", ["overlay", "old kernel"])
def test_boxes_work_with_the_hosts_ids_and_the_header_says_so(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    pytester.makepyfile(SUITE)
    pytester.mkdir("shared")
    (tmp_path / "place").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    enter = {
        "overlay": ("unshare", "--mount", "sh", "-c", ENTER, "sh", tmp_path / "place"),
        "old kernel": (sys.executable, "-c", OLD),
    }
    pytest_ = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--sandbox-all", "--tb=short")
    result = pytester.run(*enter[way], *pytest_)
    result.stdout.fnmatch_lines(
        [
            "sandbox: every test in a box, as root, with the host's ids: nested boxes and writing to /proc/sys and *",
            "OOM-killed: memory limit 64.0 MiB, peak 64.0 MiB",
        ]
    )
    result.assert_outcomes(passed=7, failed=1)
    assert not Path("/etc/nsbox-made").exists()
