"""Runs a command on cgroup v2, on any machine: in Debian's user-mode-linux kernel with this machine's files.

    python -m tests.vm [--disk] -- python -m pytest tests/kernel

The kernel runs as an ordinary process (package user-mode-linux, 6.1: cpu, io, memory and pids controllers, one
CPU, no cpuset controller, no time namespaces). The command sees the same interpreter and checkout as here, and
nothing that it writes reaches this machine. There are two kinds of root:

- hostfs: this machine's root, read-only; /run, /dev/shm, /tmp, /var/tmp and TMPDIR are tmpfs. It is there at once.
  Neither filesystem can be idmapped by that kernel, so boxes get the identity map.
- disk (`--disk`): an ext4 with a copy of what the tests run (tests/vm/disk.py), made in some ten seconds. Boxes get
  shifted ids, as on most machines that have cgroup v2.

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
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.vm.disk import make_disk

KERNEL = "linux.uml"
BEGIN, END = "--- the virtual machine is up ---", "--- the command ended ---"
STATUS = "status"
BOOTS = (60.0, 120.0)  # seconds to come up, which takes three; rarely, one hangs on a loaded machine
TMPDIR = "/var/tmp/nsbox"
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "USER", "LOGNAME", "VIRTUAL_ENV", "NSBOX_REQUIRE_ALL", "CI")


def run_in_vm(command: Sequence[str], *, memory: str = "1500M", timeout: float = 1800.0, disk: bool = False) -> int:
    """Exit status of `command`, run as root in the checkout with its output on stdout; `disk` chooses the root.

    128 + N after signal N, 124 when `timeout` (seconds) passed, 125 when the machine did not come up or died.
    """
    kernel = shutil.which(KERNEL)
    if kernel is None:
        print(f"no program {KERNEL} on PATH: apt-get install user-mode-linux", file=sys.stderr)
        return 125
    with tempfile.TemporaryDirectory(prefix="nsbvm-") as scratch:
        settings = machine_settings(command, scratch)
        if disk:
            root = (f"ubd0={make_disk(scratch, init_files(settings, '/'))}", "root=/dev/ubda", "rw", "init=/init")
        else:
            # Only below folders that no tmpfs may hide.
            settings["tmpfs"] = [path for path in ("/tmp", "/var/tmp") if not needed_below(path, command)]
            for path, text in init_files(settings, scratch).items():
                Path(path).write_text(text, encoding="utf-8")
                Path(path).chmod(0o755)
            # Read-only: what a test does to the root, as it may in a throwaway machine, must not reach this one.
            root = ("root=/dev/root", "rootfstype=hostfs", "ro", f"init={scratch}/init")
        for patience in BOOTS:
            ended = follow(start(kernel, memory, scratch, root), patience, timeout)
            if ended is not None:
                return ended or int(Path(scratch, STATUS).read_text(encoding="utf-8"))
            print(f"the virtual machine was not up after {patience:.0f} s", file=sys.stderr)
    return 125


def start(kernel: str, memory: str, scratch: str, root: Sequence[str]) -> subprocess.Popen[str]:
    """A machine that boots; its console is the process' stdout."""
    new_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return subprocess.Popen(
        [
            # The machine uses a process for each one of its own. In a pid namespace they all end with the first, which
            # ends with `unshare`, which ends with us.
            *("setpriv", "--pdeathsig", "KILL", "unshare", *new_user, "--pid", "--fork", "--kill-child"),
            kernel,
            f"mem={memory}",
            *root,
            "con=null",
            "con0=null,fd:1",
            f"uml_dir={scratch}",
            # Panics only: the messages of OOM kills would come between the lines of the command.
            "loglevel=1",
            "panic=-1",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )


def follow(machine: subprocess.Popen[str], patience: float, timeout: float) -> int | None:
    """Shows what the command prints. 0 when it ended, 124 when `timeout` passed, 125 when the machine died under it.

    None when the machine did not come up within `patience` seconds; then what the kernel said is shown.
    """
    assert machine.stdout is not None

    def give_up(signum: int, frame: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, give_up)
    boot: list[str] = []
    up = False
    try:
        signal.alarm(int(patience))
        for line in machine.stdout:
            if line.strip() == BEGIN:
                up = True
                break
            boot.append(line)
        signal.alarm(int(timeout))
        return (0 if show(machine.stdout) else 125) if up else None
    except TimeoutError:
        if up:
            print(f"the virtual machine was stopped after {timeout:.0f} s", file=sys.stderr)
        return 124 if up else None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        # It is not waited for to power off: nothing in it is needed any more.
        machine.kill()
        machine.wait()
        machine.stdout.close()
        if not up:
            sys.stdout.write("".join(boot))


def show(lines: Iterable[str]) -> bool:
    """Passes the console on; whether the line came that says that the command ended."""
    for line in lines:
        if line.strip() == END:
            return True
        sys.stdout.write(line)
        sys.stdout.flush()
    return False


def init_files(settings: dict[str, object], folder: str) -> dict[str, str]:
    """The files that boot the machine when they lie in `folder` of its root: {path: text}. `init` starts init.py."""
    told = os.path.join(folder, "settings.json")
    program = shlex.join([sys.executable, "-IS", str(Path(__file__).with_name("init.py")), told])
    return {told: json.dumps(settings), os.path.join(folder, "init"): f"#!/bin/sh\nexec {program}\n"}


def needed_below(folder: str, command: Sequence[str]) -> bool:
    """Whether `command`, the checkout or the interpreter lie in `folder`, so that a tmpfs there would hide them."""
    paths = [*command, os.getcwd(), sys.prefix, sys.base_prefix]
    return any(path.startswith(folder + "/") for path in paths)


def machine_settings(command: Sequence[str], scratch: str) -> dict[str, object]:
    """What tests/vm/init.py, pid 1 of the machine, is told; it writes the exit status into `scratch`."""
    environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    environment.update(TERM="dumb", TMPDIR=TMPDIR, NSBOX_VM="1", PYTHONDONTWRITEBYTECODE="1", COLUMNS="120")
    environment["PYTEST_NSBOX_CGROUP_PARENT"] = "/nsbox"
    return {
        "command": list(command),
        "cwd": os.getcwd(),
        "environment": environment,
        "scratch": scratch,
        "tmpdir": TMPDIR,
        "tmpfs": [],
        "status": STATUS,
        "begin": BEGIN,
        "end": END,
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
        ],
    }
