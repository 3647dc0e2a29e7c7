"""The summary table as lines of text: pure, so that its layout is tested without a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from pytest_nsbox.policy.record import record

Usage = Mapping[str, float]
Row = tuple[str, Usage]

GAP = "  "
SMALLEST_NAME = 24


def short_seconds(value: float) -> str:
    """Seconds in at most seven characters: ``4ms``, ``1.25s``, ``2m05s``, ``3h07m``."""
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    if value < 99.995:
        return f"{value:.2f}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def short_bytes(value: float) -> str:
    """Bytes with the marker's own letters (powers of 1024): ``512``, ``14.2M``, ``256M``."""
    if value < 1024:
        return f"{value:.0f}"
    for letter in "KMGT":
        value /= 1024
        if value < 1023.95 or letter == "T":
            return f"{value:.0f}{letter}" if value == int(value) or value >= 99.95 else f"{value:.1f}{letter}"
    raise AssertionError("unreachable: T takes every rest")


def _count(value: float) -> str:
    return f"{value:.0f}"


@record
class Column:
    """One column: ``keep`` tells how long it stays when the terminal is narrow (the smallest goes first)."""

    title: str
    key: str
    show: Callable[[float], str]
    keep: int
    zero_tells: bool = True  # False: a column of zeroes says nothing and is left out


COLUMNS = (
    Column("wall", "wall_s", short_seconds, 7),
    Column("cpu", "cpu_s", short_seconds, 8),
    Column("throttled", "cpu_throttled_s", short_seconds, 4, zero_tells=False),
    Column("memory", "memory_peak_bytes", short_bytes, 9),
    Column("limit", "memory_limit_bytes", short_bytes, 5),
    Column("pids", "pids_peak", _count, 3),
    Column("files", "files_changed", _count, 2),
    Column("oom", "oom_kills", _count, 6, zero_tells=False),
)


def weights(rows: Sequence[Row]) -> list[float]:
    """How heavy each row is: its CPU time, memory peak and wall time, each as a share of the largest in the run."""
    result = [0.0] * len(rows)
    for key in ("cpu_s", "memory_peak_bytes", "wall_s"):
        values = [max(0.0, float(usage.get(key, 0))) for _, usage in rows]
        largest = max(values, default=0.0)
        if largest:
            result = [weight + value / largest for weight, value in zip(result, values, strict=True)]
    return result


def heaviest(rows: Sequence[Row], count: int | None) -> list[Row]:
    """The ``count`` heaviest rows (None: all), the heaviest first, equal ones in the order of the run."""
    order = sorted(zip(weights(rows), range(len(rows)), strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [rows[index] for _, index in order[:count]]


def text_width(text: str) -> int:
    """Columns that ``text`` takes in a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "FW" else 1 for char in text
    )


def shorten(name: str, width: int) -> str:
    """``name`` in at most ``width`` columns; the end stays, since it tells tests of one file apart."""
    if text_width(name) <= width:
        return name
    kept = name
    while kept and text_width(kept) > width - 3:
        kept = kept[1:]
    return "..." + kept if width > 3 else "." * width


def render(rows: Sequence[Row], width: int) -> list[str]:
    """Lines of the table: a head and one line per row, none longer than ``width`` columns.

    Columns without any value are left out; when the terminal is narrow, the least telling go so that names
    keep about SMALLEST_NAME columns. A counter that the kernel lacks shows as ``-``.
    """
    names = [printable(name) for name, _ in rows]
    columns = [column for column in COLUMNS if tells(column, rows)]
    longest = max([text_width(name) for name in names] + [4])
    while columns and width - _taken(columns, rows) < min(longest, SMALLEST_NAME):
        columns.remove(min(columns, key=lambda column: column.keep))
    room = max(4, min(longest, width - _taken(columns, rows)))
    lines = [_line("test", [column.title for column in columns], columns, rows, room)]
    for name, (_, usage) in zip(names, rows, strict=True):
        lines.append(_line(shorten(name, room), [_cell(column, usage) for column in columns], columns, rows, room))
    return lines


def _line(name: str, cells: Sequence[str], columns: Sequence[Column], rows: Sequence[Row], room: int) -> str:
    padded = name + " " * (room - text_width(name))
    return GAP.join([padded, *(cell.rjust(_width(column, rows)) for cell, column in zip(cells, columns, strict=True))])


def tells(column: Column, rows: Sequence[Row]) -> bool:
    """Whether the column has anything to say of these rows."""
    values = [usage[column.key] for _, usage in rows if column.key in usage]
    return any(values) or (bool(values) and column.zero_tells)


def _cell(column: Column, usage: Usage) -> str:
    return column.show(usage[column.key]) if column.key in usage else "-"


def _width(column: Column, rows: Sequence[Row]) -> int:
    return max(len(column.title), *(len(_cell(column, usage)) for _, usage in rows))


def _taken(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(len(GAP) + _width(column, rows) for column in columns)


def printable(name: str) -> str:
    """``name`` with what cannot be seen written out."""
    # A test id may hold a line break or a terminal escape; the table must stay one line per test.
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def totals(rows: Sequence[Row]) -> str:
    """One sentence on the whole run, from the counters that are there."""
    parts = [f"{len(rows)} test{'' if len(rows) == 1 else 's'} in boxes"]
    cpu = [usage["cpu_s"] for _, usage in rows if "cpu_s" in usage]
    if cpu:
        parts.append(f"cpu {short_seconds(sum(cpu))}")
    peaks = [usage["memory_peak_bytes"] for _, usage in rows if "memory_peak_bytes" in usage]
    if peaks:
        parts.append(f"largest memory peak {short_bytes(max(peaks))}")
    kills = int(sum(usage.get("oom_kills", 0) for _, usage in rows))
    if kills:
        parts.append(f"{kills} OOM kill{'' if kills == 1 else 's'}")
    return ", ".join(parts)
