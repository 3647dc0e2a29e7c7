"""What boxes need of a machine: names, why a try failed, the fix, and which spec needs what. Pure.

kernel/probe.py tries; here a failed call plus what is known of the surroundings becomes a sentence and a command.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from pytest_nsbox.policy.errors import ERRNO_TEXTS
from pytest_nsbox.policy.features import (
    BOX,
    BY_NAME,
    CGROUP,
    CGROUP_NS,
    CLONE3,
    DISK_SCRATCH,
    FEATURES,
    IDMAP,
    IPC,
    LINUX,
    MOUNT,
    NET,
    OVERLAY,
    PID,
    PIDFD,
    PROC,
    SECCOMP,
    SETATTR,
    SUBSYSTEMS,
    SWAP,
    TIME,
    USERNS,
    UTS,
    Feature,
    version,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_nsbox.policy.spec import Spec

# Without one of these no box can be made at all.
ESSENTIAL = (LINUX, *(feature.name for feature in FEATURES if not feature.without), BOX)

__all__ = [
    "BOX", "CGROUP", "CGROUP_NS", "CLONE3", "DISK_SCRATCH", "ESSENTIAL", "IDMAP", "IPC", "LINUX", "MOUNT", "NET",
    "OVERLAY", "PID", "PIDFD", "PROC", "SECCOMP", "SETATTR", "SUBSYSTEMS", "SWAP", "TIME", "USERNS", "UTS",
    "Capability", "Decision", "Failure", "Surroundings", "controller", "decide", "judge", "judge_box", "lacking",
    "needed", "without",
]  # fmt: skip

RUN_AS_ROOT = "run pytest as root"
UNKNOWN = "none is known: please report this text"
UNCONFINED = {
    "docker": "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined …, or --privileged",
    "podman": "podman run --security-opt seccomp=unconfined --security-opt apparmor=unconfined …, or --privileged",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing that a machine offers or not. ``why`` and ``fix`` are empty when it works."""

    name: str
    works: bool
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return self.name if self.works else f"{self.name}: {self.why}" + (f"; fix: {self.fix}" if self.fix else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is read, not tried: it explains a failure and is told by the doctor.

    ``sysctls``: values by dotted name, only those that exist. ``container``: "docker", "podman", "kubernetes", "lxc",
    "container" for an unknown kind, "" outside. ``kernel``: version and patch level. ``root_type``: of the root's file
    system, "" if unknown.
    """

    uid: int = 0
    sys_admin: bool = True
    initial_userns: bool = True
    container: str = ""
    chroot: bool = False
    seccomp_filter: bool = False
    kernel: tuple[int, int] = (6, 0)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    tmpdir: str = "/tmp"
    root_type: str = ""

    @property
    def mode(self) -> str:
        """How boxes are made here, in words."""
        if self.idmaps:
            return "root, user namespaces with idmapped files"
        return "nested, inside another user namespace" if self.powerful else "rootless"

    @property
    def powerful(self) -> bool:
        """Whether namespaces and mounts can be made without a user namespace first."""
        return self.uid == 0 and self.sys_admin

    @property
    def idmaps(self) -> bool:
        """Whether boxes are made with root's power over the machine: one overlay of /, files idmapped."""
        return self.powerful and self.initial_userns


@dataclass(frozen=True, slots=True)
class Failure:
    """The call of a try that failed, what it was done to, and the error number."""

    call: str
    target: str
    errno: int

    def __str__(self) -> str:
        what = f"{self.call} {self.target}".rstrip()
        return f"{what}: {ERRNO_TEXTS.get(self.errno) or f'errno {self.errno}'}"


def _feature(name: str) -> Feature:
    return BY_NAME.get(name) or Feature(name=name)


def without(name: str) -> str:
    """What a machine that lacks this capability lacks with it; "" if no box can be made."""
    if name in ESSENTIAL:
        return ""
    return _feature(name).without or f"no limits by {name}"


def judge(name: str, failure: Failure | None, around: Surroundings) -> Capability:
    """Turn the result of a try into a capability with the reason and the fix."""
    if failure is None:
        return Capability(name, works=True)
    because, fix = _cause(name, failure, around)
    return Capability(name, works=False, why=f"{failure} ({because})" if because else str(failure), fix=fix)


def judge_box(problem: str, around: Surroundings) -> Capability:
    """The capability BOX, given why making one failed ("": it did not). The text has its own fix where there is one."""
    if not problem:
        return Capability(BOX, works=True)
    return Capability(BOX, works=False, why=problem, fix=RUN_AS_ROOT if around.uid else UNKNOWN)


def _cause(name: str, failure: Failure, around: Surroundings) -> tuple[str, str]:
    for rule in (_by_sysctl, _by_kernel, _by_special, _by_container, _by_power):
        found = rule(name, failure, around)
        if found is not None:
            return found
    return "", f"{UNKNOWN}, or {RUN_AS_ROOT}" if around.uid else UNKNOWN


def _by_sysctl(name: str, failure: Failure, around: Surroundings) -> tuple[str, str] | None:
    """Explain by a sysctl that forbids or counts namespaces."""
    knob = _feature(name).maximum
    if knob and failure.errno in (errno.ENOSPC, errno.EUSERS):
        value = around.sysctls.get(f"user.{knob}", "?")
        return f"user.{knob} is {value}, or user namespaces are nested too deep", f"sysctl -w user.{knob}=15000"
    # Red Hat's older kernels answer EINVAL where the limit is 0.
    if name == USERNS and around.sysctls.get("user.max_user_namespaces") == "0":
        return "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=15000"
    if around.powerful or failure.errno not in (errno.EPERM, errno.EACCES):
        return None
    if around.sysctls.get("kernel.unprivileged_userns_clone") == "0":
        knob = "kernel.unprivileged_userns_clone"
        return f"{knob} is 0: user namespaces only for root", f"sysctl -w {knob}=1, or {RUN_AS_ROOT}"
    # AppArmor lets unshare() succeed and then refuses what the namespace is for: uid_map, mount, sethostname.
    if around.sysctls.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        knob = "kernel.apparmor_restrict_unprivileged_userns"
        return f"{knob} is 1: AppArmor restricts user namespaces", f"sysctl -w {knob}=0, or {RUN_AS_ROOT}"
    return None


def _by_kernel(name: str, failure: Failure, around: Surroundings) -> tuple[str, str] | None:
    """Explain by an old kernel or one built without the feature."""
    since = _feature(name).since
    if since is not None and around.kernel < since and not (name == OVERLAY and around.powerful):
        needs = version(since)
        return f"needs Linux {needs}, this is {version(around.kernel)}", f"a kernel of {needs} or newer"
    if name == OVERLAY and failure.errno == errno.ENODEV:
        return "the kernel has no overlay file system", "modprobe overlay"
    config = _feature(name).config
    missing = failure.errno == errno.EINVAL and _feature(name).maximum
    # ENOSYS inside a container is the answer of its seccomp filter rather than of the kernel.
    if config and (missing or (failure.errno == errno.ENOSYS and not around.seccomp_filter)):
        return f"the kernel is built without {config}", f"a kernel with {config}=y"
    return None


def _by_special(name: str, failure: Failure, around: Surroundings) -> tuple[str, str] | None:
    """Explain what only one capability knows."""
    if around.chroot and failure.errno == errno.EPERM and name in (USERNS, MOUNT):
        return "pytest runs in a chroot, where the kernel refuses it", "a container or unshare --root instead of chroot"
    if name == DISK_SCRATCH:
        return (
            f"the file system of {around.tmpdir} cannot carry an overlay's upper layer",
            "TMPDIR=/a/directory/on/ext4/or/xfs",
        )
    if name == IDMAP and failure.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return "the root file system cannot be idmapped", "a root file system that can: ext4, xfs, btrfs"
    if name == PROC and around.container and failure.errno == errno.EPERM:
        unmask = "podman run --security-opt unmask=ALL …" if around.container == "podman" else ""
        docker = "docker run --security-opt systempaths=unconfined …"
        return f"the {_noun(around)} hides parts of /proc", f"{unmask or docker}, or --privileged"
    return None


def _by_container(_: str, failure: Failure, around: Surroundings) -> tuple[str, str] | None:
    """Explain by the container or the seccomp filter round pytest."""
    if failure.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return None
    if around.container:
        fix = UNCONFINED.get(around.container)
        if fix is None:
            fix = f"a {_noun(around)} without seccomp and AppArmor restrictions (privileged: true)"
        return f"the {_noun(around)} forbids it", fix
    if around.seccomp_filter:
        return "a seccomp filter round pytest forbids it", "start pytest without that filter"
    return None


def _by_power(_: str, failure: Failure, around: Surroundings) -> tuple[str, str] | None:
    """Explain by missing rights."""
    if failure.errno not in (errno.EPERM, errno.EACCES):
        return None
    if around.uid == 0 and not around.sys_admin:
        return "root without CAP_SYS_ADMIN", "give pytest CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN …)"
    if around.uid:
        return f"user id {around.uid}", RUN_AS_ROOT
    # Root with all powers is stopped by SELinux, AppArmor or the like only.
    return "a security module may forbid it", "find the rule: dmesg | grep -iE 'denied|apparmor|selinux'"


def _noun(around: Surroundings) -> str:
    return "container" if around.container == "container" else f"{around.container} container"


# --- what a spec needs ----------------------------------------------------------------------------------------------


def controller(name: str) -> str:
    """The capability's name of a cgroup controller."""
    return f"{CGROUP} {name}"


def needed(spec: Spec, controllers: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the capabilities that a box of ``spec`` needs.

    ``controllers``: the cgroup controllers that its limits write to (policy.limits.controllers_needed).
    """
    names = [name for name in ESSENTIAL if not (name == USERNS and spec.privileged)]
    if spec.net != "host":
        names.append(NET)
    if spec.clock:
        names.append(TIME)
    if spec.swap:
        names.append(SWAP)
    names.extend(controller(name) for name in sorted(controllers))
    return tuple(names)


def lacking(names: Iterable[str], capabilities: Sequence[Capability]) -> list[Capability]:
    """Those of ``names`` that do not work; one that was not tried counts as working."""
    known = {capability.name: capability for capability in capabilities}
    return [known[name] for name in names if name in known and not known[name].works]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a test. ``action``: "box", "fail", "skip" or "run" (without a box); ``text``: why not "box"."""

    action: str
    text: str = ""


def decide(names: Iterable[str], capabilities: Sequence[Capability], unavailable: str) -> Decision:
    """What ``--sandbox-unavailable`` (fail, skip or run) makes of a test whose box needs ``names``."""
    missing = lacking(names, capabilities)
    if not missing:
        return Decision("box")
    if unavailable not in ("fail", "skip", "run"):
        raise ValueError(f"sandbox_unavailable: {unavailable!r} is not accepted (fail, skip, run)")
    lines = [f"no box can be made here: {missing[0]}", *(f"also: {capability}" for capability in missing[1:])]
    if unavailable == "fail":
        lines.append("pytest --sandbox-doctor tells more; --sandbox-unavailable=skip skips such tests")
    return Decision(unavailable, "\n".join(lines))
