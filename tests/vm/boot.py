"""Runs a command on cgroup v2, on any machine: in a virtual machine with this machine's interpreter and checkout.

    python -m tests.vm [--disk | --initramfs | --qemu] [PYTEST ARGUMENTS | -- COMMAND]

Nothing that the command writes reaches this machine. There are two kernels:

- Debian's user-mode-linux runs as an ordinary process (6.1: cpu, io, memory and pids controllers, one CPU, no cpuset
  controller, no pressure figures, no time namespaces), at nearly the speed of this machine.
- Debian's kernel for clouds in QEMU's software emulation (6.1, two CPUs, all that the other lacks; tests/vm/cloud.py)
  takes ten to thirty times as long for everything.

and four kinds of root:

- hostfs: this machine's root, read-only; /run, /dev/shm, /tmp, /var/tmp and TMPDIR are tmpfs. It is there at once.
  Neither filesystem can be idmapped by that kernel, so boxes get the identity map.
- disk (`--disk`): an ext4 with a copy of what the tests run (tests/vm/disk.py), made in some ten seconds. Boxes get
  shifted ids, as on most machines that have cgroup v2.
- initramfs (`--initramfs`): the same copy in memory, unpacked by the kernel into its own rootfs, from which no
  pivot_root(2) leads.
- qemu (`--qemu`): as disk, in the other kernel.

See https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.capabilities import missing
from tests.rootfs import place, rootfs
from tests.vm import registers
from tests.vm.disk import make_disk, make_initramfs

KERNEL = "linux.uml"
MODULES = "/usr/lib/uml/modules"
BEGIN, END = "--- the virtual machine is up ---", "--- the command ended with "
LATE = "--- the command still runs, among these processes ---"
TOLD_AT = 0.9  # of the time that a command has
BOOTS = (60.0, 120.0)  # seconds to come up, which takes three; rarely, one hangs on a loaded machine
ROOTS = ("hostfs", "disk", "initramfs", "qemu")
TMPDIR = "/var/tmp/nsbox"
KEPT_ENVIRONMENT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "VIRTUAL_ENV", "CI"),
    *("NSBOX_REQUIRE_ALL", "NSBOX_ROOTFS_CACHE"),
)


def run_in_vm(
    command: Sequence[str],
    *,
    root: str = "hostfs",
    more: Mapping[str, Path] | None = None,
    memory: str = "1500M",
    timeout: float = 1800.0,
) -> int:
    """Exit status of `command`, run as root in the checkout with its output on stdout.

    `root` is one of ROOTS; all but hostfs can have `more` directories of this machine in it, {path there: directory}.

    128 + N after signal N, 124 when `timeout` (seconds) passed, 125 when the machine did not come up or died.

    Some time before the timeout the machine's first process tells what runs in it. Where not even that process gets on,
    the machine stands still as a whole, which no command in it can bring about: it is started once more.
    """
    with tempfile.TemporaryDirectory(prefix="nsbvm-") as scratch:
        arguments = machine(command, scratch, memory, root, more or {}, timeout)
        if arguments is None:
            return 125
        for patience in BOOTS:
            ended = follow(start(arguments), patience, timeout, tells=True)
            if ended is not None:
                return ended
    return 125


def machine(
    command: Sequence[str], scratch: str, memory: str, root: str, more: Mapping[str, Path], timeout: float
) -> list[str] | None:
    """The command line of a machine that runs `command`; None, with the reason on stderr, if none can be made."""
    settings = machine_settings(command, root, timeout)
    files: dict[str, str | Path] = {**more, **init_files(settings, "/")}
    if missing("busybox root") is None:
        files[str(place("busybox"))] = rootfs("busybox")
    if root == "qemu":
        from tests.vm import cloud

        return cloud.command_line(scratch, memory, files)
    kernel = shutil.which(KERNEL)
    if kernel is None:
        print(f"no program {KERNEL} on PATH: apt-get install user-mode-linux", file=sys.stderr)
        return None
    if root == "disk":
        options = [f"ubd0={make_disk(scratch, files)}", "root=/dev/ubda", "rw", "init=/init"]
    elif root == "initramfs":
        options = [f"initrd={make_initramfs(scratch, files)}"]
    else:
        # Only below folders that no tmpfs may hide.
        settings["tmpfs"] = [path for path in ("/tmp", "/var/tmp") if not needed_below(path, command)]
        for path, text in init_files(settings, scratch).items():
            Path(path).write_text(text, encoding="utf-8")
            Path(path).chmod(0o755)
        # Read-only: what a test does to the root, as it may in a throwaway machine, must not reach this one.
        options = ["root=/dev/root", "rootfstype=hostfs", "ro", f"init={scratch}/init"]
    return user_mode_linux(kernel, memory, scratch, options)


def user_mode_linux(kernel: str, memory: str, scratch: str, options: Sequence[str]) -> list[str]:
    """The command line of such a machine, whose console is its stdout."""
    new_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return [
        # The machine uses a process for each one of its own. In a pid namespace they all end with the first, which
        # ends with `unshare`, which ends with us.
        *("unshare", *new_user, "--pid", "--fork", "--kill-child"),
        *registers.prefix(scratch),
        kernel,
        f"mem={memory}",
        *options,
        "con=null",
        "con0=null,fd:1",
        f"uml_dir={scratch}",
        # Panics only: the messages of OOM kills would come between the lines of the command.
        "loglevel=1",
        "panic=-1",
    ]


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A machine that boots; its console is the process' stdout. It ends with us."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


class Console:
    """An iterator over the lines that a machine says; one that it has not ended stays in it.

    ``late``: the machine's first process told what runs.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unended = b""
        self.late = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while b"\n" not in self._unended:
            part = os.read(self._fd, 1 << 16)
            if not part:
                raise StopIteration
            self._unended += part
        line, _, self._unended = self._unended.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "replace") + "\n"

    def show(self) -> int:
        """Passes the lines on, up to the one that says with which status the command ended; 125 if none comes."""
        for line in self:
            if line.startswith(END):
                return int(line[len(END) :])
            self.late = self.late or line.strip() == LATE
            sys.stdout.write(line)
            sys.stdout.flush()
        return 125

    def show_rest(self) -> None:
        if self._unended:
            sys.stdout.write(self._unended.decode("utf-8", "replace") + "\n")


def follow(machine: subprocess.Popen[bytes], patience: float, timeout: float, *, tells: bool = False) -> int | None:
    """Shows what the command prints. Its status, 124 when `timeout` passed, 125 when the machine died under it.

    None when the machine did not come up within `patience` seconds, and then what the kernel said is shown; also when
    it was stopped without having said `LATE`, if it is one that `tells`.
    """
    assert machine.stdout is not None

    def give_up(signum: int, frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, give_up)
    console = Console(machine.stdout.fileno())
    boot: list[str] = []
    up = False
    try:
        signal.alarm(int(patience))
        for line in console:
            if line.strip() == BEGIN:
                up = True
                break
            boot.append(line)
        signal.alarm(int(timeout))
        if up:
            return console.show()
    except TimeoutError:
        pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        # It is not waited for to power off: nothing in it is needed any more.
        machine.kill()
        machine.wait()
        machine.stdout.close()
    if not up:
        sys.stdout.write("".join(boot))
    console.show_rest()
    if not up:
        print(f"the virtual machine was not up after {patience:.0f} s", file=sys.stderr)
        return None
    stood_still = tells and not console.late
    why = ": it stood still, its first process too" if stood_still else ""
    print(f"the virtual machine was stopped after {timeout:.0f} s{why}", file=sys.stderr)
    return None if stood_still else 124


def init_files(settings: dict[str, object], folder: str) -> dict[str, str]:
    """The files that boot the machine when they lie in `folder` of its root: {path: text}. `init` starts init.py."""
    told = os.path.join(folder, "settings.json")
    program = shlex.join([sys.executable, "-IS", str(Path(__file__).with_name("init.py")), told])
    return {told: json.dumps(settings), os.path.join(folder, "init"): f"#!/bin/sh\nexec {program}\n"}


def needed_below(folder: str, command: Sequence[str]) -> bool:
    """Whether `command`, the checkout or the interpreter lie in `folder`, so that a tmpfs there would hide them."""
    paths = [*command, os.getcwd(), sys.prefix, sys.base_prefix]
    return any(path.startswith(folder + "/") for path in paths)


def machine_settings(command: Sequence[str], root: str, timeout: float) -> dict[str, object]:
    """What tests/vm/init.py, pid 1 of the machine, is told."""
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    environment.update(TERM="dumb", TMPDIR=TMPDIR, PYTHONDONTWRITEBYTECODE="1", COLUMNS="120")
    environment["NSBOX_VM"] = "qemu" if root == "qemu" else "uml"
    environment["PYTEST_NSBOX_CGROUP_PARENT"] = "/nsbox"
    return {
        "command": list(command),
        "cwd": os.getcwd(),
        "environment": environment,
        "tmpdir": TMPDIR,
        "tmpfs": [],
        # On a disk for QEMU they lie where a kernel's modules lie; of this machine otherwise.
        "hostfs": None if root == "qemu" else MODULES,
        "controllers": ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"],
        "begin": BEGIN,
        "end": END,
        "late": LATE,
        "told_at": timeout * TOLD_AT,
        "modules": [
            "overlay",
            "veth",
            "bridge",
            "dummy",
            "ipv6",
            "loop",
            "dm_mod",
            "sch_tbf",
            "sch_netem",
            "nft_tproxy",
            *(() if root == "qemu" else ("nfsd", "nfsv4")),
        ],
    }
