"""The keys of the marker: how each is parsed, and how layers of them become one Spec.

The rows of limits come from ``limits.LIMITS``; the other keys are in the table here.
"""

from __future__ import annotations

from pytest_nsbox.policy import units
from pytest_nsbox.policy.confinement import ACCEPTED as CAPS
from pytest_nsbox.policy.confinement import parse_caps
from pytest_nsbox.policy.errors import BadValueError, SpecError, SpecProblems
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it
from pytest_nsbox.policy.limits import LIMITS
from pytest_nsbox.policy.mounts import TMPFS, VOLUMES, Volume, as_text, check_target, parse_tmpfs, parse_volumes, tidy
from pytest_nsbox.policy.networks import is_name as is_network_name
from pytest_nsbox.policy.record import record, replace
from pytest_nsbox.policy.spec import HostFacts, Layer, Spec, check_host
from pytest_nsbox.policy.users import HIGHEST_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LISTS = frozenset(("volumes", "tmpfs", "artifacts", "caps", "devices"))
TABLES = frozenset(("env", "ulimits", "hugetlb", "io", "clock"))
TEXTS = frozenset(("net", "rootfs", "hostname", "user", "workdir", "proc", "seccomp", "scope", "cpuset"))
PARAMETRISED = ("mem", "cpu")

_TEXT = "a text"
_BOOL = "True or False (true or false on the command line)"
_NET = "True or 'host', False or 'none', or the name of a network (letters, digits and _ . - after the first)"
_ENV = "{NAME: VALUE}, None as a value unsets"
_USER = "a user's name, UID or 'UID:GID'"
_HOSTNAME = "1 to 64 letters, digits, '-', '_' and '.'"
_CLOCK = "{'monotonic': SECONDS, 'boottime': SECONDS}"


@record
class Key:
    """One key and its parser."""

    name: str
    parse: Callable[[object], object]
    accepted: str


def build(layers: Sequence[Layer], *, rootdir: str = "", host: HostFacts | None = None) -> Spec:
    """See ``Spec.build``."""
    problems: list[SpecError] = []
    values: dict[str, object] = {}
    written: dict[str, tuple[str, str]] = {}
    for layer in layers:
        for name, value in layer.values.items():
            key = KEYS.get(name)
            if key is None:
                problems.append(unknown_key(name, layer.place))
                continue
            if name in written and _is_list_of_tests(name, value):
                continue  # the closer layer is the mark of the parameter that came from this list
            # A value that a closer layer hides is parsed as well: a mistake there is still a mistake.
            parsed, problem = _parse(key, value, layer.place)
            if problem is not None:
                problems.append(problem)
            if name not in written:
                written[name] = (_quoted(value), layer.place)
                values |= {} if problem is not None or parsed is None else {name: parsed}
    spec = Spec(**values)  # type: ignore[arg-type]  # each parser gives its field's type; a test holds that
    spec = _completed(spec, rootdir)
    problems += _contradictions(spec, written)
    if host is not None:
        problems += check_host(spec, host, written)
    if problems:
        raise SpecProblems(tuple({str(problem): problem for problem in problems}.values()))
    return spec


def unknown_key(name: object, place: str) -> SpecError:
    """The problem text of a key that does not exist, with the nearest one that does."""
    from difflib import get_close_matches  # costs an import that only this text needs

    near = get_close_matches(str(name), KEYS, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(str(name), "", "", f"unknown key {name!r} ({meant}known: {', '.join(KEYS)})", place)


def _parse(key: Key, value: object, place: str) -> tuple[object, SpecError | None]:
    if value is None:
        return None, None
    try:
        if _is_list_of_tests(key.name, value):
            reason = "a list makes one test of each value, for test functions only" if value else "an empty list"
            raise BadValueError(reason, key.accepted)
        parsed = key.parse(value)
    except BadValueError as error:
        return None, SpecError(key.name, _quoted(value), error.accepted or key.accepted, error.reason, place)
    return parsed, None


def _is_list_of_tests(name: str, value: object) -> bool:
    return name in PARAMETRISED and isinstance(value, (list, tuple))


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _completed(spec: Spec, rootdir: str) -> Spec:
    """The spec with what follows from its values: no swap beside ``mem``, bind sources below ``rootdir``."""
    if spec.mem is not None and spec.swap is None:
        spec = replace(spec, swap=0)
    if rootdir and any(_is_relative(volume) for volume in spec.volumes):
        spec = replace(spec, volumes=tuple(_joined(volume, rootdir) for volume in spec.volumes))
    return spec


def _is_relative(volume: Volume) -> bool:
    return volume.kind == "bind" and not volume.source.startswith("/")


def _joined(volume: Volume, rootdir: str) -> Volume:
    return replace(volume, source=tidy(f"{rootdir}/{volume.source}")) if _is_relative(volume) else volume


def _contradictions(spec: Spec, written: Mapping[str, tuple[str, str]]) -> list[SpecError]:
    found = []

    def problem(key: str, reason: str, accepted: str) -> None:
        value, place = written[key]
        found.append(SpecError(key, value, accepted, reason, place))

    # A needed key that was written, but wrongly, has its own problem; one more would mislead.
    if spec.swap is not None and spec.mem is None and not _was_set("mem", written):
        problem("swap", "swap is counted on top of mem, which is not set", "swap together with mem")
    if spec.cpu_period is not None and spec.cpu is None and not _was_set("cpu", written):
        problem("cpu_period", "the period of a quota that is not set", "cpu_period together with cpu")
    if spec.readonly and spec.disk is not None:
        problem("disk", "a readonly root has no scratch layer to limit", "disk without readonly")
    seen: dict[str, str] = {}
    targets = [("volumes", volume.target) for volume in spec.volumes]
    targets += [("tmpfs", mount.target) for mount in spec.tmpfs]
    for key, target in targets:
        if target in seen:
            problem(key, f"{target!r} is mounted twice (also in {seen[target]})", "each DST once")
        seen[target] = key
    return found


def _was_set(key: str, written: Mapping[str, tuple[str, str]]) -> bool:
    return key in written and written[key][0] != "None"


def _parse_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValueError("not a truth value")
    return value


def _parse_text(value: object) -> str:
    text = as_text(value)
    if not text or "\0" in text:
        raise BadValueError("an empty text" if not text else "a text with a NUL character")
    return text


def _parse_choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices or not isinstance(value, str):
            raise BadValueError("not one of them")
        return value

    return parse


def _parse_net(value: object) -> str:
    if isinstance(value, bool):
        return "host" if value else "none"
    text = _parse_text(value)
    if text.lower() in ("true", "false"):
        # TOML knows only lower case: `--sandbox-set net=False` must not become a network called "False".
        raise BadValueError("looks like a truth value, but is a text")
    if text not in ("host", "none") and not is_network_name(text):
        raise BadValueError("not a network's name")
    return text


def _parse_hostname(value: object) -> str:
    text = _parse_text(value)
    if len(text) > 64 or not all(char.isascii() and (char.isalnum() or char in "-_.") for char in text):
        raise BadValueError("not a hostname")
    return text


def _parse_user(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _parse_text(value)
    user, colon, group = text.partition(":")
    numbers = [user, group] if colon else [user] if user.isdigit() else []
    if numbers and not all(part.isascii() and part.isdigit() for part in numbers):
        raise BadValueError("not a user")
    if numbers and max(int(part[:11]) for part in numbers) > HIGHEST_ID:
        raise BadValueError(f"not an id of a box's, which go up to {HIGHEST_ID}")
    if not numbers and (not text.isprintable() or text.startswith("-") or set(text) & set(":/, \t")):
        raise BadValueError("not a user")
    return text


def _parse_workdir(value: object) -> str:
    text = _parse_text(value)
    if not text.startswith("/"):
        raise BadValueError("not an absolute path")
    return text


def _parse_env(value: object) -> tuple[tuple[str, str | None], ...]:
    found: dict[str, str | None] = {}
    for name, given in _items(value):
        if not name or "=" in name or "\0" in name:
            raise BadValueError(f"{name!r} is no name of a variable")
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        text = None if given is None else str(given) if number else as_text(given)
        if "\0" in (text or ""):
            raise BadValueError(f"{name!r} has a NUL character in its value")
        found[name] = text
    return tuple(found.items())


def _parse_clock(value: object) -> tuple[tuple[str, float], ...]:
    found: dict[str, float] = {}
    for name, given in _items(value):
        if name not in ("monotonic", "boottime"):
            raise BadValueError(f"unknown clock {name!r}")
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            if not -(2**33) < given < 2**33:  # also nan; KTIME_MAX is 2**63 ns, about 2**33 s
                raise BadValueError(f"{name!r} is out of range")
            found[name] = float(given)
        else:
            found[name] = units.parse_duration(given)
    return tuple(sorted(found.items()))


def _parse_texts(value: object) -> tuple[str, ...]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_parse_text(entry) for entry in entries)


def _parse_devices(value: object) -> tuple[str, ...]:
    found = _parse_texts(value)
    for entry in found:
        path, colon, access = entry.rpartition(":")
        check_target(path if colon else entry, "")
        if not (path if colon else entry).startswith("/dev/"):
            raise BadValueError(f"{entry!r} is not below /dev")
        if colon and (not access or set(access) - set("rwm")):
            raise BadValueError(f"unknown access {access!r}")
        if colon and not {"r", "w"} <= set(access):
            raise BadValueError(f"{access!r}: whoever can open a device in a box may read and write it")
    # How it was written makes no other box.
    return tuple(dict.fromkeys(entry.rpartition(":")[0] or entry for entry in found))


def _items(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise BadValueError("not a table")
    return list(value.items())


KEYS: dict[str, Key] = {limit.name: Key(limit.name, limit.parse, limit.accepted) for limit in LIMITS} | {
    key.name: key
    for key in (
        Key("devices", _parse_devices, "a list of '/dev/NAME:rw'"),
        Key("net", _parse_net, _NET),
        Key("rootfs", _parse_text, "an image's name, a directory, a tar or an OCI layout"),
        Key("readonly", _parse_bool, _BOOL),
        Key("volumes", parse_volumes, VOLUMES),
        Key("tmpfs", parse_tmpfs, TMPFS),
        Key("env", _parse_env, _ENV),
        Key("hostname", _parse_hostname, _HOSTNAME),
        Key("user", _parse_user, _USER),
        Key("workdir", _parse_workdir, "an absolute path"),
        Key("proc", _parse_choice("host", "limits"), "'host' or 'limits'"),
        Key("cgroup_view", _parse_bool, _BOOL),
        Key("privileged", _parse_bool, _BOOL),
        Key("caps", parse_caps, CAPS),
        Key("seccomp", _parse_choice("default", "none"), "'default' or 'none'"),
        Key("clock", _parse_clock, _CLOCK),
        Key("scope", _parse_choice("function", "class", "module"), "'function', 'class' or 'module'"),
        Key("artifacts", _parse_texts, "a list of globs"),
    )
}
