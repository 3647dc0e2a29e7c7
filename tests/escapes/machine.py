"""Attempts on the machine itself: its settings, clock, modules, power, keys, and what the kernel shows of itself.

Outside, each is made in a form that changes nothing: what was read is written back, files are opened to be written and
are not, and calls get arguments that the kernel refuses only after it has looked at our rights.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Iterator

import pytest

from tests.escapes.attempt import USER, Place, attempt, mounted
from tests.escapes.system import (
    MS_BIND,
    MS_REMOUNT,
    NEWUSER,
    address_of,
    call,
    mount,
    open_to_write,
    syscall,
    unshare,
    write_back,
    write_file,
)

CORE_PATTERN = "/proc/sys/kernel/core_pattern"
IN_SYS = ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/mm/ksm/run", "/sys/power/pm_async")


@contextlib.contextmanager
def allowed_if(*numbers: int) -> Iterator[None]:
    """These errors come after the kernel has found our rights to be enough."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def in_sys(top: str = "/sys") -> str:
    for path in IN_SYS:
        if os.path.exists(path):
            return path.replace("/sys", top, 1)
    pytest.skip("no setting in /sys that is known here")


@attempt("EACCES")
def sysctl(at: Place) -> None:
    write_back(CORE_PATTERN)


@attempt("EACCES")
def sysctl_through_a_fresh_proc(at: Place) -> None:
    with mounted("proc", "proc") as proc:
        write_back(CORE_PATTERN.replace("/proc", proc, 1))


@attempt("EACCES")
def sysctl_from_a_nested_user_namespace(at: Place) -> None:
    become_root_of_a_user_namespace()
    write_back(CORE_PATTERN)


# With a network of its own, these are the box's.
@attempt(host="EACCES")
def sysctl_of_the_network(at: Place) -> None:
    write_back("/proc/sys/net/ipv4/ip_forward")


@attempt("EACCES", absent=("ENOSYS",))
def sysrq(at: Place) -> None:
    if not os.path.exists("/proc/sysrq-trigger"):
        raise OSError(errno.ENOSYS, "built without it")
    open_to_write("/proc/sysrq-trigger")


@attempt("EACCES")
def setting_in_sys(at: Place) -> None:
    write_back(in_sys())


# The host's sysfs is locked; that of a network of the box's own may be made writable, and its files refuse.
@attempt(host="EPERM", none="EACCES", alone=True)
def setting_in_sys_made_writable(at: Place) -> None:
    mount("none", "/sys", flags=MS_REMOUNT | MS_BIND)
    write_back(in_sys())


@attempt(host="EPERM", none="EACCES")
def setting_in_a_fresh_sysfs(at: Place) -> None:
    with mounted("sysfs", "sysfs") as sys:
        write_back(in_sys(sys))


@attempt("EPERM")
def clock(at: Place) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


@attempt("EPERM")
def clock_speed(at: Place) -> None:
    # struct timex: modes, offset, freq, …; ADJ_FREQUENCY with what it is.
    timex = ctypes.create_string_buffer(512)
    call("adjtimex", address_of(timex))
    struct.pack_into("=I", timex, 0, 2)
    call("adjtimex", address_of(timex))


@attempt("EPERM", absent=("ENOSYS",))
def module(at: Place) -> None:
    with allowed_if(errno.ENOEXEC):
        syscall("init_module", b"no module", 9, b"")


@attempt("EPERM", absent=("ENOSYS",))
def module_from_a_file(at: Place) -> None:
    with allowed_if(errno.ENOEXEC, errno.EINVAL):
        syscall("finit_module", os.memfd_create("empty"), b"", 0)


@attempt("EPERM", absent=("ENOSYS",))
def module_removed(at: Place) -> None:
    with allowed_if(errno.ENOENT):
        syscall("delete_module", b"nsbox_no_such_module", os.O_NONBLOCK)


# In a pid namespace reboot(2) is about that namespace alone, and does not know this command.
@attempt("EINVAL", absent=("EINVAL",))
def reboot(at: Place) -> None:
    with open("/proc/sys/kernel/ctrl-alt-del", encoding="ascii") as file:
        now = int(file.read())
    # RB_ENABLE_CAD or RB_DISABLE_CAD, whichever it is already.
    call("reboot", 0x89ABCDEF if now else 0)


@attempt("EPERM", absent=("ENOSYS",))
def kexec(at: Place) -> None:
    with allowed_if(errno.EINVAL):
        syscall("kexec_load", 0, 0, 0, 0x80)  # a flag that does not exist


@attempt("EPERM", absent=("ENOSYS",))
def swap(at: Place) -> None:
    file = os.memfd_create("no swap signature")
    with allowed_if(errno.EINVAL):
        call("swapon", f"/proc/self/fd/{file}".encode(), 0)


@attempt("EPERM", absent=("ENOSYS",))
def process_accounting(at: Place) -> None:
    with allowed_if(errno.ENOENT):
        syscall("acct", b"/nsbox/no/such/file")


@attempt("EPERM")
def kernel_log(at: Place) -> None:
    call("klogctl", 9, None, 0)  # SYSLOG_ACTION_SIZE_UNREAD


@attempt("EPERM", absent=("ENOSYS",))
def ports_of_the_hardware(at: Place) -> None:
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "no such thing")
    call("ioperm", 0x80, 1, 1)


@attempt("EACCES")
def physical_memory(at: Place) -> None:
    found = [path for path in ("/proc/kcore", "/proc/kpagecount") if os.path.exists(path)]
    if not found:
        raise OSError(errno.ENOSYS, "built without either")
    os.close(os.open(found[0], os.O_RDONLY))


@attempt("ENOENT", absent=("ENOENT",))
def physical_memory_device(at: Place) -> None:
    os.close(os.open("/dev/mem", os.O_RDONLY))


@attempt("EPERM", absent=("ENOSYS", "EINVAL"))
def bpf_program(at: Place) -> None:
    load_bpf(5)  # BPF_PROG_TYPE_TRACEPOINT


@attempt("EPERM", absent=("ENOSYS",))
def bpf_programs_of_others(at: Place) -> None:
    with allowed_if(errno.ENOENT):
        syscall("bpf", 11, bytes(120), 120)  # BPF_PROG_GET_NEXT_ID: there may be none


def load_bpf(kind: int) -> None:
    # Returns 0, no more.
    program = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", kind, 2, address_of(program), address_of(licence)).ljust(120, b"\0")
    os.close(syscall("bpf", 5, attributes, len(attributes)))  # BPF_PROG_LOAD


@attempt("EACCES", absent=("ENOSYS", "ENOENT"))
def performance_counters_of_everybody(at: Place) -> None:
    open_counter(-1, 0)


@attempt("ESRCH", absent=("ENOSYS", "ENOENT"))
def performance_counters_of_a_host_process(at: Place) -> None:
    open_counter(at.victim, -1)


@attempt("EACCES", absent=("ENOSYS", "ENOENT"))
def performance_counters_of_process_one(at: Place) -> None:
    open_counter(at.first, -1)


def open_counter(pid: int, cpu: int) -> None:
    # struct perf_event_attr: type PERF_TYPE_SOFTWARE, size, config PERF_COUNT_SW_TASK_CLOCK, three that do not matter,
    # and exclude_kernel: what perf_event_paranoid says of the kernel is another matter.
    attributes = struct.pack("=IIQ24xQ", 1, 112, 1, 1 << 5).ljust(112, b"\0")
    os.close(syscall("perf_event_open", attributes, pid, cpu, -1, 8))


# A group of cgroup v1's cpu controller has no time for it until somebody gives it some (cpu.rt_runtime_us).
@attempt("EPERM", absent=("EPERM",))
def real_time_scheduling(at: Place) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attempt("EACCES")
def higher_priority(at: Place) -> None:
    # Python's os.nice reports the C library's EPERM for the kernel's EACCES.
    call("setpriority", 0, 0, -1)


KEYCTL_READ = 11


# A filter refuses all that has to do with keys: they have no namespace, a box's ids but 0 are the host's, and a number
# is looked up whoever names it.
@attempt("ENOSYS", absent=("ENOSYS",))
def key_of_roots(at: Place) -> None:
    read_numbered_key(at, 0)


@attempt("ENOSYS", absent=("ENOSYS",))
def key_of_an_ordinary_user(at: Place) -> None:
    become_the_user()
    read_numbered_key(at, 1)


def read_numbered_key(at: Place, number: int) -> None:
    if not at.keys:
        raise OSError(errno.ENOSYS, "no keyrings")
    read_key(at.keys[number])


def read_key(serial: int) -> None:
    text = ctypes.create_string_buffer(64)
    syscall("keyctl", KEYCTL_READ, serial, address_of(text), 64)
    assert text.value == b"secret"


@attempt("ENOSYS", absent=("ENOSYS",))
def key_in_the_session_keyring_of_pytest(at: Place) -> None:
    from tests.escapes.host import SESSION_KEY, log_in

    if not at.inside:
        key = log_in()
    elif not at.keys:
        raise OSError(errno.ENOSYS, "no keyrings")
    else:
        key = int(os.environ[SESSION_KEY])
    read_key(key)


def become_the_user() -> None:
    """An ordinary user of the host; in a box too, where all ids but 0 are the host's."""
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)


def become_root_of_a_user_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER)
    write_file("/proc/self/uid_map", f"0 {uid} 1")
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/gid_map", f"0 {gid} 1")
