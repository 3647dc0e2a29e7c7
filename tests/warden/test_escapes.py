"""Ways out of a box, each shown to work for root outside a box first (in a way that changes nothing)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_nsbox.kernel import mount, namespaces
from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.warden.client import Warden
from tests.capabilities import cgroup_version
from tests.warden.boxes import in_a_process, run

pytestmark = [
    pytest.mark.keeps_running("boxes of the module's warden"),
    pytest.mark.needs("root", "overlay", "user namespace"),
]

# What a refusal looks like; anything else is a broken test.
REFUSALS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ESRCH, errno.EOPNOTSUPP}
# What a kernel says that does not have the thing at all.
ABSENT = {errno.ENOSYS, errno.ENOENT, errno.ENXIO}

C = ctypes.CDLL(None, use_errno=True)


def system(name: str, *arguments: object) -> int:
    """Call the C library; OSError on failure."""
    result: int = getattr(C, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def write_back(path: str) -> None:
    """Write to a setting what it says already ("[always] never" has its choice in brackets)."""
    text = Path(path).read_text()
    chosen = text.partition("[")[2].partition("]")[0] or text
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, chosen.encode())
    finally:
        os.close(fd)


def sysctl() -> None:
    write_back("/proc/sys/kernel/core_pattern")


def sysctl_of_a_second_proc() -> None:
    with tempfile.TemporaryDirectory() as place:
        system("mount", b"proc", place.encode(), b"proc", 0, None)
        try:
            write_back(f"{place}/sys/kernel/core_pattern")
        finally:
            system("umount2", place.encode(), 2)


def sysfs() -> None:
    for path in ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/ksm/run", "/sys/power/pm_async"):
        if os.path.exists(path):
            write_back(path)
            return
    pytest.skip("no setting in /sys that is known here")


def sysfs_made_writable() -> None:
    system("mount", None, b"/sys", None, 32 | 4096, None)
    sysfs()


def sysrq() -> None:
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))


def kernel_log() -> None:
    # CONSOLE_ON, as it is.
    system("klogctl", 7, None, 0)


def memory_device_by_mknod() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/kmsg", stat.S_IFCHR | 0o600, os.makedev(1, 11))
        os.close(os.open(f"{place}/kmsg", os.O_WRONLY))


def block_device_by_mknod() -> None:
    # A loop device stands for all disks.
    with tempfile.TemporaryDirectory() as place:
        os.mknod(f"{place}/loop", stat.S_IFBLK | 0o600, os.makedev(7, 0))
        os.close(os.open(f"{place}/loop", os.O_RDWR))


def host_id_in_a_nested_user_namespace() -> None:
    uid = os.getuid()
    namespaces.unshare(namespaces.NEWUSER)
    namespaces.write_proc("/proc/self/uid_map", f"{uid} {uid} 1")
    sysctl()


def mount_of_a_host_filesystem() -> None:
    namespaces.unshare(namespaces.NEWNS)
    os.close(mount.new_mount("bpf"))


# A process of the host that root may do everything to; not every machine's process 1 is one.
VICTIM = [0]


def inside() -> bool:
    return os.getpid() < 10


def process_one() -> int:
    return 1 if inside() else VICTIM[0]


def trace_process_one() -> None:
    ptrace_seize, ptrace_detach = 0x4206, 17
    system("ptrace", ptrace_seize, process_one(), None, None)
    ctypes.set_errno(0)
    C.ptrace(ptrace_detach, process_one(), None, None)


def kill_a_host_process() -> None:
    os.kill(VICTIM[0], 0)


def root_of_process_one() -> None:
    os.listdir(f"/proc/{process_one()}/root/")


def descriptors_of_process_one() -> None:
    os.listdir(f"/proc/{process_one()}/fd/")


def namespaces_of_process_one() -> None:
    fd = os.open(f"/proc/{process_one()}/ns/cgroup", os.O_RDONLY)
    system("setns", fd, namespaces.NEWCGROUP)


def set_the_clock() -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


def load_a_module() -> None:
    try:
        system("init_module", b"no module", 9, b"")
    except OSError as error:
        # Looked at, and found to be no ELF file: so it would have been loaded.
        if error.errno != errno.ENOEXEC:
            raise


def ctrl_alt_del() -> None:
    # CAD_OFF, which is how it is after any boot by systemd; process 1 is asked then.
    try:
        system("reboot", 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise PermissionError(errno.EPERM, "not of this namespace") from None
        raise


def swap() -> None:
    with tempfile.NamedTemporaryFile() as file:
        try:
            system("swapon", file.name.encode(), 0)
        except OSError as error:
            # It got as far as the missing signature.
            if error.errno != errno.EINVAL:
                raise


def open_by_handle() -> None:
    handle = ctypes.create_string_buffer(struct.pack("=II", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    system("name_to_handle_at", -100, b"/usr", handle, ctypes.byref(mount_id), 0)
    root = os.open("/usr", os.O_RDONLY)
    os.close(system("open_by_handle_at", root, handle, os.O_RDONLY))


def raise_the_own_limit() -> None:
    version = cgroup_version()
    path = "/sys/fs/cgroup/memory/memory.limit_in_bytes" if version == 1 else "/sys/fs/cgroup/memory.max"
    if not inside():
        # The file of the root group cannot be written by anybody: in a group like the box's.
        parent = Path(path).parent / "nsbox-escape-test"
        parent.mkdir()
        try:
            (parent / Path(path).name).write_text("-1" if version == 1 else "max")
        finally:
            parent.rmdir()
        return
    Path(path).write_text("-1" if version == 1 else "max")


def raise_the_own_limit_in_a_second_mount() -> None:
    with tempfile.TemporaryDirectory() as place:
        if cgroup_version() == 1:
            system("mount", b"x", place.encode(), b"cgroup", 0, b"memory")
            path = Path(place, "memory.limit_in_bytes")
        else:
            system("mount", b"x", place.encode(), b"cgroup2", 0, None)
            path = Path(place, "memory.max")
        try:
            if not inside():
                group = Path(place, "nsbox-escape-test")
                group.mkdir()
                try:
                    (group / path.name).write_text("-1" if cgroup_version() == 1 else "max")
                finally:
                    group.rmdir()
            else:
                path.write_text("-1" if cgroup_version() == 1 else "max")
        finally:
            system("umount2", place.encode(), 2)


def ports() -> None:
    system("iopl", 3) if os.uname().machine == "x86_64" else sysctl()


ATTEMPTS: list[Callable[[], None]] = [
    sysctl,
    sysctl_of_a_second_proc,
    sysfs,
    sysfs_made_writable,
    sysrq,
    kernel_log,
    memory_device_by_mknod,
    block_device_by_mknod,
    host_id_in_a_nested_user_namespace,
    mount_of_a_host_filesystem,
    trace_process_one,
    kill_a_host_process,
    root_of_process_one,
    descriptors_of_process_one,
    namespaces_of_process_one,
    set_the_clock,
    load_a_module,
    ctrl_alt_del,
    swap,
    open_by_handle,
    raise_the_own_limit,
    raise_the_own_limit_in_a_second_mount,
    ports,
]


def outcome(attempt: Callable[[], None]) -> int:
    """0 if it worked, else why not, as an errno."""
    try:
        attempt()
    except OSError as error:
        return error.errno or -1
    except KernelError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("net", ["host", "none"])
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
def test_the_way_out_is_closed(warden: Warden, attempt: Callable[[], None], net: str) -> None:
    victim = subprocess.Popen(["sleep", "60"])
    VICTIM[0] = victim.pid
    try:
        outside = in_a_process(lambda: outcome(attempt))
        if outside in ABSENT:
            pytest.skip(f"this kernel has none: {os.strerror(outside)}")
        assert outside == 0, "it does not even work outside"
        assert run(warden, lambda: outcome(attempt), net=net, mem=64 << 20) in REFUSALS
    finally:
        victim.kill()
        victim.wait()


def test_a_chroot_leads_nowhere(warden: Warden) -> None:
    def climb() -> tuple[bool, list[str]]:
        Path("/inside").touch()
        os.makedirs("/jail")
        here = os.open("/", os.O_RDONLY)
        os.chroot("/jail")
        os.fchdir(here)
        for _ in range(50):
            os.chdir("..")
        os.chroot(".")
        return os.path.exists("/inside"), sorted(name for name in os.listdir("/proc") if name.isdigit())

    assert run(warden, climb) == (True, ["1", "2"])


def test_the_root_below_the_root_cannot_be_uncovered(warden: Warden) -> None:
    def uncover() -> list[int]:
        codes = []
        for target in (b"/", b"/dev", b"/sys"):
            try:
                system("umount2", target, 2)
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or -1)
        return codes

    assert run(warden, uncover) == [errno.EINVAL, errno.EINVAL, errno.EINVAL]


def test_other_boxes_layers_are_out_of_reach(warden: Warden) -> None:
    (session,) = (name for name in os.listdir(tempfile.gettempdir()) if name.startswith("nsbox-"))
    place = f"{tempfile.gettempdir()}/{session}"

    def look() -> list[int]:
        codes = []
        for function, path in (
            (os.listdir, place),
            (os.listdir, f"{place}/scratch"),
            (os.listdir, f"{place}/scratch/layers"),
            (os.listdir, f"{place}/volumes"),
            (os.listdir, f"{place}/host/0"),
            (lambda path: os.open(path, os.O_RDONLY), f"{place}/lock"),
        ):
            try:
                function(path)
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or -1)
        return codes

    assert os.listdir(f"{place}/scratch/layers")
    assert set(run(warden, look)) == {errno.EACCES}


def test_a_process_of_the_box_cannot_leave_its_cgroup(warden: Warden) -> None:
    def leave() -> tuple[list[str], int]:
        for top, _, names in os.walk("/sys/fs/cgroup"):
            for name in names:
                if name in ("tasks", "cgroup.procs"):
                    try:
                        Path(top, name).write_text("0")
                    except OSError:
                        continue
        own = Path("/proc/self/cgroup").read_text().splitlines()
        return [line for line in own if ".." in line], len(os.listdir("/sys/fs/cgroup"))

    outside, shown = run(warden, leave, mem=64 << 20)
    assert outside == []
    assert shown


def test_files_of_the_host_that_only_root_may_read_can_be_read_and_not_changed(warden: Warden, tmp_path: Path) -> None:
    shadow = Path("/etc/shadow")
    before = shadow.read_bytes()

    def change() -> bytes:
        text = shadow.read_bytes()
        shadow.write_bytes(b"")
        return text

    assert run(warden, change) == before
    assert shadow.read_bytes() == before
