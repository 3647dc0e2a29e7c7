"""The one table of what boxes need of a kernel, and since which version Linux has it; and of cgroup's subsystems.

The doctor and the messages read it, and so does the page docs/reference/kernel.md, which is what
``python -m pytest_nsbox.policy.features`` prints. The doctor tries each feature; a version only explains a failure.

Sources: the man pages namespaces(7), user_namespaces(7), cgroups(7), clone(2), setns(2), mount_setattr(2), seccomp(2);
Documentation/filesystems/overlayfs.rst, admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from pytest_nsbox.policy.record import keyword_record, record

FLOOR = (5, 11)

LINUX = "Linux"
USERNS = "user namespaces"
MOUNT = "mount namespaces"
PID = "pid namespaces"
UTS = "uts namespaces"
IPC = "ipc namespaces"
CGROUP_NS = "cgroup namespaces"
NET = "network namespaces"
TIME = "time namespaces"
CLONE3 = "clone3"
PIDFD = "pidfd"
SETATTR = "mount_setattr"
PROC = "fresh /proc"
OVERLAY = "overlay"
DISK_SCRATCH = "scratch on disk"
IDMAP = "idmapped overlay layers"
SECCOMP = "seccomp filters"
CGROUP = "cgroup"
SWAP = "swap accounting"
BOX = "a whole box"  # tried last, where every piece works


@keyword_record
class Feature:
    """One thing that boxes need or can use.

    since    the Linux version that brought it in the form that boxes use; None: older than anything that counts
    config   the kernel's build option, "" if it is always there
    maximum  the sysctl below user. that counts it, "" if none does
    without  what a machine lacks that does not have it; "": no box can be made
    """

    name: str
    since: tuple[int, int] | None = None
    config: str = ""
    maximum: str = ""
    without: str = ""


FEATURES = (
    Feature(name=USERNS, since=(3, 8), config="CONFIG_USER_NS", maximum="max_user_namespaces"),
    Feature(name=MOUNT, config="CONFIG_NAMESPACES", maximum="max_mnt_namespaces"),
    Feature(name=PID, config="CONFIG_PID_NS", maximum="max_pid_namespaces"),
    Feature(name=UTS, config="CONFIG_UTS_NS", maximum="max_uts_namespaces"),
    Feature(name=IPC, config="CONFIG_IPC_NS", maximum="max_ipc_namespaces"),
    Feature(name=CGROUP_NS, since=(4, 6), config="CONFIG_CGROUPS", maximum="max_cgroup_namespaces"),
    Feature(name=NET, since=(3, 0), config="CONFIG_NET_NS", maximum="max_net_namespaces", without="no net=False"),
    Feature(name=TIME, since=(5, 6), config="CONFIG_TIME_NS", maximum="max_time_namespaces", without="no clock="),
    Feature(name=CLONE3, since=(5, 3)),
    Feature(name=PIDFD, since=(5, 8)),  # setns() by pidfd; pidfd_open alone is 5.3
    Feature(
        name=SETATTR,
        since=(5, 12),
        without="mounts get their attributes one by one, by mount(2); no idmapped overlay layers",
    ),
    Feature(name=PROC),
    Feature(name=OVERLAY, since=(5, 11), config="CONFIG_OVERLAY_FS"),  # in a user namespace
    Feature(name=DISK_SCRATCH, without="what tests write lies in memory and counts towards mem="),
    Feature(
        name=IDMAP,
        since=(5, 19),
        without="root in a box is the host's root, with /proc/sys and cgroups read-only; nested boxes: off",
    ),
    Feature(name=SECCOMP, since=(3, 5), config="CONFIG_SECCOMP_FILTER", without="no seccomp="),
    Feature(name=CGROUP, config="CONFIG_CGROUPS", without="no limits but ulimits, disk and timeout; no usage figures"),
    Feature(name=SWAP, config="CONFIG_MEMCG_SWAP", without="no swap=; a test under mem= may swap"),
)
BY_NAME = {feature.name: feature for feature in FEATURES}

# What newer kernels add to features that are there without.
LATER = (
    ((5, 14), "`cgroup.kill`", "a box's processes are killed in one go, forks in flight included; before: one by one"),
    ((5, 19), "`memory.peak` (cgroup v2)", "`sandbox.memory_peak_bytes`; before: left out"),
    ((6, 1), "`pids.peak`", "`sandbox.pids_peak`; before: left out"),
    ((6, 3), "idmapped tmpfs", "as root, volumes on a tmpfs and copy-on-write views of one; before: read-only"),
    ((6, 6), "user attributes on tmpfs", "an ordinary user's scratch on a tmpfs; before: TMPDIR must be on a disk"),
)  # fmt: skip


@record
class Subsystem:
    """One subsystem (controller) of cgroup. ``keys`` that use it; ``why``: how, or why none does."""

    name: str
    v1: str
    v2: str
    keys: tuple[str, ...]
    why: str


SUBSYSTEMS = (
    Subsystem("cpu", "cpu", "cpu", ("cpu", "cpu_period", "cpu_shares"), "quota, period and weight"),
    Subsystem("cpuacct", "cpuacct", "cpu", (), "CPU time in the usage figures; v2 has it without a controller"),
    Subsystem("cpuset", "cpuset", "cpuset", ("cpuset",), "CPUs; memory nodes are the parent's"),
    Subsystem("memory", "memory", "memory", ("mem", "swap"), "hard limit, swap, peak, OOM kills"),
    Subsystem("pids", "pids", "pids", ("pids",), "processes and threads"),
    Subsystem("io", "blkio", "io", ("io",), "rates of the disk that the scratch lies on"),
    Subsystem("hugetlb", "hugetlb", "hugetlb", ("hugetlb",), "huge pages, by size"),
    Subsystem("freezer", "freezer", "core", (), "pause and resume; v2 has `cgroup.freeze` in every group"),
    Subsystem("devices", "devices", "bpf", (), "not used: `devices` adds to the box's own /dev, and all else is nodev"),
    Subsystem("net_cls", "net_cls", "none", (), "not used: it marks packets, and a box can have a network"),
    Subsystem("net_prio", "net_prio", "none", (), "not used: priorities per interface of the host's network"),
    Subsystem("perf_event", "perf_event", "core", (), "not used: it limits nothing, perf(1) names groups with it"),
    Subsystem("rdma", "rdma", "rdma", (), "not used: it counts handles of InfiniBand adapters, which no box is given"),
    Subsystem("misc", "misc", "misc", (), "not used: it counts keys of encrypted virtual machines"),
    Subsystem("dmem", "none", "dmem", (), "not used: memory of graphics cards, which no box is given"),
)


def version(number: tuple[int, int] | None) -> str:
    """``5.12``."""
    return "any" if number is None else ".".join(map(str, number))


def render_page() -> str:
    """The Markdown of docs/reference/kernel.md."""
    lines = [
        "# What boxes need of the kernel",
        "",
        "<!-- Made by `python -m pytest_nsbox.policy.features`; change the table there, not this page. -->",
        "",
        f"Supported is Linux {version(FLOOR)} and newer. `pytest --sandbox-doctor` tries each of these, whatever the",
        "version, and where one is missing it names the reason and the fix.",
        "",
        "## Features",
        "",
        "| Feature | Linux | Built with | Counted by sysctl | Without it |",
        "|---|---|---|---|---|",
    ]
    for row in FEATURES:
        config = f"`{row.config}`" if row.config else "always"
        knob = f"`user.{row.maximum}`" if row.maximum else "-"
        lines.append(f"| {row.name} | {version(row.since)} | {config} | {knob} | {row.without or '**no boxes**'} |")
    lines += ["", "## What newer kernels add", "", "| Linux | What | For |", "|---|---|---|"]
    lines += [f"| {version(since)} | {what} | {use} |" for since, what, use in LATER]
    lines += ["", "## Subsystems of cgroup", ""]
    lines += ["| Subsystem | v1 | v2 | Keys | What for, or why not |", "|---|---|---|---|---|"]
    for subsystem in SUBSYSTEMS:
        keys = ", ".join(f"`{key}`" for key in subsystem.keys) or "-"
        lines.append(f"| {subsystem.name} | {subsystem.v1} | {subsystem.v2} | {keys} | {subsystem.why} |")
    lines += [
        "",
        "A group that is made for a box joins cpuacct, memory and pids (v1) or io, memory and pids (v2), and any other",
        "only if a key needs it.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(render_page(), end="")  # noqa: T201  # the page is this command's result
