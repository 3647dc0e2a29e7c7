"""Process 1 of a box: sets up what must be done inside its namespaces, then only reaps and waits for the warden to hang up.

It is a fork of the warden (a fresh interpreter would take ten times as long) and must not run any of the warden's code again: the only way
out is os._exit.
"""

from __future__ import annotations

import errno
import json
import os
import signal

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.kernel.mount import NODEV, NOEXEC, NOSUID, RDONLY
from pytest_nsbox.policy import plan as plans
from pytest_nsbox.policy.errors import BoxFailed, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.doors import Doors

GO = b"g"
READY = b"r"


def run(doors: Doors, plan: Plan, control: int, flags: int) -> NoReturn:
    """Be the init until the other end of `control` is closed or somebody kills us."""
    try:
        try:
            _prepare(doors, plan, control, flags)
            report = READY
        except KernelError as error:
            report = json.dumps([error.call, error.target[:1000], error.errno]).encode()
        except BaseException as error:
            report = json.dumps(["start init", f"({type(error).__name__}: {error})"[:1000], errno.EIO]).encode()
        os.write(control, report)
        os.read(control, 1)
    finally:
        os._exit(0)


def failure(report: bytes) -> KernelError | BoxFailed:
    """Return the error that an init told, instead of READY; nothing at all if it ended before it could."""
    if not report:
        return BoxFailed("the first process of the box ended before the box was ready")
    call, target, number = json.loads(report)
    return KernelError(call, target, number)


def _prepare(doors: Doors, plan: Plan, control: int, flags: int) -> None:
    # Orphans of the box that end are reaped by the kernel itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Above all the warden's own end of the control socket: its client must see when the warden is gone.
    doors.close_all_but((control,))
    process.set_name("nsbox-init")
    for op in plan.init:
        if isinstance(op, plans.LoopbackUp):
            doors.loopback_up()
        elif isinstance(op, plans.SetHostname):
            doors.set_hostname(op.name)
    tree = doors.clone_tree("root", recursive=True)
    # The copy on top of itself: its root, unlike the locked original, can be pivoted to.
    doors.attach(tree, "root")
    if os.read(control, 1) != GO:
        os._exit(0)
    if flags & namespaces.NEWUSER:
        doors.become(0, 0)
    for op in plan.init:
        if isinstance(op, plans.SetClocks):
            doors.unshare(namespaces.NEWTIME)
            doors.set_clock_offsets(op.monotonic, op.boottime)
    _enter_root(doors, plan, tree)
    # Only now: every change of ids takes both back.
    doors.die_with_parent()
    doors.set_dumpable(False)


def _enter_root(doors: Doors, plan: Plan, tree: int) -> None:
    """Mount what belongs to our namespaces and make `tree` our root.

    Made before the old root goes, placed after: the kernel gives a user namespace a new proc or sysfs only where it sees one already.
    """
    own = [op for op in plan.init if isinstance(op, plans.MountOwn)]
    mounts = [
        doors.new_mount(op.fstype, op.options, NOSUID | NODEV * (op.fstype != "devpts") | NOEXEC | (RDONLY if op.readonly else 0), op.target)
        for op in own
    ]
    view = doors.clone_tree("root/sys/fs/cgroup", recursive=True) if any(op.fstype == "sysfs" for op in own) else -1
    doors.change_directory(tree)
    doors.pivot_here()
    for op, mount in zip(own, mounts, strict=True):
        doors.attach(mount, op.target)
        os.close(mount)
    if view >= 0:
        doors.attach(view, "/sys/fs/cgroup")
        os.close(view)
    os.close(tree)
    os.chdir("/")
