"""What must be done to make a box, as data: a Spec and the host's facts become operations, in order. Nothing here
touches the system.

`tree` is performed by the warden: it builds the root of a box, or of several, one after the other. `init` is performed
by the box's first process, inside its namespaces. What of the host may come and go (listening sockets, shared paths) is
in no plan: see warden/late.py.
"""

from __future__ import annotations

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.hostmounts import is_within
from pytest_nsbox.policy.record import keyword_record, record
from pytest_nsbox.policy.users import find_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from pytest_nsbox.policy.image import ImageFacts
    from pytest_nsbox.policy.spec import Spec

# The device nodes that every program may expect, null(4), full(4), random(4), tty(4): name, major, minor.
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_STREAMS = tuple((name, f"/proc/self/fd/{number}") for number, name in enumerate(("stdin", "stdout", "stderr")))
DEVICE_LINKS = (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), *_STREAMS)
# Made new in each box, with what is mounted below them.
OWN = ("/proc", "/sys", "/dev")
# Where the overlays of a box are found once more, without what is mounted on them: what a box in this box is made of.
LOWER = "/dev/.nsbox"
_NOT_THERE = ("/proc", "/sys", "/dev/pts", "/dev/mqueue", LOWER)


@record
class HostMount:
    """A mount of the host that a box shows in its own way.

    number     names its clone in the session's directory
    writable   whether a copy-on-write layer goes on top; else it is bound read-only
    directory  or a single file
    mode, owner  of that directory: an overlay's own top has those of its upper layer
    """

    number: int
    target: str
    writable: bool
    directory: bool = True
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)


@keyword_record
class HostFacts:
    """What a plan needs to know of the host.

    mode     "shifted" (host id 0 is not mapped into boxes), "identity" (it is, for files cannot be shown with other
             ids), "nested" (we are in a box ourselves) or "rootless" (we are an ordinary user)
    mounts   those to be shown in boxes, "/" first
    time_ns  whether the kernel has time namespaces
    passwd, group  texts of those files of /etc
    ids      our own uid and gid
    tty_group  whether boxes have group 5
    """

    mode: str = "shifted"
    mounts: tuple[HostMount, ...] = ()
    time_ns: bool = True
    passwd: str = ""
    group: str = ""
    ids: tuple[int, int] = (0, 0)
    tty_group: bool = True


@record
class Overlay:
    """A copy-on-write view of host mount `number` at `target`."""

    number: int
    target: str


@record
class OverlayImage:
    """A copy-on-write view of `directories` of the host (the topmost first) at `target`; `init` if the layer of mount
    points that each image gets lies on top of them. `number` is unique in the plan.
    """

    number: int
    target: str
    directories: tuple[str, ...]
    init: bool = False


@record
class BindInit:
    """A file with `text` (or another box's, at `source`) at `target`: part of no layer, so of no commit."""

    target: str
    text: str
    source: str = ""


@record
class MakeWorkdir:
    """The working directory, if the image does not have it."""

    path: str


@record
class ShowMount:
    """Host mount `number` as it is, read-only."""

    number: int
    target: str
    directory: bool


@record
class Bind:
    """`source` of the host (kind "volume": the session's volume of that name) at `target`; `shared` if the test's user
    is to own it.
    """

    source: str
    target: str
    readonly: bool
    kind: str = "bind"
    shared: bool = False


@record
class MountTmpfs:
    """A new tmpfs; `devices` for the box's /dev."""

    target: str
    size: int | None
    mode: int
    devices: bool = False


@record
class ShowAgain:
    """The mount at `target` once more at `place`, alone."""

    target: str
    place: str


@record
class MakeDevice:
    """A character device `name` in the box's /dev."""

    name: str
    major: int
    minor: int


@record
class BindDevice:
    """Our own device `name` in the box's /dev, where nobody may make one."""

    name: str


@record
class LetDevice:
    """The host's device at `path`, for the box to read and write."""

    path: str


@record
class MakeLink:
    """A symbolic link `name` in the box's /dev."""

    name: str
    to: str


@record
class MakeDirectory:
    """A directory `name` in the box's /dev."""

    name: str
    mode: int


@record
class ShowSysfs:
    """The host's /sys, read-only; or, for a box with a network of its own, an empty directory to mount its own on."""

    own: bool


@record
class ShowCgroups:
    """The box's own cgroup directories below /sys/fs/cgroup."""

    readonly: bool = False


@record
class Protect:
    """Files of the box's /proc that are the kernel's own, read-only."""


@record
class SetReadonly:
    """Make the mount at `target` read-only, after all mount points on it were made."""

    target: str


@record
class MountOwn:
    """A file system that belongs to a namespace of the box: proc, devpts, mqueue, sysfs."""

    fstype: str
    target: str
    options: tuple[tuple[str, str | None], ...] = ()
    readonly: bool = False


@record
class SetHostname:
    name: str


@record
class LoopbackUp:
    """Bring `lo` up."""


@record
class SetClocks:
    """Offsets of the box's clocks, in seconds; boottime None: it was zero when the box began."""

    monotonic: float
    boottime: float | None


TreeOp: TypeAlias = (
    "Overlay | OverlayImage | ShowMount | Bind | BindInit | MakeWorkdir | MountTmpfs | ShowAgain | MakeDevice "
    "| BindDevice | LetDevice | MakeLink | MakeDirectory | ShowSysfs | SetReadonly"
)
InitOp: TypeAlias = "MountOwn | Protect | ShowCgroups | SetHostname | LoopbackUp | SetClocks"


@record
class Plan:
    """Operations in order, and the kinds of namespaces (names of the files below /proc/PID/ns) that the box has of its
    own.

    disk      bytes that all layers together may take, or None for no limit
    shifted   whether files are written as the id that stands for root in boxes
    privileged  whether root in the box is ours, with all rights
    sockets   whether the host's unix sockets can be reached
    reusable  whether a tree that was left unchanged can serve another box
    limited   whether a runtime finds a limit to go by in its cgroups
    live      whether /proc and sysinfo(2) speak of the box's limits, see warden/view.py
    counted   cgroup controllers whose counts are wanted, without a limit
    user      who the test runs as, if not root: (uid, gid); what boxes share with the host is shown as this user's
    image     whether the root is an image
    synced    whether what a test syncs goes to the disk: else there is nothing to slow
    dumpable  whether the memory of its init belongs to a user namespace that those who enter have no power over
    ids       rootless: what our own uid and gid are called in the box
    """

    tree: tuple[TreeOp, ...]
    init: tuple[InitOp, ...]
    namespaces: tuple[str, ...]
    disk: int | None = None
    shifted: bool = True
    privileged: bool = False
    sockets: bool = True
    reusable: bool = True
    user: tuple[int, int] | None = None
    limited: bool = False
    live: bool = False
    counted: frozenset[str] = frozenset()
    image: bool = False
    synced: bool = False
    dumpable: bool = False
    ids: tuple[int, int] | None = None

    def sources(self) -> set[tuple[str, str]]:
        """Return (kind, source) of everything that is bound."""
        return {(op.kind, op.source) for op in self.tree if isinstance(op, Bind)}


def make_plan(spec: Spec, host: HostFacts, image: ImageFacts | None = None) -> Plan:
    """Return the plan of a box of `spec` on this host, with the host's root or that of `image`. Raises BoxFailed for
    what they do not have.
    """
    own_net = spec.net != "host"
    if spec.clock and not host.time_ns:
        raise BoxFailed("clock: this kernel has no time namespaces (CONFIG_TIME_NS, Linux 5.6)")
    rootless = host.mode == "rootless"
    if rootless and spec.privileged:
        raise BoxFailed("privileged: an ordinary user has no rights to leave to a box: run pytest as root")
    user = find_user(spec.user, (image or host).passwd, (image or host).group) if spec.user is not None else None
    layers = _host_layers(host) if image is None else _image_layers(image)
    tree: list[TreeOp] = [*layers, *_devices(host), *map(LetDevice, spec.devices), ShowSysfs(own_net)]
    if image is not None:
        tree += _image_files(spec, image)
    elif spec.net not in ("host", "none"):
        from pytest_nsbox.policy import init_layer

        # Names of other boxes come into it when the box is in its network; a name server, if that has a way out.
        tree += [BindInit("/etc/hosts", init_layer.hosts(spec.hostname or "")), BindInit("/etc/resolv.conf", "")]
    # In the order of depth: what is mounted on /a must not hide what is mounted on /a/b.
    mounts: list[Bind | MountTmpfs] = [Bind(v.source, v.target, v.readonly, v.kind) for v in spec.volumes]
    mounts += [MountTmpfs(t.target, t.size, 0o1777) for t in spec.tmpfs]
    for op in mounts:
        place = next((place for place in _NOT_THERE if is_within(op.target, place)), None)
        if place is not None:
            raise BoxFailed(f"nothing can be mounted on {op.target}: {place} is the box's own")
    mounts.sort(key=lambda op: op.target.count("/"))
    tree += mounts
    overlays = [op.target for op in layers if not isinstance(op, ShowMount)]
    again: list[ShowAgain] = []
    if not mounts:
        # Else what a volume hides could be seen there.
        tree.append(MakeDirectory(LOWER.rpartition("/")[2], 0o700))
        again = [ShowAgain(target, f"{LOWER}/{number}") for number, target in enumerate(overlays)]
        tree += again
    live = spec.proc == "limits"
    tree += _unchanged(own_net=own_net, made=bool(again)) if live else []
    if spec.readonly:
        tree += [SetReadonly(target) for target in (*overlays, *(op.place for op in again))]
    return Plan(
        tuple(tree),
        tuple(_init(spec, host, own_net=own_net)),
        _namespaces(spec, host, own_net=own_net),
        spec.disk,
        shifted=host.mode == "shifted" and not spec.privileged,
        privileged=spec.privileged,
        sockets=not own_net and image is None,
        reusable=spec.disk is None and not spec.tmpfs and not spec.privileged,
        user=(user.uid, user.gid) if user is not None and user.uid != 0 and not rootless else None,
        limited=any(limit is not None for limit in (spec.cpu, spec.cpuset, spec.mem)),
        live=live,
        counted=frozenset({"blkio", "io"}) if live else frozenset(),
        image=image is not None,
        synced=bool(spec.io),
        dumpable=host.mode in ("rootless", "identity"),
        ids=((user.uid, user.gid) if user is not None else host.ids) if rootless else None,
    )


def _unchanged(*, own_net: bool, made: bool) -> list[TreeOp]:
    """Places where proc and sysfs are seen once more, with nothing bound over their files: else the kernel would not
    let a box in this box have a new proc or sysfs.
    """
    name = LOWER.rpartition("/")[2]
    ops: list[TreeOp] = [] if made else [MakeDirectory(name, 0o700)]
    ops += [MakeDirectory(f"{name}/proc", 0o700), MakeDirectory(f"{name}/sys", 0o700)]
    return ops if own_net else [*ops, ShowAgain("/sys", f"{LOWER}/sys")]


def _host_layers(host: HostFacts) -> list[Overlay | OverlayImage | ShowMount]:
    return [
        Overlay(mount.number, mount.target)
        if mount.writable
        else ShowMount(mount.number, mount.target, mount.directory)
        for mount in host.mounts
    ]


def _image_layers(image: ImageFacts) -> list[Overlay | OverlayImage | ShowMount]:
    """Return the overlays of an image's root and of what of the host lies in it."""
    # The same layer twice is an error to the kernel; what the upper one hides the lower one hides again.
    layers = tuple(dict.fromkeys(reversed(image.root.layers)))
    shown = sorted(image.root.shown, key=lambda path: path.count("/"))
    return [
        OverlayImage(0, "/", layers, init=True),
        *(OverlayImage(number, path, (path,)) for number, path in enumerate(shown, 1)),
    ]


def _image_files(spec: Spec, image: ImageFacts) -> list[TreeOp]:
    """Return what an image's root gets besides: the box's own files in /etc, libraries that the interpreter needs."""
    from pytest_nsbox.policy import init_layer  # only boxes with an image need it

    resolv = image.resolv_conf if spec.net == "host" else ""
    hosts = image.hosts if spec.net == "host" else init_layer.hosts(spec.hostname or "")
    hostname = f"{spec.hostname or image.hostname}\n"
    texts = {"hosts": hosts, "hostname": hostname, "resolv.conf": resolv}
    return [
        *(BindInit(f"/etc/{name}", texts[name]) for name in init_layer.FILES),
        *(Bind(source, target, readonly=True) for source, target in image.missing),
        *([MakeWorkdir(spec.workdir)] if spec.workdir is not None else []),
    ]


def _devices(host: HostFacts) -> list[TreeOp]:
    made: list[TreeOp] = [MountTmpfs("/dev", None, 0o755, devices=True)]
    made += [MakeDevice(*device) if host.mode == "shifted" else BindDevice(device[0]) for device in DEVICES]
    made += [MakeLink(*link) for link in DEVICE_LINKS]
    made += [MakeDirectory("pts", 0o755), MakeDirectory("mqueue", 0o1777), MakeDirectory("shm", 0o1777)]
    return made


def _init(spec: Spec, host: HostFacts, *, own_net: bool) -> list[InitOp]:
    ops: list[InitOp] = []
    if own_net:
        ops.append(LoopbackUp())
    if spec.hostname is not None:
        ops.append(SetHostname(spec.hostname))
    clocks = dict(spec.clock)
    own_uptime = spec.proc == "limits" and host.time_ns
    if clocks or own_uptime:
        # With the uptime of /proc, start times of processes must be the box's own too.
        ops.append(SetClocks(clocks.get("monotonic", 0.0), clocks.get("boottime", None if own_uptime else 0.0)))
    ops.append(MountOwn("proc", "/proc"))
    # Group 5 is tty wherever it has a fixed number; the slave's owner is who opened it, grantpt(3).
    tty: tuple[tuple[str, str | None], ...] = (("gid", "5"),) if host.tty_group else ()
    ops.append(MountOwn("devpts", "/dev/pts", (("mode", "620"), *tty, ("ptmxmode", "666"))))
    ops.append(MountOwn("mqueue", "/dev/mqueue"))
    if own_net:
        ops.append(MountOwn("sysfs", "/sys", readonly=True))
    if spec.cgroup_view:
        ops.append(ShowCgroups(readonly=host.mode == "identity" and not spec.privileged))
    if host.mode == "identity" and not spec.privileged:
        ops.append(Protect())
    return ops


def _namespaces(spec: Spec, host: HostFacts, *, own_net: bool) -> tuple[str, ...]:
    kinds = ["mnt", "uts", "ipc", "pid"]
    if not spec.privileged:
        kinds.insert(0, "user")
    if own_net:
        kinds.append("net")
    if host.time_ns and not spec.clock and spec.proc == "host":
        # With offsets the init makes one of its own: they can only be set while it is empty.
        kinds.append("time")
    return tuple(kinds)
