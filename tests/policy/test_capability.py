"""Each way in which a machine can lack something: the reason and the fix that the user reads."""

from __future__ import annotations

import errno

import pytest

from pytest_nsbox.policy import capability as cap
from pytest_nsbox.policy.capability import Capability, Decision, Failure, Surroundings, decide, judge, needed
from pytest_nsbox.policy.spec import Spec

ROOT = Surroundings()
USER = Surroundings(uid=1000, sys_admin=False)
DOCKER = Surroundings(container="docker", sys_admin=False, seccomp_filter=True)


def around(base: Surroundings, **changes: object) -> Surroundings:
    values = {name: getattr(base, name) for name in Surroundings.__slots__}
    return Surroundings(**{**values, **changes})


BY_APPARMOR = "(kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor restricts user namespaces)"
UNSHARE = Failure("unshare", "user", errno.EPERM)

CASES = {
    "debian forbids user namespaces": (
        cap.USERNS, UNSHARE, around(USER, sysctls={"kernel.unprivileged_userns_clone": "0"}),
        "unshare user: Operation not permitted (kernel.unprivileged_userns_clone is 0: user namespaces only for root)",
        "sysctl -w kernel.unprivileged_userns_clone=1, or run pytest as root",
    ),
    "ubuntu restricts them by AppArmor, seen at the id map": (
        cap.USERNS, Failure("write", "/proc/self/uid_map", errno.EPERM),
        around(USER, sysctls={"kernel.apparmor_restrict_unprivileged_userns": "1"}),
        f"write /proc/self/uid_map: Operation not permitted {BY_APPARMOR}",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run pytest as root",
    ),
    "AppArmor refuses the mount": (
        cap.OVERLAY, Failure("mount", "overlay /tmp/merged", errno.EACCES),
        around(USER, sysctls={"kernel.apparmor_restrict_unprivileged_userns": "1"}),
        f"mount overlay /tmp/merged: Permission denied {BY_APPARMOR}",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run pytest as root",
    ),
    "no user namespace may be made": (
        cap.USERNS, Failure("unshare", "user", errno.ENOSPC), around(ROOT, sysctls={"user.max_user_namespaces": "0"}),
        "unshare user: No space left on device (user.max_user_namespaces is 0, or user namespaces are nested too deep)",
        "sysctl -w user.max_user_namespaces=15000",
    ),
    "red hat's kernel 3.10 says it otherwise": (
        cap.USERNS, Failure("unshare", "user", errno.EINVAL), around(ROOT, sysctls={"user.max_user_namespaces": "0"}),
        "unshare user: Invalid argument (user.max_user_namespaces is 0)",
        "sysctl -w user.max_user_namespaces=15000",
    ),
    "no network namespace may be made": (
        cap.NET, Failure("unshare", "net", errno.ENOSPC), around(ROOT, sysctls={"user.max_net_namespaces": "0"}),
        "unshare net: No space left on device (user.max_net_namespaces is 0, or user namespaces are nested too deep)",
        "sysctl -w user.max_net_namespaces=15000",
    ),
    "a kernel without time namespaces": (
        cap.TIME, Failure("unshare", "time", errno.EINVAL), around(ROOT, kernel=(6, 1)),
        "unshare time: Invalid argument (the kernel is built without CONFIG_TIME_NS)",
        "a kernel with CONFIG_TIME_NS=y",
    ),
    "an old kernel": (
        cap.TIME, Failure("unshare", "time", errno.EINVAL), around(ROOT, kernel=(4, 19)),
        "unshare time: Invalid argument (needs Linux 5.6, this is 4.19)", "a kernel of 5.6 or newer",
    ),
    "docker's seccomp filter says that clone3 does not exist": (
        cap.CLONE3, Failure("clone3", "0x0", errno.ENOSYS), DOCKER,
        "clone3 0x0: Function not implemented (the docker container forbids it)",
        "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined …, or --privileged",
    ),
    "docker forbids mounts": (
        cap.MOUNT, Failure("unshare", "mnt", errno.EPERM), DOCKER,
        "unshare mnt: Operation not permitted (the docker container forbids it)",
        "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined …, or --privileged",
    ),
    "podman forbids mounts": (
        cap.MOUNT, Failure("unshare", "mnt", errno.EPERM), around(DOCKER, container="podman"),
        "unshare mnt: Operation not permitted (the podman container forbids it)",
        "podman run --security-opt seccomp=unconfined --security-opt apparmor=unconfined …, or --privileged",
    ),
    "kubernetes forbids mounts": (
        cap.MOUNT, Failure("unshare", "mnt", errno.EPERM), around(DOCKER, container="kubernetes"),
        "unshare mnt: Operation not permitted (the kubernetes container forbids it)",
        "a kubernetes container without seccomp and AppArmor restrictions (privileged: true)",
    ),
    "docker hides parts of /proc": (
        cap.PROC, Failure("mount", "proc /tmp/merged", errno.EPERM), DOCKER,
        "mount proc /tmp/merged: Operation not permitted (the docker container hides parts of /proc)",
        "docker run --security-opt systempaths=unconfined …, or --privileged",
    ),
    "podman hides parts of /proc": (
        cap.PROC, Failure("mount", "proc /tmp/merged", errno.EPERM), around(DOCKER, container="podman"),
        "mount proc /tmp/merged: Operation not permitted (the podman container hides parts of /proc)",
        "podman run --security-opt unmask=ALL …, or --privileged",
    ),
    "the overlay module is not loaded": (
        cap.OVERLAY, Failure("mount", "overlay /tmp/merged", errno.ENODEV), ROOT,
        "mount overlay /tmp/merged: No such device (the kernel has no overlay file system)", "modprobe overlay",
    ),
    "an overlay in a user namespace on an old kernel": (
        cap.OVERLAY, Failure("mount", "overlay /tmp/merged", errno.EPERM), around(USER, kernel=(5, 4)),
        "mount overlay /tmp/merged: Operation not permitted (needs Linux 5.11, this is 5.4)",
        "a kernel of 5.11 or newer",
    ),
    "the temporary directory lies on an overlay": (
        cap.DISK_SCRATCH, Failure("mount", "overlay /tmp/x/merged", errno.EINVAL), ROOT,
        "mount overlay /tmp/x/merged: Invalid argument (the file system of /tmp cannot carry an overlay's upper layer)",
        "TMPDIR=/a/directory/on/ext4/or/xfs",
    ),
    "the root file system cannot be idmapped": (
        cap.IDMAP, Failure("mount_setattr", "idmap /", errno.EINVAL), ROOT,
        "mount_setattr idmap /: Invalid argument (the root file system cannot be idmapped)",
        "a root file system that can: ext4, xfs, btrfs",
    ),
    "idmapped layers on an old kernel": (
        cap.IDMAP, Failure("mount", "overlay /tmp/merged", errno.EINVAL), around(ROOT, kernel=(5, 15)),
        "mount overlay /tmp/merged: Invalid argument (needs Linux 5.19, this is 5.15)", "a kernel of 5.19 or newer",
    ),
    "pytest runs in a chroot": (
        cap.USERNS, UNSHARE, around(USER, chroot=True),
        "unshare user: Operation not permitted (pytest runs in a chroot, where the kernel refuses it)",
        "a container or unshare --root instead of chroot",
    ),
    "a seccomp filter of somebody else": (
        cap.USERNS, UNSHARE, around(ROOT, seccomp_filter=True),
        "unshare user: Operation not permitted (a seccomp filter round pytest forbids it)",
        "start pytest without that filter",
    ),
    "root without its powers": (
        cap.USERNS, UNSHARE, around(ROOT, sys_admin=False),
        "unshare user: Operation not permitted (root without CAP_SYS_ADMIN)",
        "give pytest CAP_SYS_ADMIN (docker run --cap-add SYS_ADMIN …)",
    ),
    "an ordinary user, for no reason that shows": (
        cap.OVERLAY, Failure("mount", "overlay /tmp/merged", errno.EPERM), USER,
        "mount overlay /tmp/merged: Operation not permitted (user id 1000)", "run pytest as root",
    ),
    "root is stopped by a security module": (
        cap.MOUNT, Failure("unshare", "mnt", errno.EACCES), ROOT,
        "unshare mnt: Permission denied (a security module may forbid it)",
        "find the rule: dmesg | grep -iE 'denied|apparmor|selinux'",
    ),
    "something that nobody foresaw": (
        cap.MOUNT, Failure("unshare", "mnt", errno.ENOMEM), ROOT,
        "unshare mnt: Cannot allocate memory", "none is known: please report this text",
    ),
    "no seccomp in the kernel": (
        cap.SECCOMP, Failure("prctl", "PR_SET_SECCOMP", errno.ENOSYS), ROOT,
        "prctl PR_SET_SECCOMP: Function not implemented (the kernel is built without CONFIG_SECCOMP_FILTER)",
        "a kernel with CONFIG_SECCOMP_FILTER=y",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "failure", "place", "why", "fix"), CASES.values(), ids=CASES)
def test_what_is_missing_is_told_with_reason_and_fix(name, failure, place, why, fix):
    assert judge(name, failure, place) == Capability(name, works=False, why=why, fix=fix)


def test_what_works_needs_no_words():
    assert judge(cap.OVERLAY, None, ROOT) == Capability(cap.OVERLAY, works=True)


def test_every_essential_capability_gets_a_fix_whatever_went_wrong():
    for name in cap.ESSENTIAL:
        for number in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOMEM):
            for place in (ROOT, USER, DOCKER):
                assert judge(name, Failure("call", "", number), place).fix, (name, number)


def test_a_plain_box_needs_no_network_namespace_and_no_cgroup():
    assert needed(Spec()) == cap.ESSENTIAL


def test_keys_bring_their_needs():
    spec = Spec(net="none", clock=(("monotonic", 5.0),), mem=2**20, swap=2**20, privileged=True)
    assert set(needed(spec, {"memory", "pids"})) - set(cap.ESSENTIAL) == {
        cap.NET, cap.TIME, cap.SWAP, "cgroup memory", "cgroup pids",
    }  # fmt: skip
    assert cap.USERNS not in needed(spec)


LACKS = [
    Capability(cap.OVERLAY, works=False, why="mount overlay: No such device", fix="modprobe overlay"),
    Capability("cgroup memory", works=False, why="disabled at boot", fix="boot with cgroup_enable=memory"),
    Capability(cap.PID, works=True),
]


def test_a_box_is_made_where_nothing_that_it_needs_is_missing():
    assert decide([cap.PID, cap.NET], LACKS, "fail") == Decision("box")


@pytest.mark.parametrize("action", ["skip", "run"])
def test_a_missing_piece_skips_or_runs_plainly_when_asked_to(action):
    assert decide([cap.PID, cap.OVERLAY], LACKS, action) == Decision(
        action, "no box can be made here: overlay: mount overlay: No such device; fix: modprobe overlay"
    )


def test_by_default_a_missing_piece_fails_and_names_all_and_the_ways_out():
    assert decide([cap.OVERLAY, "cgroup memory"], LACKS, "fail") == Decision(
        "fail",
        "no box can be made here: overlay: mount overlay: No such device; fix: modprobe overlay\n"
        "also: cgroup memory: disabled at boot; fix: boot with cgroup_enable=memory\n"
        "pytest --sandbox-doctor tells more; --sandbox-unavailable=skip skips such tests",
    )


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"sandbox_unavailable: 'maybe' is not accepted \(fail, skip, run\)"):
        decide([cap.OVERLAY], LACKS, "maybe")
