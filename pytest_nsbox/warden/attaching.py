"""Into a box's cgroups: what a process that is to live in the box does before all else, while it has one thread."""

from __future__ import annotations

import errno

from pytest_nsbox.policy.errors import KernelError
from pytest_nsbox.real import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.spec import Spec

_STAYS = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


def attach(box: str, screens: tuple[int, ...], groups: tuple[int, ...], spec: Spec, *, rootless: bool) -> None:
    """Write to the descriptors of the session's screens (`kernel.cgroup_node`), then to those of the groups of `box`.

    Raises KernelError for a group of the box's. A process that cannot go behind a screen stays where it is.
    """
    # Before Linux 6.2 a cpuset, whatever is in it, makes an end of the CPUs that the user chose (taskset).
    cpus = os.sched_getaffinity(0) if screens and spec.cpuset is None else None
    for fd in (*screens, *groups):
        try:
            os.write(fd, b"0")
        except OSError as error:
            # One with real-time priority in `cpu`, one of a threaded group on v2; an ordinary user's, where the group
            # above both is not the user's.
            stays = error.errno in _STAYS or (error.errno == errno.EACCES and rootless)
            if fd not in screens or not stays:
                raise KernelError("attach", f"cgroup of {box}", error.errno or 0) from None
    if cpus is not None and os.sched_getaffinity(0) != cpus:
        os.sched_setaffinity(0, cpus)
