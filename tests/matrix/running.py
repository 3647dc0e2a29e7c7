"""Runs a row plainly and in boxes, and says in which of four ways the two are the same."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.acceptance.comparing import (
    ZOO,
    Recorded,
    comparable,
    difference,
    differences,
    made_equal,
    read_events,
    spread,
    write_suite,
)
from tests.matrix.row import Row

WAYS = ("outcomes", "counts", "exit code", "report")
TIMEOUT = 180.0  # seconds for one run of pytest
# PYTHONUNBUFFERED: what is printed in which order is harder to keep with buffers.
_OF_CI = ("CI", "BUILD_NUMBER", "COLUMNS", "PYTHONUNBUFFERED", "VIRTUAL_ENV")
_UNWANTED = ("PYTEST_", "COV_", "COVERAGE_", "TOX_", "NSBOX_", *_OF_CI)


class Compared(NamedTuple):
    """``counts`` of the plain run; ``found``: way -> lines of a difference, none where it is the same."""

    counts: str
    found: Mapping[str, Sequence[str]]
    problem: str  # the row itself is wrong: its plain run does not give what it says


def compare(row: Row, where: Path, python_path: Sequence[str] = ()) -> Compared:
    """Run the row in directories below ``where``, which does not exist yet."""
    plain = _run(row, where / "plain", python_path, boxed=False)
    boxed = _run(row, where / "boxed", python_path, boxed=True)
    counts = _counts(plain)
    problem = "" if _parsed(counts) == _parsed(row.gives) else f"plain pytest gives {counts!r}, not {row.gives!r}"
    found = {
        "outcomes": difference("outcomes", _outcomes(plain, row), _outcomes(boxed, row)),
        "counts": difference("counts", [counts], [_counts(boxed)]),
        "exit code": difference("exit code", [str(plain.result.ret)], [str(boxed.result.ret)]),
        "report": _reports(row, plain, boxed),
    }
    if problem:
        problem = "\n".join([problem, *plain.result.outlines[-60:], *plain.result.errlines[-20:]])
    return Compared(counts, found, problem)


def _run(row: Row, where: Path, python_path: Sequence[str], *, boxed: bool) -> Recorded:
    directory = write_suite(row.files, where)
    (where / "tmp").mkdir()
    record = where / "record.jsonl"
    env = {name: value for name, value in os.environ.items() if not name.startswith(_UNWANTED)}
    for name in ("PYTEST_NSBOX_CGROUP_PARENT", "NSBOX_VM"):
        if name in os.environ:
            env[name] = os.environ[name]
    env |= {
        "NSBOX_RECORD": str(record),
        "NSBOX_LOG": str(where / "log.txt"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_DEBUG_TEMPROOT": str(where / "tmp"),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([*python_path, str(directory)]),
        **row.env,
    }
    ours = ["-p", "nsbox", "--sandbox-all"] if boxed else ["-p", "no:nsbox"]
    plugins = [word for plugin in row.plugins for word in ("-p", plugin)]
    for args in (*row.before, row.args):
        record.write_bytes(b"")
        (where / "log.txt").write_bytes(b"")
        command = [sys.executable, "-m", "pytest", *ours, *plugins, "-p", "recorder", *args]
        result = _on_terminal(command, directory, env, row.types) if row.types else _on_pipes(command, directory, env)
    events = [_stable_event(event, row) for event in read_events(record, directory)]
    return Recorded(result, directory, events, (where / "log.txt").read_text().splitlines())


def _on_pipes(command: Sequence[str], directory: Path, env: Mapping[str, str]) -> pytest.RunResult:
    done = subprocess.run(
        command, cwd=directory, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False
    )
    texts = [stream.decode("utf-8", "replace").splitlines() for stream in (done.stdout, done.stderr)]
    return pytest.RunResult(done.returncode, texts[0], texts[1], 0.0)


def _on_terminal(command: Sequence[str], directory: Path, env: Mapping[str, str], types: str) -> pytest.RunResult:
    """Run a command in the foreground of a terminal of its own, which does not echo."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    os.write(master, types.encode())
    shell = (
        f'exec {shlex.join(command)} <>"{os.ttyname(slave)}" >&0 2>&1'  # a session leader's first terminal is its own
    )
    process = subprocess.Popen(
        ["/bin/sh", "-c", shell],
        cwd=directory,
        env={**env, "TERM": "dumb", "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    timer = threading.Timer(TIMEOUT, process.kill)
    timer.start()
    parts = []
    try:
        parts.append(os.read(master, 1 << 16))
        os.close(slave)  # not before the shell has it: the last one that is closed throws away what was typed
        while part := os.read(master, 1 << 16):
            parts.append(part)
    except OSError:  # EIO: all ends of the other side are closed
        pass
    finally:
        timer.cancel()
        os.close(master)
    lines = b"".join(parts).decode("utf-8", "replace").replace("\r", "").splitlines()
    return pytest.RunResult(process.wait(), lines, [], 0.0)


def _counts(run: Recorded) -> str:
    """The numbers of pytest's last line."""
    for line in reversed(run.result.outlines):
        text = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if re.search(r"\d+ \w+.* in [0-9.]+s|no tests (ran|collected) in ", text):
            return re.sub(r" in [0-9.]+s.*", "", text.strip("=! "))
    return ""


def _parsed(counts: str) -> dict[str, str]:
    return {name.removesuffix("s"): number for number, name in re.findall(r"(\d+) ([a-z]+)", counts)}


def _outcomes(run: Recorded, row: Row) -> list[str]:
    lines = [
        " ".join(str(report.get(name)) for name in ("nodeid", "when", "outcome", "context")) for report in run.reports()
    ]
    return sorted(lines) if row.several_processes else lines


def _reports(row: Row, plain: Recorded, boxed: Recorded) -> list[str]:
    """All that reporters hear, the terminal shows and files hold."""
    if row.several_processes:
        found = difference("reports", *(_unordered(run) for run in (plain, boxed)))
    else:
        found = differences(plain, boxed, terminal=False)
        shown = [[_stable(line, row) for line in run.terminal()] for run in (plain, boxed)]
        found += difference("terminal", *shown)
        errors = [[_stable(made_equal(line, run.path), row) for line in run.result.errlines] for run in (plain, boxed)]
        found += difference("standard error", *errors)
    logs = [run.log for run in (plain, boxed)]
    found += difference("what the suite logged", *((sorted(log) for log in logs) if row.several_processes else logs))
    for name in row.produces:
        found += difference(name, *(_produced(run, name, row) for run in (plain, boxed)))
    return found


def _unordered(run: Recorded) -> list[str]:
    kept = [comparable(event) for event in run.events if event["event"] == "report"]
    for event in kept:
        event["others"] = {name: value for name, value in event["others"].items() if "report_type" not in name}
    phases = ("setup", "call", "teardown")
    kept.sort(key=lambda event: (event["nodeid"], phases.index(event["when"]), str(event)))
    return spread(kept)


def _stable_event(value: Any, row: Row) -> Any:
    if isinstance(value, str):
        return _stable(value, row)
    if isinstance(value, list):
        return [_stable_event(element, row) for element in value]
    if isinstance(value, dict):
        return {name: _stable_event(element, row) for name, element in value.items()}
    return value


def _stable(line: str, row: Row) -> str:
    return re.sub(row.ignore, "<ignored>", line) if row.ignore else line


def _json(path: Path, run: Recorded) -> Any:
    """A JSON file without our properties."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: left for name, each in value.items() if (left := without(each)) != [] or each == []}
        if isinstance(value, list):
            ours = [
                each for each in value if isinstance(each, dict) and str(next(iter(each), "")).startswith("sandbox.")
            ]
            return [without(each) for each in value if each not in ours]
        return value

    return without(made_equal(json.loads(path.read_text(encoding="utf-8")), run.path))


def _produced(run: Recorded, name: str, row: Row) -> list[str]:
    path = run.path / name
    if not path.exists():
        return [f"no {name}"]
    if path.is_dir():
        return sorted(str(each.relative_to(path)) for each in path.rglob("*"))
    if path.suffix == ".json":
        return [_stable(line, row) for line in json.dumps(_json(path, run), indent=1).splitlines()]
    text: str = made_equal(path.read_text(encoding="utf-8"), run.path)
    text = re.sub(r'<property name="sandbox\.[^>]*/>', "", text).replace("<properties></properties>", "")
    text = re.sub(r"(<testcase [^>]*[^/])></testcase>", r"\1 />", text)
    text = re.sub(r'(time|timestamp|hostname)="[^"]*"', r'\1="…"', text)
    return [_stable(line, row) for line in text.replace("><", ">\n<").splitlines()]


__all__ = ["WAYS", "ZOO", "Compared", "compare"]
