"""The command line and the ini: declared, read once, checked, and turned into the default layers of every box."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_nsbox.places import CGROUP_PARENT
from pytest_nsbox.policy.errors import BadValueError, SpecProblems
from pytest_nsbox.policy.keys import KEYS, LISTS, PARAMETRISED, TABLES, TEXTS, unknown_key
from pytest_nsbox.policy.limits import LIMITS
from pytest_nsbox.policy.record import record
from pytest_nsbox.policy.spec import Layer, Spec
from pytest_nsbox.policy.units import parse_count, parse_cpu, parse_positive_size

MARKER = "sandbox"
MARKER_HELP = (
    "sandbox(cpu=..., mem=..., net=..., ...): run the test in a box of its own with these limits; "
    "sandbox(False) opts a test out of --sandbox-all. Keys: " + ", ".join(KEYS)
)
UNAVAILABLE = ("fail", "skip", "run")

SETTINGS = pytest.StashKey["Settings"]()


@record
class Settings:
    """Options and ini of one run, checked.

    ``report`` is the number of rows of the summary table (None: all), ``fail_on_increase`` a percentage. ``layers`` are
    the defaults of every box, ini first. ``shared_paths`` are absolute. ``budget_mem`` and ``budget_cpu`` are bytes and
    CPUs for all boxes together (None: what the machine has; infinite for no bound).
    """

    all: bool = False
    off: bool = False
    unavailable: str = "fail"
    cgroup_parent: str | None = None
    pool: int = 2
    host_fixtures: tuple[str, ...] = ()
    box_fixtures: tuple[str, ...] = ()
    shared_paths: tuple[str, ...] = ()
    report: int | None = 10
    json: str | None = None
    html: str | None = None
    keep: bool = False
    shell: bool = False
    doctor: bool = False
    suggest: bool = False
    baseline: str | None = None
    fail_on_increase: float | None = None
    budget_mem: float | None = None
    budget_cpu: float | None = None
    rootdir: str = "/"
    layers: tuple[Layer, ...] = ()


def add_options(parser: pytest.Parser) -> None:
    """Declare the command line and the ini."""
    group = parser.getgroup("nsbox", "tests in boxes of their own")
    option = group.addoption
    option("--sandbox-all", action="store_true", help="run every test in a box of its own")
    option("--sandbox-off", action="store_true", help="run marked tests plainly, without boxes")
    option(
        "--sandbox-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="default for every box, repeatable; VALUE is TOML or a plain text. Limits: "
        + ", ".join(f"{limit.name}={limit.example}" for limit in LIMITS).replace("%", "%%")
        + ". Other keys: "
        + ", ".join(name for name in KEYS if name not in {limit.name for limit in LIMITS}),
    )
    option("--sandbox-report", metavar="N|all|none", help="rows of the summary table, heaviest first (default: 10)")
    option("--sandbox-json", metavar="PATH", help="write limits and usage of every test there")
    option("--sandbox-html", metavar="PATH", help="write a report page there")
    option("--sandbox-keep", action="store_true", help="keep the scratch layer of failed tests and print where it is")
    option("--sandbox-shell", action="store_true", help="open a shell inside the box of the first failing test")
    option("--sandbox-suggest", action="store_true", help="suggest limits for each test from what it used")
    option("--sandbox-baseline", metavar="FILE", help="keep what each test used there, run after run")
    option(
        "--sandbox-fail-on-increase",
        metavar="PCT",
        help="compare with the file of --sandbox-baseline instead, and fail if a test uses PCT per cent more",
    )
    option("--sandbox-doctor", action="store_true", help="show what works on this machine, why not, and the fix")
    option(
        "--sandbox-unavailable",
        metavar="fail|skip|run",
        help="what to do with a test whose box cannot be had on this machine (default: fail)",
    )
    option(
        "--sandbox-cgroup-parent",
        metavar="PATH",
        help=f"cgroup for the boxes, relative to each hierarchy's mount (also: environment {CGROUP_PARENT})",
    )
    parser.addini("sandbox_all", "run every test in a box of its own", type="bool", default=False)
    parser.addini("sandbox_defaults", "defaults of every box, lines KEY=VALUE", type="linelist", default=[])
    parser.addini("sandbox_unavailable", "as --sandbox-unavailable", default="")
    parser.addini("sandbox_cgroup_parent", "as --sandbox-cgroup-parent", default="")
    parser.addini("sandbox_host_fixtures", "fixtures that stay in pytest's own process", type="args", default=[])
    parser.addini("sandbox_box_fixtures", "fixtures that are set up inside each box", type="args", default=[])
    parser.addini(
        "sandbox_shared_paths", "paths bound read-write into every box, one per line", type="linelist", default=[]
    )
    # "int" is what takes a number from the TOML table of pytest 9; older versions know no such type, and no such table.
    typed: dict[str, Any] = {"type": "int"} if pytest.version_tuple >= (8, 4) else {}
    parser.addini("sandbox_pool", "number of boxes made ready ahead (default: 2)", default="2", **typed)
    parser.addini("sandbox_budget_mem", "memory of all boxes at one time, or none (default: the machine's)", default="")
    parser.addini("sandbox_budget_cpu", "CPUs of all boxes at one time, or none (default: the machine's)", default="")


def is_sure_to_box(config: pytest.Config) -> bool:
    """Whether tests are going to run in boxes of this process, as far as that is known before conftests are loaded."""
    known = config.known_args_namespace
    idle = ("sandbox_off", "sandbox_doctor", "help", "version", "collectonly", "setupplan", "numprocesses", "tx")
    if any(getattr(known, name, False) for name in idle):
        return False
    try:
        return bool(known.sandbox_all or config.getini("sandbox_all"))
    except (ValueError, TypeError):  # it is told when the settings are read
        return False


def add_marker(config: pytest.Config) -> None:
    """Make the marker known to ``--markers`` and ``--strict-markers``."""
    config.addinivalue_line("markers", MARKER_HELP)


def read(config: pytest.Config) -> Settings:
    """The settings of this run, read once. UsageError with every wrong option and ini value at once."""
    if SETTINGS in config.stash:
        return config.stash[SETTINGS]
    reader = _Reader(config)
    settings = Settings(
        all=bool(config.option.sandbox_all) or reader.flag("sandbox_all"),
        off=bool(config.option.sandbox_off),
        unavailable=reader.unavailable(),
        cgroup_parent=reader.cgroup_parent(),
        pool=reader.count("sandbox_pool"),
        host_fixtures=reader.texts("sandbox_host_fixtures"),
        box_fixtures=reader.texts("sandbox_box_fixtures"),
        shared_paths=reader.paths("sandbox_shared_paths"),
        report=reader.report(),
        json=config.option.sandbox_json,
        html=config.option.sandbox_html,
        keep=bool(config.option.sandbox_keep),
        shell=bool(config.option.sandbox_shell),
        doctor=bool(config.option.sandbox_doctor),
        suggest=bool(config.option.sandbox_suggest),
        baseline=config.option.sandbox_baseline,
        fail_on_increase=reader.percent(),
        budget_mem=reader.budget("sandbox_budget_mem", parse_positive_size),
        budget_cpu=reader.budget("sandbox_budget_cpu", parse_cpu),
        rootdir=str(config.rootpath),
        layers=reader.layers(),
    )
    if reader.problems:
        raise pytest.UsageError(*reader.problems)
    config.stash[SETTINGS] = settings
    return settings


class _Reader:
    """One pass over options and ini that notes every problem instead of stopping at the first."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.problems: list[str] = []

    def _ini(self, name: str, default: Any) -> Any:
        try:
            return self.config.getini(name)
        except (ValueError, TypeError) as error:  # what pytest raises for a value of the wrong type
            self.problems.append(f"ini {name}: {error}")
            return default

    def flag(self, name: str) -> bool:
        return bool(self._ini(name, False))

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._ini(name, []))

    def paths(self, name: str) -> tuple[str, ...]:
        base = self.config.inipath.parent if self.config.inipath else self.config.rootpath
        return tuple(os.path.abspath(base / Path(text).expanduser()) for text in self.texts(name))

    def count(self, name: str) -> int:
        value = self._ini(name, "0")
        try:
            return parse_count(value, 0, 64)
        except ValueError as error:
            self.problems.append(f"ini {name}={value!r}: {error}")
            return 0

    def budget(self, name: str, parse: Callable[[object], float]) -> float | None:
        value = self._ini(name, "")
        if value in ("", "none"):
            return math.inf if value else None
        try:
            return parse(value)
        except BadValueError as error:
            self.problems.append(f"ini {name}={value!r}: {error.reason} (accepted: {error.accepted}, or none)")
            return None

    def unavailable(self) -> str:
        for place, value in (
            ("--sandbox-unavailable", self.config.option.sandbox_unavailable),
            ("ini sandbox_unavailable", self._ini("sandbox_unavailable", "")),
        ):
            if value in UNAVAILABLE:
                return str(value)
            if value:
                self.problems.append(f"{place}={value!r}: not a choice (accepted: {', '.join(UNAVAILABLE)})")
        return "fail"

    def cgroup_parent(self) -> str | None:
        for place, value in (
            ("--sandbox-cgroup-parent", self.config.option.sandbox_cgroup_parent),
            (f"environment {CGROUP_PARENT}", os.environ.get(CGROUP_PARENT)),
            ("ini sandbox_cgroup_parent", self._ini("sandbox_cgroup_parent", "")),
        ):
            if value:
                if ".." in str(value).split("/") or not str(value).strip("/ "):
                    accepted = "a path below each hierarchy's mount, such as '/nsbox'"
                    self.problems.append(f"{place}={value!r}: not a cgroup (accepted: {accepted})")
                return str(value)
        return None

    def report(self) -> int | None:
        value = self.config.option.sandbox_report
        if value is None or value in ("all", "none"):
            return {None: 10, "all": None, "none": 0}[value]
        try:
            return parse_count(value, 0)
        except ValueError:
            accepted = "a number of rows, all or none"
            self.problems.append(f"--sandbox-report={value!r}: not a number of rows (accepted: {accepted})")
            return 10

    def percent(self) -> float | None:
        value = self.config.option.sandbox_fail_on_increase
        if value is None:
            return None
        from pytest_nsbox.policy.baseline import parse_percent

        if not self.config.option.sandbox_baseline:
            self.problems.append(
                f"--sandbox-fail-on-increase={value}: --sandbox-baseline=FILE says what to compare with"
            )
        try:
            return parse_percent(value)
        except ValueError:
            self.problems.append(
                f"--sandbox-fail-on-increase={value!r}: not a percentage (accepted: a number, or '20%')"
            )
            return None

    def layers(self) -> tuple[Layer, ...]:
        """The defaults, ini first; each line is checked by itself, so that it is blamed where it stands."""
        return tuple(
            layer
            for place, lines in (
                ("ini sandbox_defaults", self._ini("sandbox_defaults", [])),
                ("--sandbox-set", self.config.option.sandbox_set),
            )
            if (layer := self._layer(place, lines)).values
        )

    def _layer(self, place: str, lines: Iterable[str]) -> Layer:
        values: dict[str, object] = {}
        for line in lines:
            name, equals, text = (part.strip() for part in line.partition("="))
            if not equals or not name:
                self.problems.append(f"{place} {line!r}: not a default (accepted: KEY=VALUE)")
            elif name not in KEYS:
                self.problems.append(str(unknown_key(name, f"{place} {line!r}")))
            else:
                value = read_value(name, text)
                self.problems += _value_problems(name, value, f"{place} {line!r}")
                values[name] = _joined(name, values[name], value) if name in values else value
        return Layer(values, place)


def read_value(name: str, text: str) -> object:
    """The value of ``text`` for the key ``name``: TOML if it parses as TOML, else the text itself.

    A key that takes a text keeps it as written, where TOML would make a number or a date of ``hostname=2024``.
    """
    value = read_plain(text)
    if value is None:
        value = read_toml(text)
    if name in TEXTS and not isinstance(value, (str, list)) and not (name == "net" and isinstance(value, bool)):
        return text
    return value


def read_plain(text: str) -> object:
    """What most values are, without TOML's parser, which takes 4 ms to import; None where only that can tell."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if re.fullmatch(_INTEGER, text):
        return int(text)
    return text if re.match(_NO_TOML, text) else None


def read_toml(text: str) -> object:
    """What TOML makes of one value; ``text`` itself where that is none."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    if len(table) != 1 or not isinstance(value, (str, bool, int, float, list, dict)):
        return text  # more than one line, or a date
    return value


def _joined(name: str, before: object, value: object) -> object:
    """A key that comes again: lists and tables grow, of other keys the last counts."""
    if name in TABLES and isinstance(before, dict) and isinstance(value, dict):
        return {**before, **value}
    if name in LISTS:
        return [*(before if isinstance(before, list) else [before]), *(value if isinstance(value, list) else [value])]
    return value


def _value_problems(name: str, value: object, place: str) -> list[str]:
    """What is wrong with one default by itself; contradictions show only when a test's layers are merged."""
    values = value if name in PARAMETRISED and isinstance(value, list) else [value]
    problems = []
    for each in values:
        try:
            Spec.build([Layer({name: each} | _NEEDED.get(name, {}), place)])
        except SpecProblems as error:
            problems += [str(problem) for problem in error.problems if problem.key == name]
    return problems


_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER: Final = r"0|[1-9][0-9]{0,8}"
# A size, a percentage, or a word that is none of TOML's.
_NO_TOML: Final = r"[0-9]+(\.[0-9]+)?[%kKmMgGtT]|(?!true|false|inf|nan)[A-Za-z]"
_NEEDED: dict[str, dict[str, object]] = {"swap": {"mem": "1G"}, "cpu_period": {"cpu": 1}}
