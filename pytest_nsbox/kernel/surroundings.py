"""What is read about this machine, not tried: it explains why a try failed."""

from __future__ import annotations

import os

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.policy.capability import Surroundings
from pytest_nsbox.policy.features import FEATURES

MAXIMA = tuple(feature.maximum for feature in FEATURES if feature.maximum)


def look_around() -> Surroundings:
    """Read what explains failures; changes nothing."""
    mounts = [line.split(" ") for line in _read("/proc/self/mountinfo").splitlines()]
    # The last one covers those before it.
    roots = [fields[fields.index("-") + 1] for fields in mounts if fields[4:5] == ["/"]]
    return Surroundings(
        uid=os.geteuid(),
        sys_admin=process.has_capability(process.CAP_SYS_ADMIN),
        initial_userns=namespaces.read_id_map() == ((0, 0, 4294967295),),
        container=find_container(),
        chroot=not roots,
        seccomp_filter="\nSeccomp:\t2" in _read("/proc/self/status"),
        kernel=process.kernel_version(),
        sysctls=read_sysctls(),
        tmpdir=os.path.realpath(os.environ.get("TMPDIR") or "/tmp"),
        root_type=roots[-1] if roots else "",
    )


def find_container() -> str:
    """The kind of container round this process, "" for none that shows itself."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    # systemd's convention: the manager sets this for pid 1, and shells inherit it.
    kind = os.environ.get("container", "")  # noqa: SIM112 - systemd spells it so
    for entry in _read("/proc/1/environ").split("\0"):
        if entry.startswith("container="):
            kind = entry.partition("=")[2]
    if kind:
        return kind if kind in ("docker", "podman", "lxc") else "container"
    groups = _read("/proc/1/cgroup")
    for mark, kind in (("kubepods", "kubernetes"), ("libpod", "podman"), ("docker", "docker"), ("/lxc", "lxc")):
        if mark in groups:
            return kind
    return ""


def read_sysctls() -> dict[str, str]:
    """Those sysctls that forbid or count namespaces, as far as this kernel has them."""
    names = ["kernel.unprivileged_userns_clone", "kernel.apparmor_restrict_unprivileged_userns"]
    names += [f"user.{knob}" for knob in MAXIMA]
    values = {name: _read("/proc/sys/" + name.replace(".", "/")).strip() for name in names}
    return {name: value for name, value in values.items() if value}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""  # absent or not ours to read: then it explains nothing
