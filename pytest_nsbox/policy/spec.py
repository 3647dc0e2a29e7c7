"""The frozen description of one box, and its way through JSON. How one is read from marks: ``keys``."""

from __future__ import annotations

from pytest_nsbox.policy.errors import BadValueError, SpecError
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.mounts import Tmpfs, Volume, parse_tmpfs, parse_volume
from pytest_nsbox.policy.record import fields, keyword_record, record, replace
from pytest_nsbox.policy.units import format_cpu, format_cpuset, parse_cpu, write_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


@record
class Layer:
    """Keys that were written in one ``place`` (``sandbox marker``, ``ini sandbox_defaults``, ``--sandbox-set``)."""

    values: Mapping[str, object]
    place: str


@record
class HostFacts:
    """What a spec must fit: the numbers of the host's online CPUs; whether a ``disk=`` scratch lies on a tmpfs; the
    bytes and the CPUs that all boxes may have together.
    """

    cpus: tuple[int, ...]
    scratch_on_tmpfs: bool = True
    budget_mem: float | None = None
    budget_cpu: float | None = None


@keyword_record
class Spec:
    """One box. None means unlimited, or as on the host.

    Sizes are bytes, ``cpu`` is CPUs, ``cpu_period`` microseconds, ``timeout`` and ``clock`` seconds. ``ulimits`` holds
    (name, soft, hard) with -1 for unlimited; ``net`` is "host", "none" or a network's name. Sources of bind mounts
    are absolute when the spec was built with a root directory.
    """

    cpu: float | None = None
    cpu_period: int | None = None
    cpu_shares: int | None = None
    cpuset: tuple[int, ...] | None = None
    mem: int | None = None
    swap: int | None = None
    hugetlb: tuple[tuple[str, int], ...] = ()
    devices: tuple[str, ...] = ()
    pids: int | None = None
    io: tuple[tuple[str, int], ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    disk: int | None = None
    timeout: float | None = None
    net: str = "host"
    rootfs: str | None = None
    readonly: bool = False
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    env: tuple[tuple[str, str | None], ...] = ()
    hostname: str | None = None
    user: str | None = None
    workdir: str | None = None
    proc: str = "host"
    cgroup_view: bool = True
    privileged: bool = False
    caps: tuple[str, ...] | None = None
    seccomp: str | None = None
    clock: tuple[tuple[str, float], ...] = ()
    scope: str = "function"
    artifacts: tuple[str, ...] = ()

    @staticmethod
    def build(layers: Sequence[Layer], *, rootdir: str = "", host: HostFacts | None = None) -> Spec:
        """Merge ``layers`` key by key, the first that has a key wins (None there means the key's default).

        Relative sources of volumes are joined to ``rootdir``; with ``host`` the spec must fit it too.
        Raises SpecProblems with everything that is wrong in any layer.
        """
        from pytest_nsbox.policy.keys import build  # the warden reads specs and never parses one

        return build(layers, rootdir=rootdir, host=host)

    def to_json(self) -> dict[str, object]:
        """Plain JSON values of the fields that differ from the default; ``from_json`` is the way back."""
        return {name: _plain(value) for name, value in self._set_fields()}

    @staticmethod
    def from_json(values: Mapping[str, object]) -> Spec:
        """The spec of ``to_json``'s result, also after JSON made lists of its tuples; TypeError for unknown names."""
        read: dict[str, object] = {name: _tuples(value) for name, value in values.items()}
        read["volumes"] = tuple(Volume(*entry) for entry in _entries(read, "volumes"))
        read["tmpfs"] = tuple(Tmpfs(*entry) for entry in _entries(read, "tmpfs"))
        return Spec(**read)  # type: ignore[arg-type]  # the other side of the socket is this module

    def box_key(self) -> Spec:
        """This spec without what the test's own process or the end of the box decides.

        Two tests with an equal key may use the same ready box.
        """
        return replace(self, timeout=None, artifacts=())

    def shown(self) -> dict[str, object]:
        """What is set, in the marker's own spelling, for reports: ``{"mem": "256M", "cpu": "20%", "net": False}``.

        Plain JSON values; built again they give an equal spec.
        """
        return {name: _spelled(name, value) for name, value in self._set_fields()}

    def _set_fields(self) -> list[tuple[str, object]]:
        return [(name, value) for name in fields(Spec) if (value := getattr(self, name)) != getattr(DEFAULT, name)]


DEFAULT = Spec()


def spelled(limits: Mapping[str, object]) -> dict[str, object]:
    """Limits as reports carry them (bytes, CPUs, ``{"nofile": [soft, hard]}``) in the marker's own spelling."""
    shown = {name: value if isinstance(value, dict) else _spelled(name, value) for name, value in limits.items()}
    ulimits = limits.get("ulimits")
    if isinstance(ulimits, dict):
        shown["ulimits"] = {name: soft if soft == hard else [soft, hard] for name, (soft, hard) in ulimits.items()}
    if limits.get("swap") == 0:  # as without
        del shown["swap"]
    return shown


def check_host(
    spec: Spec, host: HostFacts, written: Mapping[str, tuple[str, str]] | None = None
) -> tuple[SpecError, ...]:
    """What of ``spec`` this host cannot give.

    ``written`` tells for a key the value's repr as it was written, and the place.
    """
    problems = []

    def problem(key: str, reason: str, accepted: str) -> None:
        value, place = (written or {}).get(key, (repr(_spelled(key, getattr(spec, key))), ""))
        problems.append(SpecError(key, value, accepted, reason, place))

    count = len(host.cpus)
    if spec.cpu is not None and spec.cpu > count:
        problem("cpu", "more CPUs than the host has", f"up to {count}, or '{count * 100}%'")
    elif spec.cpu is not None and host.budget_cpu is not None and spec.cpu > host.budget_cpu:
        problem("cpu", "more than all boxes may have together", f"up to {host.budget_cpu:g}, sandbox_budget_cpu")
    if spec.mem is not None and host.budget_mem is not None and spec.mem > host.budget_mem:
        problem(
            "mem",
            "more than all boxes may have together",
            f"up to {write_size(int(host.budget_mem))}, sandbox_budget_mem",
        )
    if spec.cpuset is not None and not set(spec.cpuset) <= set(host.cpus):
        problem("cpuset", "CPUs that the host does not have", f"of {format_cpuset(host.cpus)!r}")
    if spec.disk is not None and spec.mem is not None and spec.disk >= spec.mem and host.scratch_on_tmpfs:
        problem(
            "disk",
            f"the scratch layer lies in memory, which mem={write_size(spec.mem)!r} limits",
            "a size below mem",
        )
    return tuple(problems)


def _plain(value: object) -> object:
    if isinstance(value, Volume):
        return [value.source, value.target, value.readonly, value.kind]
    if isinstance(value, Tmpfs):
        return [value.target, value.size]
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _tuples(value: object) -> object:
    return tuple(_tuples(part) for part in value) if isinstance(value, (list, tuple)) else value


def _entries(read: Mapping[str, Any], name: str) -> tuple[tuple[Any, ...], ...]:
    entries: tuple[tuple[Any, ...], ...] = read.get(name, ())
    return entries


def _cpu_text(cpus: float) -> object:
    text = format_cpu(cpus)
    try:
        return text if parse_cpu(text) == cpus else cpus
    except BadValueError:  # more CPUs than are written without an exponent
        return cpus


def _volume_text(volume: Volume) -> object:
    text = f"{volume.source}:{volume.target}{':ro' if volume.readonly else ''}"
    try:
        if parse_volume(text) == volume:
            return text
    except BadValueError:
        pass
    return [volume.source, volume.target, "ro" if volume.readonly else "rw"]  # a path with colons


def _tmpfs_text(mount: Tmpfs) -> object:
    size = None if mount.size is None else write_size(mount.size)
    text = mount.target if size is None else f"{mount.target}:{size}"
    try:
        if parse_tmpfs(text) == (mount,):
            return text
    except BadValueError:
        pass
    return {mount.target: size}


def _spelled(name: str, value: object) -> object:
    if name in _SPELLINGS and value is not None:
        return _SPELLINGS[name](value)
    return list(value) if isinstance(value, tuple) else value


_SPELLINGS: dict[str, Callable[[Any], object]] = {
    "cpu": _cpu_text,
    "cpu_period": lambda period: f"{period / 1000:g}ms",
    "cpuset": format_cpuset,
    "mem": write_size,
    "swap": write_size,
    "disk": write_size,
    "ulimits": lambda rows: {name: soft if soft == hard else [soft, hard] for name, soft, hard in rows},
    "net": lambda net: {"host": True, "none": False}.get(net, net),
    "volumes": lambda volumes: [_volume_text(volume) for volume in volumes],
    "tmpfs": lambda mounts: [_tmpfs_text(mount) for mount in mounts],
    **dict.fromkeys(("env", "clock", "io", "hugetlb"), dict),
}
