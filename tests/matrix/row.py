"""What one row of the matrix is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Files = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """A suite that uses one feature, and how it is run.

    ``gives`` is what plain pytest counts in its last line, such as "1 failed, 2 passed": a suite that does not run is
    the same in all ways, and must not pass for it.
    """

    feature: str
    gives: str
    files: Files
    args: Sequence[str] = ()
    plugins: Sequence[str] = ()  # as ``-p`` takes them; all others stay unloaded
    before: Sequence[Sequence[str]] = ()  # arguments of runs that go before the one that is compared
    produces: Sequence[str] = ()  # files of the suite's directory that must be the same
    ignore: str = ""  # an expression for what differs between two plain runs, in the terminal and in those files
    types: str = ""  # what somebody types at the terminal that pytest runs on; without, it runs on pipes
    env: Mapping[str, str] = field(default_factory=dict)
    several_processes: bool = False  # reports come in any order, and so do the terminal's lines
    at_least: str = ""  # of pytest
    reason: str = ""  # why it is not the same, and the way round
    differs: Sequence[str] = ("report",)  # the ways in which it may differ for that reason


@dataclass(frozen=True)
class Section:
    """Rows below one heading."""

    title: str
    rows: Sequence[Row]
