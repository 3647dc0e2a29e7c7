"""Runs one suite plainly and in boxes, and compares what the reporters heard and what the terminal showed."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ZOO = Path(__file__).parent / "zoo"
# Import times of plugins that have no part in a test would be most of its time.
BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
# What tells programs that nobody watches, of which some then act otherwise. tox keeps one of its own.
OF_CI = ("CI", "__TOX_ENVIRONMENT_VARIABLE_ORIGINAL_CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "CIRCLECI")


Event = dict[str, Any]


@dataclass
class Recorded:
    """One inner run: its result, its events (paths and addresses made equal), and the file that its suite logged to."""

    result: pytest.RunResult
    path: Path
    events: list[Event]
    log: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Of the process that reported."""
        return int(self.events[-1]["pid"])

    def reports(self, nodeid: str | None = None) -> list[Event]:
        """Reports in order; those of the tests whose node id ends with ``nodeid``."""
        return [
            event
            for event in self.events
            if event["event"] == "report" and (nodeid is None or event["nodeid"].endswith(nodeid))
        ]

    def of(self, nodeid: str, when: str = "call") -> Event:
        """The one report of a test's phase."""
        found = [report for report in self.reports(nodeid) if report["when"] == when]
        assert len(found) == 1, f"{len(found)} reports of {nodeid} in {when}"
        return found[0]

    def properties(self, nodeid: str) -> dict[str, str]:
        """All user properties of a test's last report."""
        return dict(self.reports(nodeid)[-1]["properties"])

    def terminal(self) -> list[str]:
        """What the terminal showed, without what differs between two runs of anything."""
        return shown(self.result.outlines, self.path)


def write_suite(files: Mapping[str, str | Path], where: Path) -> Path:
    """Make the directory of a suite below ``where``: file name -> text, or a file of the zoo."""
    directory = where / "suite"
    for name, content in {**files, "recorder.py": ZOO.parent / "recorder.py"}.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, target)
        else:
            target.write_text(textwrap.dedent(content), encoding="utf-8")
    return directory


def read_events(record: Path, directory: Path) -> list[Event]:
    """What the recorder wrote down, made comparable."""
    lines = record.read_text(encoding="utf-8").splitlines()
    return [made_equal(json.loads(line), directory) for line in lines]


_SHARED: dict[str, Recorded] = {}


class Runs:
    """Inner runs of one test, below the pytester's directory."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self._monkeypatch = monkeypatch
        self.ahead = True  # tests may be forked ahead; a recorder that looks like a stranger's keeps them from it
        # PYTHONUNBUFFERED: what is printed in which order is harder to keep with buffers.
        for name in ("COLUMNS", "PYTEST_ADDOPTS", "PYTHONUNBUFFERED", "BUILD_NUMBER", *OF_CI):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PYTHONHASHSEED", "0")
        for name, value in BARE.items():
            monkeypatch.setenv(name, value)

    def autoload(self) -> None:
        """Let pytest find plugins by their entry points, as it does for users."""
        self._monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")

    def install(self, name: str, source: str) -> Path:
        """Write a plugin as somebody installed it: beside the suite, and found by Python. Its file."""
        directory = self.pytester.path / "installed"
        if not directory.exists():
            directory.mkdir()
            self._monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
        file = directory / f"{name}.py"
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return file

    def write(self, files: Mapping[str, str | Path], where: str) -> Path:
        """Make the suite's directory: file name -> text, or a file of the zoo."""
        return write_suite(files, self.pytester.path / where)

    def run(self, directory: Path, *args: str | os.PathLike[str], boxed: bool = True, timeout: float = 180) -> Recorded:
        """Run pytest in a directory made by `write`, in boxes or without the plugin."""
        record, log = directory.parent / "record.jsonl", directory.parent / "log.txt"
        for path in (record, log):
            path.write_bytes(b"")
        self._monkeypatch.setenv("NSBOX_RECORD", str(record))
        self._monkeypatch.setenv("NSBOX_LOG", str(log))
        self._monkeypatch.setenv("NSBOX_RECORDER_IS_OWN", "1" if self.ahead else "")
        autoload = "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ
        ours = ([] if autoload else ["-p", "nsbox"]) + ["--sandbox-all"] if boxed else ["-p", "no:nsbox"]
        before = os.getcwd()
        os.chdir(directory)
        try:
            result = self.pytester.runpytest_subprocess(*ours, "-p", "recorder", *args, timeout=timeout)
        finally:
            os.chdir(before)
        return Recorded(result, directory, read_events(record, directory), log.read_text(encoding="utf-8").splitlines())

    def once(self, name: str, files: Mapping[str, str | Path], *args: str, timeout: float = 180) -> Recorded:
        """A boxed run that all tests of this process share: the first that asks runs it."""
        if name not in _SHARED:
            _SHARED[name] = self.run(self.write(files, "boxed"), *args, timeout=timeout)
        return _SHARED[name]

    def both(self, files: Mapping[str, str | Path], *args: str) -> tuple[Recorded, Recorded]:
        """The suite run plainly, and in boxes."""
        plain = self.run(self.write(files, "plain"), *args, boxed=False)
        boxed = self.run(self.write(files, "boxed"), *args, boxed=True)
        return plain, boxed

    def same(self, files: Mapping[str, str | Path], *args: str, terminal: bool = True) -> tuple[Recorded, Recorded]:
        """`both`, and everything compared."""
        plain, boxed = self.both(files, *args)
        assert_same(plain, boxed, terminal=terminal)
        return plain, boxed


def assert_same(plain: Recorded, boxed: Recorded, *, terminal: bool = True) -> None:
    """Same events in the same order, same exit status, same terminal."""
    assert plain.events, plain.result.stdout.str()
    found = differences(plain, boxed, terminal=terminal)
    if found:
        pytest.fail("\n".join(["plain (-) and boxed (+) differ:", *found]), pytrace=False)


def differences(plain: Recorded, boxed: Recorded, *, terminal: bool = True) -> list[str]:
    """Every difference, as lines to read."""
    found: list[str] = []
    ours, theirs = by_test(boxed.events), by_test(plain.events)
    for key in {**theirs, **ours}:
        found += difference(f"events of {key}", spread(theirs.get(key, ())), spread(ours.get(key, ())))
    orders = [[" ".join(outline(event)) for event in each.events] for each in (plain, boxed)]
    found += difference("order of events", *orders)
    found += difference("exit status", [str(plain.result.ret)], [str(boxed.result.ret)])
    timed = [[bool(report["duration"]) for report in each.reports()] for each in (plain, boxed)]
    found += difference("durations", *([str(one) for one in each] for each in timed))
    if terminal:
        found += difference("terminal", plain.terminal(), boxed.terminal())
        found += difference("standard error", plain.result.errlines, boxed.result.errlines)
    return found


def difference(title: str, plain: Sequence[str], boxed: Sequence[str]) -> list[str]:
    """A unified difference below a title; nothing if there is none."""
    lines = list(difflib.unified_diff(plain, boxed, lineterm="", n=2))[2:]
    return [f"--- {title}", *lines] if lines else []


def spread(events: Sequence[Event]) -> list[str]:
    """Events as lines, one for each field, and for each line of a text."""
    lines = []
    for event in events:
        lines.append(" ".join(outline(event)))
        for name, value in event.items():
            lines += [f"    {name}: {line}" for line in json.dumps(value, ensure_ascii=False).split("\\n")]
    return lines


def by_test(events: Sequence[Event]) -> dict[str, list[Event]]:
    """Comparable events by test, so that a difference shows small."""
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event.get("nodeid") or event["event"], []).append(comparable(event))
    return found


def comparable(event: Event) -> Event:
    """What must be the same in both runs."""
    left = {name: value for name, value in event.items() if name not in ("pid", "duration", "seconds")}
    if "properties" in left:
        left["properties"] = [pair for pair in left["properties"] if not pair[0].startswith("sandbox.")]
    return left


def outline(event: Event) -> tuple[str, str, str]:
    return event["event"], event.get("nodeid") or "", event.get("when") or ""


def made_equal(value: Any, directory: Path) -> Any:
    """Without what differs from run to run: the directory, the base temp, addresses of objects."""
    if isinstance(value, str):
        value = value.replace(str(directory), "<suite>")
        value = re.sub(rf"{re.escape(str(directory.parent.parent))}/(plain|boxed)", "<run>", value)
        value = re.sub(r"\S*/runpytest-\d+(/popen-gw\d+)?", "<basetemp>", value)
        value = re.sub(r"\S*pluggy/_\w+\.py:\d+: in __call__\n.*\n", "", value)  # in pytest's own traceback
        value = re.sub(r", (nsbox|nsbox_session|sandbox)(?=,)", "", value)  # in pytest's list of available fixtures
        value = re.sub(r" in \d+\.\d\ds (=+)", r" in <seconds> \1", value)  # of a pytest that a test runs
        return re.sub(r"\b0x[0-9a-f]{6,}|(?<=id=')\d{9,}", "0x<address>", value)
    if isinstance(value, list):
        return [made_equal(element, directory) for element in value]
    if isinstance(value, dict):
        return {name: made_equal(element, directory) for name, element in value.items()}
    return value


HEADER = ("sandbox: ", "rootdir: ", "plugins: ", "platform ", "cachedir: ", "sandbox usage written")


def shown(lines: Sequence[str], directory: Path) -> list[str]:
    """A terminal's lines without header, times, rulers and our own section."""
    kept: list[str] = []
    ours = False
    for line in lines:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if ours and re.match(r"\d+ tests? in boxes", plain):
            ours = False  # that is the last line of our section
            continue
        ruler = re.fullmatch(r"[=!]+ (.*?) [=!]+", plain)
        if ruler:
            ours = ruler[1].startswith("sandbox")
            text = f"== {re.sub(r' in [0-9.]+s.*', '', ruler[1])} =="
        else:
            text = re.sub(r"\b\d+\.\d\ds\b", "<seconds>", made_equal(line, directory))
            text = re.sub(r"cache from \d+:\d+:\d+ ago", "cache from <time> ago", text)
        if not ours and not line.startswith(HEADER):
            kept.append(text)
    return kept
