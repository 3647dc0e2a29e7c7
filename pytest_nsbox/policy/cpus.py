"""The CPUs of a box with ``proc="limits"``: which it runs on, and what /proc and /sys say of them.

CPUs keep their numbers, so that everything agrees with what sched_getaffinity(2) tells.
"""

from __future__ import annotations

from pytest_nsbox.policy.units import format_cpuset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.spec import Spec

# Below /sys/devices/system: lists of CPUs.
CPU_LISTS = ("cpu/online", "cpu/possible", "cpu/present")


def choose_cpus(spec: Spec, allowed: tuple[int, ...], start: int) -> tuple[int, ...]:
    """The CPUs, of those ``allowed``, that a box of ``spec`` runs on: as many as its quota fills, the last perhaps in
    part, counted on from number ``start`` of the list and round again; sorted.
    """
    usable = tuple(cpu for cpu in allowed if spec.cpuset is None or cpu in spec.cpuset) or allowed
    if spec.cpu is None:
        return usable
    # A quota of 1.0000000001 CPUs by rounding is one CPU.
    count = min(len(usable), max(1, -int(-(spec.cpu - 1e-9) // 1)))
    begin = start % len(usable)
    return tuple(sorted((usable + usable)[begin : begin + count]))


def cpu_list(cpus: tuple[int, ...]) -> str:
    """The kernel's text of a list of CPUs: ``0-1,3`` and a newline."""
    return f"{format_cpuset(cpus)}\n"


def cpu_mask(host: str, cpus: tuple[int, ...]) -> str:
    """The kernel's text of a mask of CPUs, as wide as ``host``: 32 bits in hexadecimal digits between two commas."""
    bits = sum(1 << cpu for cpu in cpus)
    groups = host.strip().split(",")
    words = [(bits >> 32 * (len(groups) - 1 - index)) & 0xFFFFFFFF for index in range(len(groups))]
    return ",".join(f"{word:0{len(group)}x}" for word, group in zip(words, groups, strict=True)) + "\n"


def cpuinfo_text(host: str, cpus: tuple[int, ...]) -> str:
    """/proc/cpuinfo with the blocks of ``cpus`` alone; counts of siblings and cores are of those."""
    blocks = [block for block in host.split("\n\n") if block.strip("\n")]
    kept = [block for block in blocks if (number := _number(block)) is None or number in cpus]
    packages: dict[str, list[dict[str, str]]] = {}
    for block in kept:
        fields = _fields(block)
        packages.setdefault(fields.get("physical id", ""), []).append(fields)
    shown = [_recount(block, packages[_fields(block).get("physical id", "")]) for block in kept]
    tail = "\n\n" if host.endswith("\n\n") else "\n" if host.endswith("\n") else ""
    return "\n\n".join(block.rstrip("\n") for block in shown) + tail


def _number(block: str) -> int | None:
    number = _fields(block).get("processor", "")
    return int(number) if number.isdigit() else None


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _recount(block: str, package: list[dict[str, str]]) -> str:
    counts = {
        "siblings": len(package),
        "cpu cores": len({fields.get("core id", str(index)) for index, fields in enumerate(package)}),
    }
    lines = []
    for line in block.splitlines():
        key, colon, _ = line.partition(":")
        name = key.strip()
        lines.append(f"{key}{colon} {counts[name]}" if name in counts and colon else line)
    return "\n".join(lines)
