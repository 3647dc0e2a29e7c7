"""Docker's spellings on the command line, as keys of a spec. Source: Docker's reference of `docker run`."""

from __future__ import annotations

from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.units import parse_size, write_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

MOUNT = "type=bind|volume|tmpfs,source=SRC,target=DST[,readonly][,tmpfs-size=SIZE]"
_MOUNT_NAMES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
# Options that are a key under another name, and nothing else.
_SAME = {
    "cpus": "cpu",
    "cpu_shares": "cpu_shares",
    "cpuset_cpus": "cpuset",
    "memory": "mem",
    "pids_limit": "pids",
    "hostname": "hostname",
    "user": "user",
    "workdir": "workdir",
    "read_only": "readonly",
    "privileged": "privileged",
    "net": "net",
}


_NUMBERS = ("cpu", "cpu_shares", "pids")


def read_options(given: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, object]:
    """Return the keys that options of `nsbox run` stand for; `env` is what `-e NAME` takes from.

    given  by the option's name with "_" for "-"; None, False and [] where it was not given. Raises BadValueError.
    """
    keys: dict[str, object] = {
        key: _as_number(given[name]) if key in _NUMBERS else given[name]
        for name, key in _SAME.items()
        if given.get(name) not in (None, False)
    }
    keys.update(_read_cpu(given))
    if given.get("memory_swap") is not None:
        keys["swap"] = _read_swap(given["memory_swap"], given.get("memory"))
    volumes: list[object] = list(given.get("volume") or ())
    tmpfs: dict[str, object] = dict(_read_tmpfs(text) for text in given.get("tmpfs") or ())
    for text in given.get("mount") or ():
        _read_mount(text, volumes, tmpfs)
    if given.get("env"):
        keys["env"] = _read_env(given["env"], env)
    if given.get("ulimit"):
        keys["ulimits"] = dict(_read_ulimit(text) for text in given["ulimit"])
    return {**keys, **({"volumes": volumes} if volumes else {}), **({"tmpfs": tmpfs} if tmpfs else {})}


def _read_cpu(given: Mapping[str, Any]) -> dict[str, object]:
    period, quota = given.get("cpu_period"), given.get("cpu_quota")
    found: dict[str, object] = {}
    if period is not None:
        found["cpu_period"] = f"{_number('--cpu-period', period) / 1000}ms"
    if quota is not None:
        if given.get("cpus") is not None:
            raise BadValueError("--cpus and --cpu-quota say the same", "one of them")
        found["cpu"] = _number("--cpu-quota", quota) / (
            _number("--cpu-period", period) if period is not None else 100_000
        )
    return found


def _as_number(text: object) -> object:
    try:
        return float(text) if isinstance(text, str) and "." in text else int(str(text))
    except ValueError:
        return text


def _number(option: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise BadValueError(f"{option} {text}: not a number of microseconds", "a whole number such as 50000")
    return number


def _read_swap(text: str, memory: str | None) -> str:
    """Docker's number is the sum of memory and swap."""
    if memory is None:
        raise BadValueError("--memory-swap without --memory", "both: it is the sum of memory and swap")
    swap = parse_size(text) - parse_size(memory)
    if swap < 0:
        raise BadValueError(f"--memory-swap {text} is less than --memory {memory}", "the sum of memory and swap")
    return write_size(swap)


def _read_tmpfs(text: str) -> tuple[str, object]:
    target, _, options = text.partition(":")
    size = None
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        if name == "size" and equals:
            size = value
        elif not equals and option[:1].isdigit():
            size = option
        elif option not in ("rw", "nosuid", "nodev", "exec"):
            raise BadValueError(f"--tmpfs {text}: the option {option!r} is not known here", "DST[:size=SIZE]")
    return target, size


def _read_mount(text: str, volumes: list[object], tmpfs: dict[str, object]) -> None:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        found[_MOUNT_NAMES.get(name, name)] = value
    kind, target = found.pop("type", "volume"), found.pop("target", "")
    source, readonly = found.pop("source", ""), found.pop("readonly", None)
    size = found.pop("tmpfs-size", None)
    if found or not target or kind not in ("bind", "volume", "tmpfs"):
        wrong = f"no {next(iter(found))!r} is known" if found else "no target" if not target else f"no type {kind!r}"
        raise BadValueError(f"--mount {text}: {wrong}", MOUNT)
    if kind == "tmpfs":
        tmpfs[target] = size
        return
    if not source or (kind == "bind") != source.startswith(("/", ".")):
        raise BadValueError(f"--mount {text}: source {source!r} is no {'path' if kind == 'bind' else 'name'}", MOUNT)
    volumes.append([source, target, "rw" if readonly in (None, "false") else "ro"])


def _read_env(texts: Sequence[str], env: Mapping[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise BadValueError(f"-e {text}: no name", "NAME=VALUE, or NAME for its value here")
        if equals or name in env:
            found[name] = value if equals else env[name]
    return found


def _read_ulimit(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    try:
        numbers = [int(part) for part in value.split(":")]
    except ValueError:
        numbers = []
    if not equals or len(numbers) not in (1, 2):
        raise BadValueError(f"--ulimit {text}: not a limit", "NAME=SOFT[:HARD], as nofile=256")
    return name, numbers[0] if len(numbers) == 1 else numbers
