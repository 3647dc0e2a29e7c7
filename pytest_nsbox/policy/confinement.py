"""What processes of a box may do besides what its user namespace allows: capabilities and a filter of system calls.

Containers have by default what Docker gives them; tests have everything, as root outside of a box has, unless their
marker says ``caps`` or ``seccomp``. Sources: capabilities(7); "Runtime privilege and Linux capabilities" at
docs.docker.com.
"""

from __future__ import annotations

from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_nsbox.policy.spec import Spec

# By number: include/uapi/linux/capability.h.
NAMES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)
DEFAULT = frozenset(
    (
        *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
        *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
    )
)
ALL = frozenset(NAMES)
ACCEPTED = "a list of capabilities such as ['default', 'net_admin']; 'default' are Docker's, 'all' are all"


@record
class Confinement:
    """The capabilities that are left, and whether calls are filtered."""

    capabilities: frozenset[str]
    filtered: bool

    @property
    def mask(self) -> int:
        """The capabilities as bits."""
        return sum(1 << NAMES.index(name) for name in self.capabilities)


def parse_caps(value: object) -> tuple[str, ...]:
    """Names without ``cap_``, in lower case, once each."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise BadValueError("not a list", ACCEPTED)
    found = []
    for name in names:
        short = name.lower().removeprefix("cap_") if isinstance(name, str) else ""
        if short not in ALL and short not in ("all", "default"):
            raise BadValueError(f"{name!r} is no capability", ACCEPTED)
        found.append(short)
    return tuple(dict.fromkeys(found))


def confine(spec: Spec, *, container: bool) -> Confinement | None:
    """How processes of a box are confined; None where they are not, so that nothing is to be done."""
    if spec.privileged:
        return None
    filtered = spec.seccomp == "default" or (container and spec.seccomp is None)
    if not container and spec.caps is None and not filtered:
        return None
    names: Iterable[str] = ("default" if container else "all",) if spec.caps is None else spec.caps
    left = frozenset[str]().union(*({"all": ALL, "default": DEFAULT}.get(name, {name}) for name in names))
    return None if left == ALL and not filtered else Confinement(left, filtered)
