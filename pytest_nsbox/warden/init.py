"""Process 1 of a box: sets up what must be done inside its namespaces, then only reaps and waits for the warden to hang
up.

It is a fork of the warden (a fresh interpreter would take ten times as long) and must not run any of the warden's code
again: the only way out is os._exit. Where it can be, it is no copy of the warden, and does the same by a program of
system calls, which goes through the doors of `warden.recorded`.
"""

from __future__ import annotations

import errno
import marshal
import os

from pytest_nsbox.kernel import memory
from pytest_nsbox.kernel.mount import NODEV, NOEXEC, NOSUID, RDONLY
from pytest_nsbox.kernel.namespaces import NEWTIME
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.policy.plan import LOWER, LoopbackUp, MountOwn, Protect, SetClocks, SetHostname, ShowCgroups
from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from pytest_nsbox.policy.plan import Plan
    from pytest_nsbox.warden.doors import Doors
    from pytest_nsbox.warden.recorded import Recorder

    Views = tuple[tuple[str, str], ...]

GO = b"g"
READY = b"r"
LARGEST_REPORT = 1 << 16  # bytes
_MOST_PAGES = 1024
_CGROUPS = "/sys/fs/cgroup"
# What Docker makes read-only in a container: they belong to the machine, and open to the host's root.
_KERNELS_OWN = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@record
class Shown:
    """What is this box's alone, and not its plan's.

    cgroups      (name, path) of its own cgroups, to be shown below /sys/fs/cgroup
    screens      as `cgroups`, of groups that it shares with others
    files        (path, place) of what is bound over files of /proc and /sys
    began        when it began, by CLOCK_BOOTTIME
    tells_pages  whether its init is to tell which pages of memory it wrote to, see kernel.memory.Pins
    """

    cgroups: Views
    screens: Views = ()
    files: Views = ()
    began: float = 0.0
    tells_pages: bool = False


def run(doors: Doors, plan: Plan, control: int, place: str, shown: Shown) -> NoReturn:
    """Be the init until the other end of `control` is closed or somebody kills us.

    place  the tree that becomes our root, relative to our working directory
    """
    try:
        try:
            prepare(doors, plan, control, place, shown)
            report = READY + (marshal.dumps(_written_pages(doors)) if shown.tells_pages else b"")
            # Only now: every change of ids takes both back.
            doors.die_with_parent()
            # An ordinary user's pytest, without rights in the namespace that our memory belongs to, could not enter
            # the box through us; nor could a warden that went into a user namespace after its start.
            doors.set_dumpable(dumpable=plan.dumpable)
        except KernelError as error:
            report = _told(error)
        except BaseException as error:  # noqa: BLE001  # it must not run on in the warden's code
            report = marshal.dumps(("start init", f"({type(error).__name__}: {error})"[:1000], errno.EIO))
        os.write(control, report)
        os.read(control, 1)
    finally:
        os._exit(0)


def give_up(control: int, error: KernelError) -> NoReturn:
    """Tell why there is no init, in the process that was to become it or its parent."""
    try:
        os.write(control, _told(error))
    finally:
        os._exit(1)


def _told(error: KernelError) -> bytes:
    return marshal.dumps((error.call, error.target[:1000], error.errno))


def _written_pages(doors: Doors) -> list[int]:
    doors.set_dumpable(dumpable=True)
    try:
        return memory.written_since_fork(_MOST_PAGES)
    except OSError:
        return []


def pages(report: bytes) -> list[int]:
    """Return the numbers of the pages that an init told after READY."""
    return marshal.loads(report[len(READY) :]) if len(report) > len(READY) else []


def failure(report: bytes) -> KernelError | BoxFailed:
    """Return the error that an init told instead of READY (nothing at all if it ended before it could)."""
    if not report:
        return BoxFailed("the first process of the box ended before the box was ready")
    return explained(KernelError(*marshal.loads(report)))


def explained(error: KernelError) -> KernelError | BoxFailed:
    """Return what to tell of an init's error."""
    if error.errno == errno.EPERM:
        # A container around us hides parts of /proc, for one.
        return BoxFailed(f"{error}; pytest --sandbox-doctor tells the fix")
    return error


def prepare(doors: Doors | Recorder, plan: Plan, control: int, place: str, shown: Shown) -> None:
    """Set up what must be done inside a box's namespaces. Raises KernelError."""
    doors.ignore_ended_children()
    # Above all the warden's own end of the control socket: its client must see when the warden is gone.
    doors.close_all_but((control,))
    doors.set_name("nsbox-init")
    for op in plan.init:
        if isinstance(op, LoopbackUp):
            doors.loopback_up()
        elif isinstance(op, SetHostname):
            doors.set_hostname(op.name)
    tree = doors.clone_tree(place, recursive=True)
    # The copy on top of itself: its root, unlike the locked original, can be pivoted to.
    doors.attach(tree, place)
    doors.await_go(control, GO)
    if not plan.privileged and plan.ids is None:
        doors.become(0, 0)
    for op in plan.init:
        if isinstance(op, SetClocks):
            # The file belongs to us only while we are dumpable, which the change of ids has just ended.
            doors.set_dumpable(dumpable=True)
            doors.unshare(NEWTIME)
            doors.set_clock_offsets(op.monotonic, -shown.began if op.boottime is None else op.boottime)
    _enter_root(doors, plan, tree, shown)


def _enter_root(doors: Doors | Recorder, plan: Plan, tree: int, shown: Shown) -> None:
    """Mount what belongs to our namespaces and make `tree` our root.

    Made before the old root goes, placed after: the kernel gives a user namespace a new proc or sysfs only where it
    sees one already, and cgroups are bound from where the host has them.
    """
    mounts: list[tuple[int, str]] = []
    for op in plan.init:
        if isinstance(op, MountOwn):
            attributes = NOSUID | NOEXEC | (0 if op.fstype == "devpts" else NODEV) | (RDONLY if op.readonly else 0)
            mounts.append((doors.new_mount(op.fstype, op.options, attributes, op.target), op.target))
        elif isinstance(op, ShowCgroups):
            base = doors.clone_tree("base/fs/cgroup")
            doors.set_attributes(base, RDONLY | NOSUID | NODEV | NOEXEC, target=_CGROUPS)
            mounts.append((base, _CGROUPS))
            for name, path in shown.cgroups:
                mount = doors.clone_tree(path)
                if op.readonly:
                    doors.set_attributes(mount, RDONLY, target=path)
                mounts.append((mount, f"{_CGROUPS}/{name}".rstrip("/")))
            for name, path in shown.screens:
                mount = doors.clone_tree(path)
                doors.set_attributes(mount, RDONLY, target=path)
                mounts.append((mount, f"{_CGROUPS}/{name}"))
    for source, place in shown.files:
        mounts.append((doors.clone_tree(source), place))
    doors.change_directory(tree)
    doors.pivot_here()
    for mount, target in mounts:
        doors.attach(mount, target)
        doors.close(mount)
        if plan.live and target in ("/proc", "/sys"):
            # Before anything is bound over their files.
            again = doors.clone_tree(target)
            doors.attach(again, LOWER + target)
            doors.close(again)
    doors.close(tree)
    if any(isinstance(op, Protect) for op in plan.init):
        _protect(doors)
    doors.change_directory("/")


def _protect(doors: Doors | Recorder) -> None:
    for path in _KERNELS_OWN:
        if os.path.lexists(path):
            mount = doors.clone_tree(path)
            doors.set_attributes(mount, RDONLY, target=path)
            doors.attach(mount, path)
            doors.close(mount)
