"""Pid 1 of the virtual machine: sets it up, runs the command of the settings file (tests/vm/boot.py), powers off."""

import ctypes
import fcntl
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys

HOST = "/run/host"
libc = ctypes.CDLL(None, use_errno=True)
SYS_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}[platform.machine()]


def mount(kind, target, options="", flags=0):
    os.makedirs(target, exist_ok=True)
    if libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode() or None):
        print("mount", kind, target, os.strerror(ctypes.get_errno()), flush=True)


def load(name, folder, known, done):
    if name in done or name not in known:
        return
    done.add(name)
    path, needed = known[name]
    for other in needed:
        load(other, folder, known, done)
    with open(os.path.join(folder, path), "rb") as file:
        if libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0) and ctypes.get_errno() != 17:  # EEXIST
            print("module", name, os.strerror(ctypes.get_errno()), flush=True)


def load_modules(names, parent):
    folder = os.path.join(parent, os.uname().release)
    if not os.path.isdir(folder):
        print("no kernel modules in", folder, flush=True)
        return
    known = {}
    with open(os.path.join(folder, "modules.dep")) as file:
        for line in file:
            path, _, needed = line.partition(":")
            known[module_name(path)] = (path, [module_name(other) for other in needed.split()])
    done: set[str] = set()
    for name in names:
        load(name, folder, known, done)


def module_name(path):
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def with_host(folder, function):
    """While `function` runs the host's `folder` is mounted, and only then: tests see all mounts."""
    mount("hostfs", HOST, folder)
    function()
    if libc.umount(HOST.encode()):
        print("umount", HOST, os.strerror(ctypes.get_errno()), flush=True)


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sH14s", b"lo", 0x1 | 0x40, b"")  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(s, 0x8914, request)  # SIOCSIFFLAGS


def tell_tasks(mark):
    """What every process waits for, when the command takes so long that somebody is about to give it up."""
    print(f"\n{mark}", flush=True)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        command = told(f"/proc/{pid}/cmdline").replace("\0", " ")
        state = told(f"/proc/{pid}/stat").rpartition(") ")[2][:1]
        if not command and state not in "DR":  # a thread of the kernel's that waits for work
            continue
        print(pid, state, told(f"/proc/{pid}/comm"), command[:100], told(f"/proc/{pid}/cgroup"), flush=True)
        for task in os.listdir(f"/proc/{pid}/task") if os.path.isdir(f"/proc/{pid}/task") else ():
            stack = " < ".join(line.split()[-1] for line in told(f"/proc/{pid}/task/{task}/stack").splitlines())
            print("   ", task, told(f"/proc/{pid}/task/{task}/syscall"), stack, flush=True)


def told(path):
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError as error:  # it has ended
        return error.strerror


def main(settings):
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    mount("devtmpfs", "/dev")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.symlink("/proc/self/fd", "/dev/fd")
    mount("devpts", "/dev/pts", "ptmxmode=0666,mode=0620")
    mount("tmpfs", "/dev/shm", "mode=1777")
    mount("tmpfs", "/run", "mode=0755")
    for folder in settings["tmpfs"]:
        mount("tmpfs", folder, "mode=1777")
    mount("cgroup2", "/sys/fs/cgroup")
    if not os.path.isdir(settings["tmpdir"]):
        os.makedirs(settings["tmpdir"])
    os.chmod(settings["tmpdir"], 0o1777)
    if settings["hostfs"]:
        with_host(settings["hostfs"], lambda: load_modules(settings["modules"], HOST))
    else:
        load_modules(settings["modules"], "/usr/lib/modules")
    loopback_up()
    with open("/sys/fs/cgroup/cgroup.controllers") as file:
        offered = file.read().split()
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as file:
        file.write(" ".join(f"+{name}" for name in settings["controllers"] if name in offered))
    socket.sethostname("nsbox-vm")
    signal.signal(signal.SIGALRM, lambda number, frame: tell_tasks(settings["late"]))
    signal.setitimer(signal.ITIMER_REAL, settings["told_at"])
    print(settings["begin"], flush=True)
    done = subprocess.Popen(settings["command"], cwd=settings["cwd"], env=settings["environment"])
    returncode = None
    while returncode is None:  # pid 1 reaps what others leave
        pid, raw = os.wait()
        if pid == done.pid:
            returncode = os.waitstatus_to_exitcode(raw)
    done.returncode = returncode
    status = returncode if returncode >= 0 else 128 - returncode
    print(f"\n{settings['end']}{status}", flush=True)


try:
    with open(sys.argv[1]) as settings_file:
        main(json.load(settings_file))
except Exception as error:  # noqa: BLE001 - a pid 1 that ends panics the kernel and hides why
    print("init:", repr(error), flush=True)
finally:
    sys.stdout.flush()
    os.sync()
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("o")
    while True:
        libc.pause()
