"""The commands with which root makes limits possible: groups for an ordinary user, controllers that are not there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsbox.kernel.cgroup_v1 import Hierarchy

_LIMITING = frozenset({"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"})
_UNIFIED = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
# What the first process of a box is called.
_INIT = "nsbox-init\n"
# What gives a box groups of these on v1.
_KEYS = {"cpu": "cpu", "cpuset": "cpuset", "blkio": "io", "hugetlb": "hugetlb"}


def delegating_command(hierarchies: Iterable[Hierarchy], uid: int) -> str:
    """Return it, with the option that makes use of the groups."""
    chosen = [hierarchy for hierarchy in hierarchies if hierarchy.controllers & _LIMITING]
    parents = next((hierarchy.parents for hierarchy in chosen if hierarchy.parents), (f"nsbox-{uid}",))
    name = "/".join(parents)
    points = sorted(hierarchy.point for hierarchy in chosen)
    above = {point.rpartition("/")[0] for point in points}
    if len(points) > 1 and len(above) == 1:
        names = ",".join(point.rpartition("/")[2].replace(",", "\\,") for point in points)
        groups = f"{above.pop()}/{{{names}}}/{name}"
    else:
        groups = " ".join(f"{point}/{name}" for point in points)
    return f"sudo bash -c 'mkdir -p {groups} && chown -R {uid} {groups}', then pytest --sandbox-cgroup-parent=/{name}"


def delegating_command_v2(point: str, controllers: Iterable[str], uid: int) -> str:
    """Return it for v2, mounted at `point` with `controllers` in its root.

    The shell moves along: who may only make groups may not bring processes there from elsewhere.
    """
    passed = " ".join(f"+{name}" for name in sorted(_UNIFIED & set(controllers)))
    group = f"nsbox-{uid}"
    given = f"{group} {group}/cgroup.procs {group}/cgroup.subtree_control {group}/cgroup.threads"
    return (
        f'sudo sh -c \'cd {point} && echo "{passed}" >cgroup.subtree_control && mkdir -p {group} && '
        f"chown {uid} {given} && echo '$$' >{group}/cgroup.procs', then pytest in the same shell"
    )


def fix_readonly(name: str) -> str:
    """Return what makes the hierarchy of the controller `name` writable, which is mounted read-only."""
    return _fix_inside(name) or "mount it read-write: mount -o remount,rw, or docker run --privileged"


def _fix_inside(name: str) -> str:
    """Return what helps in a box, whose own mounts of v1 would show it no group that it may write to; "" elsewhere."""
    try:
        with open("/proc/1/comm", encoding="ascii", errors="replace") as file:
            inside = file.read() == _INIT
    except OSError:
        inside = False
    key = _KEYS.get(name)
    return f"inside of a box it takes such a limit of that box itself ({key}= in its marker)" if inside and key else ""


def why_absent(name: str, *, unified: bool) -> str:
    """Return why no group has the controller `name`, and the fix. unified: boxes use cgroup v2."""
    rows: dict[str, list[str]] = {}
    try:
        with open("/proc/cgroups", encoding="ascii") as file:
            rows = {line.split()[0]: line.split() for line in file if not line.startswith("#")}
    except OSError:
        pass  # CONFIG_PROC_FS or the file's v1 support is not built in: less to tell
    return why_absent_in(rows.get(name), name, unified=unified)


def why_absent_in(row: list[str] | None, name: str, *, unified: bool) -> str:
    """The same, given the words of the controller's line in /proc/cgroups: name, hierarchy, groups, enabled."""
    if row is not None and row[3] == "0":
        return f"the controller is disabled at boot; boot the kernel with cgroup_enable={name}"
    if unified and row is not None and row[1] != "0":
        return (
            f"boxes use cgroup v2 here, and {name} is in a hierarchy of cgroup v1; unmount that, "
            f"or boot the kernel with cgroup_no_v1={name}"
        )
    if unified:
        return (
            f"{name} is not in cgroup.controllers: not passed on to this group, or not in the kernel; "
            f"echo +{name} > cgroup.subtree_control in the groups above, or "
            "systemd-run --scope -p Delegate=yes pytest …"
        )
    if row is not None:
        point = f"/sys/fs/cgroup/{name}"
        fix = _fix_inside(name) or f"mkdir -p {point} && mount -t cgroup -o {name} cgroup {point}"
        return f"boxes use cgroup v1 here, and no mounted hierarchy has it; {fix}"
    return "the kernel is built without it"
