"""What the machine offers, tried and not guessed, and what a test does when it is missing.

A test says `@pytest.mark.needs("overlay", "cgroup:memory")`, or calls `require("overlay")` in its body. A missing
capability skips the test and says why; with NSBOX_REQUIRE_ALL=1, as in CI, it fails the test instead, so that a
machine which lost a capability cannot turn the suite green. NSBOX_REQUIRE_ALL="overlay,cgroup:memory" requires these
alone, for machines that lack others by their nature. Some take minutes to install or to boot: large programs
(`runtime:java`) must be there only with NSBOX_RUNTIMES=1, as in `tox -e runtimes`, a virtual machine that systemd
manages is booted only with NSBOX_SYSTEMD=1, one that runs from its initramfs only with NSBOX_INITRAMFS=1, both as in
`tox -e vm`, and one in QEMU only with NSBOX_QEMU=1, as in `tox -e qemu`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import rootfs
from tests.leftovers import PARENT, cgroup_mounts
from tests.vm import registers

# What takes minutes, and the variable that asks for it.
ON_REQUEST = {"vm systemd": "NSBOX_SYSTEMD", "vm initramfs": "NSBOX_INITRAMFS", "vm qemu": "NSBOX_QEMU"}
# What the machines of tests/vm cannot have, by their kernel (NSBOX_VM); the machine around them runs these tests.
NO_VM_HAS = frozenset(
    {
        "program:as",
        "program:objcopy",
        "shifted tmpfs",
        "vm kernel",
        "vm systemd",
        "vm initramfs",
        "vm qemu",
        "debian archive",
    }
)
VM_LACKS = {
    "uml": NO_VM_HAS | {"time namespace", "cgroup:cpuset", "32-bit system calls"},
    "qemu": NO_VM_HAS,
}

# What user-mode Linux has in tests/vm, and a machine need not have.
VM_ALONE_HAS = frozenset({"device mapper", "swap", "clock of its own"})

Probe = Callable[[], "str | None"]  # None: it is there; else why not


def missing(name: str) -> str | None:
    """Why the capability `name` cannot be used here, or None. `cgroup:NAME` asks for a writable v1 or v2 controller."""
    if name.startswith("cgroup:"):
        # "io or blkio": what it is called on v2 and on v1.
        whys = [_controller(each) for each in name.partition(":")[2].split(" or ")]
        return whys[0] if None not in whys else None
    if name.startswith(("program:", "runtime:")):
        program = name.partition(":")[2]
        # The administrator's programs, which an ordinary PATH leaves out.
        found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        return None if found else f"no program {program} on PATH"
    return PROBES[name]()


def require(*names: str) -> None:
    """Skips the running test unless all `names` are there; fails it when NSBOX_REQUIRE_ALL=1."""
    for name in names:
        why = missing(name)
        if why is None:
            continue
        excused = name in VM_LACKS.get(os.environ.get("NSBOX_VM", ""), ())
        excused |= name.startswith("runtime:") and os.environ.get("NSBOX_RUNTIMES") != "1"
        excused |= name in VM_ALONE_HAS and os.environ.get("NSBOX_VM") != "uml"
        excused |= name in ON_REQUEST and os.environ.get(ON_REQUEST[name]) != "1"
        if is_required(name) and not excused:
            required = os.environ["NSBOX_REQUIRE_ALL"]
            pytest.fail(f"needs {name}, which must be here (NSBOX_REQUIRE_ALL={required}): {why}", pytrace=False)
        pytest.skip(f"needs {name}: {why}")


def times(count: int, in_vm: int) -> int:
    """How often a test does what it repeats to see a rare thing; the VM's kernel is slow and has one CPU."""
    return in_vm if os.environ.get("NSBOX_VM") else count


def is_required(name: str) -> bool:
    """Whether NSBOX_REQUIRE_ALL (1 for all, or a list) says that `name` must be here."""
    required = os.environ.get("NSBOX_REQUIRE_ALL", "")
    return required == "1" or name in [entry.strip() for entry in required.split(",")]


def require_cgroup_version(version: int) -> None:
    """Skips on a machine of the other version, always: the environment `vm` runs the suite's other half."""
    found = cgroup_version()
    if found != version:
        pytest.skip(f"cgroup v{version} only; this machine has v{found} (tox -e vm covers v2)")


@functools.cache
def cgroup_version() -> int:
    """2 where the memory controller hangs in the unified hierarchy, 1 where it has one of its own, 0 without."""
    version = 0
    for point, _, options in cgroup_mounts():
        if "memory" in options:
            return 1
        if "" in options and "memory" in Path(point, "cgroup.controllers").read_text(encoding="utf-8").split():
            version = 2
    return version


@functools.cache
def _controller(name: str) -> str | None:
    for point, _, options in cgroup_mounts():
        v2 = "" in options and name in Path(point, "cgroup.controllers").read_text(encoding="utf-8").split()
        if name in options or v2:
            return _can_make_group(point)
    return f"no mounted hierarchy has the controller {name}"


def _can_make_group(point: str) -> str | None:
    parent = (os.environ.get(PARENT) or "").strip("/")
    top = next((p for p in (Path(point, parent), *Path(point, parent).parents) if p.is_dir()), Path(point))
    try:
        os.rmdir(tempfile.mkdtemp(prefix="nsbox-probe-", dir=top))
    except OSError as error:
        return f"no group can be made in {top}: {error.strerror}"
    return None


def _succeeds(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else f"{' '.join(command[:6])}: {done.stderr.strip() or done.returncode}"


def _root() -> str | None:
    if os.geteuid() != 0:
        return f"the user id is {os.geteuid()}"
    if Path("/proc/self/uid_map").read_text(encoding="utf-8").split() != ["0", "0", "4294967295"]:
        return "root of a nested user namespace, not of the machine"
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    mask = int(status.partition("CapEff:")[2].split()[0], 16)
    return None if mask >> 21 & 1 else "root without CAP_SYS_ADMIN"


@functools.cache
def _overlay() -> str | None:
    script = (
        'd=$(mktemp -d) && mount -t tmpfs none "$d" && cd "$d" && mkdir l u w m '
        "&& mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m"
    )
    # In a mount namespace of its own; the empty directory is removed afterwards by the same shell.
    return _succeeds("unshare", "--mount", "sh", "-c", script + '; s=$?; cd /; umount -l "$d"; rmdir "$d"; exit $s')


@functools.cache
def _user_namespace() -> str | None:
    return _succeeds("unshare", "--user", "--map-root-user", "true")


@functools.cache
def _time_namespace() -> str | None:
    return _succeeds("unshare", "--time", "--fork", "true") if _root() is None else _root()


@functools.cache
def _shifted_tmpfs() -> str | None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return None if release >= (6, 3) else "tmpfs shows other ids than it has since Linux 6.3"


@functools.cache
def _debian_archive() -> str | None:
    return _succeeds("apt-get", "download", "--quiet", "--print-uris", "busybox-static")


def _busybox_root() -> str | None:
    return None if rootfs.place("busybox").is_dir() else missing("debian archive")


def _device_mapper() -> str | None:
    misc = Path("/proc/misc").read_text(encoding="utf-8")
    return None if "device-mapper" in misc else "the kernel has no device mapper, or its module is not loaded"


def _vm_kernel() -> str | None:
    if not shutil.which("linux.uml"):
        return "no program linux.uml (Debian package user-mode-linux)"
    return (missing("program:as") or missing("program:ld")) if registers.are_too_many() else None


def _asked_for(name: str) -> str | None:
    variable = ON_REQUEST[name]
    return None if os.environ.get(variable) == "1" else f"it boots only with {variable}=1"


def _vm_systemd() -> str | None:
    return _asked_for("vm systemd") or _vm_kernel()


def _vm_initramfs() -> str | None:
    return _asked_for("vm initramfs") or _vm_kernel() or missing("program:busybox")


def _vm_qemu() -> str | None:
    why = _asked_for("vm qemu") or missing("program:qemu-system-x86_64") or missing("program:busybox")
    return why or (None if os.uname().machine == "x86_64" else "the emulated machine has the processor of an x86")


def _ordinary_user() -> str | None:
    return _root() or _succeeds("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true")


@functools.cache
def _seccomp_listener() -> str | None:
    script = "import os, sys; from pytest_nsbox.kernel import listener; listener.listen()"
    return _succeeds(sys.executable, "-c", script) if _root() is None else _root()


def _narrow_calls() -> str | None:
    if os.uname().machine != "x86_64":
        return "the test speaks the machine language of x86"
    return None if Path("/proc/sys/abi/vsyscall32").exists() else "the kernel has no CONFIG_IA32_EMULATION"


@functools.cache
def _bridge() -> str | None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pytest_nsbox.kernel import links, namespaces; "
        "namespaces.unshare(namespaces.NEWNET); links.Links().bridge('probe', 10)"
    )
    return _root() or _succeeds(sys.executable, "-c", code, str(Path(__file__).parents[1]))


def _ipv6() -> str | None:
    return None if Path("/proc/sys/net/ipv6").is_dir() else "the kernel has no IPv6"


PROBES: dict[str, Probe] = {
    "bridge": _bridge,
    "ipv6": _ipv6,
    "root": _root,
    "ordinary user": _ordinary_user,
    "overlay": _overlay,
    "user namespace": _user_namespace,
    "time namespace": _time_namespace,
    "shifted tmpfs": _shifted_tmpfs,
    "debian archive": _debian_archive,
    "busybox root": _busybox_root,
    "device mapper": _device_mapper,
    "clock of its own": lambda: None if os.environ.get("NSBOX_VM") else "the clock is the whole machine's",
    "swap": lambda: None if os.environ.get("NSBOX_VM") == "uml" else "space is added in the virtual machine alone",
    "vm kernel": _vm_kernel,
    "vm systemd": _vm_systemd,
    "vm initramfs": _vm_initramfs,
    "vm qemu": _vm_qemu,
    "seccomp listener": _seccomp_listener,
    "32-bit system calls": _narrow_calls,
}
