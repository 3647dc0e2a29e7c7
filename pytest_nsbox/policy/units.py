"""Sizes, durations, CPU shares and counts: from what people write to numbers, and back.

Every parser takes what a marker, TOML or the command line may hold, and raises BadValueError with what is accepted.
"""

from __future__ import annotations

from pytest_nsbox.policy.errors import BadValueError

SIZE = "bytes, or digits with K, M, G or T (powers of 1024) such as '256M'"
DURATION = "seconds, or a number with us, ms, s, m or h such as '30s' or '100ms'"
CPU = "a number of CPUs such as 0.5 or 2, or percent of one CPU such as '20%'; at least 0.1%"
CPUSET = "CPU numbers and ranges such as '0-1,3'"

_SIZE_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DURATION_UNITS = (("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0))
# In one call: poll(2) counts milliseconds in an int. Whoever waits for longer calls it again.
LONGEST_WAIT = 1_000_000.0  # seconds

_LARGEST = 2**63 - 1  # the kernel's counters are signed 64 bit
_HIGHEST_CPU = 8191  # CONFIG_NR_CPUS is at most 8192


def parse_size(value: object) -> int:
    """Bytes of ``"256M"``, ``"64KiB"``, ``"1gb"`` or a number of bytes; zero or more, letters are powers of 1024."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        size = _size_of(value.strip())
    else:
        raise BadValueError("not a size", SIZE)
    if size < 0:
        raise BadValueError("a size below zero", SIZE)
    if size > _LARGEST:
        raise BadValueError("more than the kernel can count", SIZE)
    return size


def parse_positive_size(value: object) -> int:
    """As ``parse_size``, but zero is refused (many kernel files read it as no limit)."""
    size = parse_size(value)
    if size == 0:
        raise BadValueError("a size of zero", SIZE)
    return size


def _size_of(text: str) -> int:
    upper = text.upper()
    for ending in ("IB", "B"):
        stripped = upper.removesuffix(ending)
        # "5iB" has no letter that the "i" could belong to.
        if stripped != upper and (ending == "B" or stripped[-1:] in ("K", "M", "G", "T")):
            upper = stripped
            break
    unit = upper[-1:] if upper[-1:] in ("K", "M", "G", "T") else ""
    digits = upper.removesuffix(unit)
    if not _is_digits(digits):
        raise BadValueError("not a size", SIZE)
    return int(digits) * _SIZE_UNITS[unit]


def format_size(size: float) -> str:
    """``"256.0 MiB"``, one decimal; below 1 KiB ``"512 B"``."""
    if size < 1024:
        return f"{size:.0f} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if round(value, 1) < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def write_size(size: int) -> str:
    """The shortest text that ``parse_size`` turns back into ``size``, such as ``512M``."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def parse_duration(value: object) -> float:
    """Seconds of ``"100ms"``, ``"30s"``, ``"5m"`` or a number of seconds; finite and above zero."""
    seconds = _seconds_in(value)
    if not 0 < seconds < float("inf"):  # False for nan as well
        raise BadValueError("not a duration above zero", DURATION)
    return seconds


def parse_patience(value: object) -> float:
    """As ``parse_duration``, but zero is taken: to wait for nothing."""
    seconds = _seconds_in(value)
    if not 0 <= seconds < float("inf"):
        raise BadValueError("not a duration of zero or more", DURATION)
    return seconds


def _seconds_in(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else float("inf")
    if isinstance(value, str):
        return _seconds_of(value.strip())
    raise BadValueError("not a duration", DURATION)


def _seconds_of(text: str) -> float:
    for unit, factor in _DURATION_UNITS:  # "us" and "ms" come before "s"
        if text.endswith(unit):
            return _number(text.removesuffix(unit).rstrip(), "not a duration", DURATION) * factor
    return _number(text, "not a duration", DURATION)


def format_seconds(seconds: float) -> str:
    """``"30.0 s"``; more decimals only where one would lose something."""
    one = f"{seconds:.1f}"
    return f"{one if abs(float(one) - seconds) < 1e-9 else format(seconds, '.4g')} s"


def parse_cpu(value: object) -> float:
    """CPUs of ``"20%"`` (of one CPU), ``"150%"``, ``0.2`` or ``2``; at least 0.001."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cpus = float(value) if abs(value) < 1e300 else float("inf")
    elif isinstance(value, str):
        text = value.strip()
        number = _number(text.removesuffix("%").rstrip(), "not a share of CPUs", CPU)
        # Divided as written, not multiplied by 0.01: "20%" must equal 0.2.
        cpus = number / 100 if text.endswith("%") else number
    else:
        raise BadValueError("not a share of CPUs", CPU)
    if not cpus < float("inf"):  # nan as well
        raise BadValueError("not a share of CPUs", CPU)
    if cpus < 0.001:
        raise BadValueError("less than the kernel can divide", CPU)
    return cpus


def format_cpu(cpus: float) -> str:
    """``"20%"``, of one CPU."""
    return f"{cpus * 100:.6g}%"


def parse_cpuset(value: object) -> tuple[int, ...]:
    """CPU numbers of ``"0-1,3"``, of one number, or of a list of numbers; sorted, each once, at least one."""
    if isinstance(value, int) and not isinstance(value, bool):
        found = {value}
    elif isinstance(value, (list, tuple)) and all(isinstance(n, int) and not isinstance(n, bool) for n in value):
        found = set(value)
    elif isinstance(value, str):
        found = set()
        for part in value.split(","):
            found |= _cpus_of(part.strip())
    else:
        raise BadValueError("not a set of CPUs", CPUSET)
    if not found or min(found) < 0 or max(found) > _HIGHEST_CPU:
        raise BadValueError("not a set of CPUs", CPUSET)
    return tuple(sorted(found))


def _cpus_of(part: str) -> set[int]:
    first, dash, last = part.partition("-")
    last = last if dash else first
    if not (_is_digits(first) and _is_digits(last)) or not int(first) <= int(last) <= _HIGHEST_CPU:
        raise BadValueError("not a set of CPUs", CPUSET)
    return set(range(int(first), int(last) + 1))


def format_cpuset(cpus: tuple[int, ...]) -> str:
    """The list format of cpuset(7): ``(0, 1, 3)`` becomes ``"0-1,3"``."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def parse_count(value: object, smallest: int = 1, largest: int = _LARGEST) -> int:
    """A whole number from ``smallest`` to ``largest``, as a number or as digits."""
    accepted = f"a whole number, {smallest} or more" if largest == _LARGEST else f"{smallest} to {largest}"
    if isinstance(value, str) and _is_digits(value.strip()):
        value = int(value.strip())
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError("not a whole number", accepted)
    if not smallest <= value <= largest:
        raise BadValueError("out of range", accepted)
    return value


def parse_pids(value: object) -> int:
    """A number of processes, up to PID_MAX_LIMIT: there can be no more, and the kernel takes no higher limit."""
    return parse_count(value, 1, 1 << 22)


def _is_digits(text: str) -> bool:
    # isdigit() alone takes "²" too; the length keeps int() from Python's own limit on digits.
    return text.isascii() and text.isdigit() and len(text) <= 30


def _number(text: str, reason: str, accepted: str) -> float:
    whole, _, fraction = text.partition(".")
    if not _is_digits(whole or "0") or not _is_digits(fraction or "0") or not (whole or fraction):
        raise BadValueError(reason, accepted)
    return float(text)
