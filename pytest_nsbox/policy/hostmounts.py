"""What is mounted on the host, from the text of /proc/self/mountinfo. Source: proc(5)."""

from __future__ import annotations

from pytest_nsbox.policy.record import record

# File systems without files of their own: a view of the kernel, or of a daemon that answers only its owner.
_PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "proc",
        "pstore",
        "ramfs",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
    ]
)


@record
class Mounted:
    """One line of mountinfo.

    device  major:minor of the file system
    root    which directory (or file) of the file system is mounted there
    target  the mount point
    source  the device, or what the file system takes for one
    """

    number: int
    parent: int
    device: str
    root: str
    target: str
    readonly: bool
    fstype: str
    source: str = ""

    @property
    def pseudo(self) -> bool:
        """Whether there is nothing here that a copy-on-write layer could be put on."""
        return self.fstype in _PSEUDO or self.fstype.startswith("fuse.gvfs") or self.fstype == "fuse.portal"


def parse_mountinfo(text: str) -> tuple[Mounted, ...]:
    """Return the mounts of a mountinfo text, in its order: a mount comes after the one that it lies on."""
    found = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        super_options = tail.split(" ")[2].split(",")
        found.append(
            Mounted(
                int(fields[0]),
                int(fields[1]),
                fields[2],
                _unescape(fields[3]),
                _unescape(fields[4]),
                "ro" in fields[5].split(",") or "ro" in super_options,
                tail.split(" ")[0],
                _unescape(tail.split(" ")[1]),
            )
        )
    return tuple(found)


def inspected(mountinfo: str, cgroup: str) -> dict[str, object]:
    """Return ``Mounts`` and ``Cgroup`` of `inspect`, from a process' mountinfo and cgroup files (proc(5))."""
    mounts = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        kind, source, _ = tail.split(" ", 2)
        _, _, _, _, target, options, *_ = head.split(" ")
        mounts.append({"Type": kind, "Source": _unescape(source), "Destination": _unescape(target), "Options": options})
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in cgroup.splitlines())}
    return {"Mounts": mounts, "Cgroup": groups}


def visible(mounts: tuple[Mounted, ...]) -> tuple[Mounted, ...]:
    """Leave out the mounts that a later mount, on the same place or above it, hides from path lookups."""
    children: dict[int, list[Mounted]] = {}
    numbers = {mount.number for mount in mounts}
    roots = [mount for mount in mounts if mount.parent not in numbers or mount.parent == mount.number]
    for mount in mounts:
        if mount not in roots:
            children.setdefault(mount.parent, []).append(mount)
    return tuple(mount for mount in mounts if roots and _found_at(mount.target, roots[0], children) is mount)


def is_first(mounts: tuple[Mounted, ...]) -> bool:
    """Say if the root is the first mount of its mount namespace: then it lies on no other."""
    return any(mount.number == mount.parent for mount in mounts)


def _found_at(path: str, at: Mounted, children: dict[int, list[Mounted]]) -> Mounted:
    """Walk down `path` as the kernel does: at each mount point on the way, what is mounted there goes on."""
    while True:
        below = [mount for mount in children.get(at.number, ()) if is_within(path, mount.target)]
        if not below:
            return at
        # The walk comes to the shortest mount point first; of several on one point the last is on top.
        first = min(len(mount.target) for mount in below)
        at = [mount for mount in below if len(mount.target) == first][-1]


def is_within(path: str, directory: str) -> bool:
    """Say if `path` is `directory` or lies below it; both absolute and tidy."""
    return directory in (path, "/") or path.startswith(directory + "/")


def _unescape(field: str) -> str:
    """Undo the octal escapes of mountinfo: space, tab, newline, hash and backslash."""
    if "\\" not in field:
        return field
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
