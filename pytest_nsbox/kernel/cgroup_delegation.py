"""The command with which root hands groups to an ordinary user, so that the user's boxes can have limits."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsbox.kernel.cgroup_v1 import Hierarchy

_LIMITING = frozenset({"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"})


_UNIFIED = frozenset({"cpu", "cpuset", "io", "memory", "pids"})


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
