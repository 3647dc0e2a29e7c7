"""At the end of a run: limits suggested from what tests used, and whether they use more than they did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_nsbox.policy import baseline, suggest
from pytest_nsbox.results import host_facts, write_document

if TYPE_CHECKING:
    from pytest_nsbox.policy.usage import Usage
    from pytest_nsbox.results import Result, Results


class Suggestions:
    """``--sandbox-suggest``."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the suggestions."""
        boxed = [result for result in self._results.all() if result.usage]
        passed = [(result.nodeid, result.usage) for result in boxed if _fit(result)]
        terminalreporter.write_sep("=", "sandbox suggestions")
        for line in suggest.render(passed, len(boxed) - len(passed)):
            terminalreporter.write_line(line)


def _fit(result: Result) -> bool:
    """Whether what the test used is what it needs."""
    return result.outcome in ("passed", "xfailed", "xpassed") and not result.usage.get("oom_kills")


class Comparison:
    """``--sandbox-baseline``, with or without ``--sandbox-fail-on-increase``.

    Raises UsageError at once for a file that is no baseline.
    """

    def __init__(self, results: Results, path: Path, percent: float | None) -> None:
        self._results = results
        # Made absolute now: a test may leave the process in another directory.
        self._path = path.absolute()
        self._name = str(path)
        self._percent = percent
        self._known = self._read()
        self._growths: list[baseline.Growth] = []
        self._lines: list[str] = []
        self._problem = ""

    def _read(self) -> baseline.Baseline | None:
        try:
            return baseline.Baseline.from_json(json.loads(self._path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            accepted = "a new file, or one that --sandbox-baseline has written"
            raise pytest.UsageError(f"--sandbox-baseline={self._name}: {error} (accepted: {accepted})") from None

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Compare, or keep what was used; a growth makes an otherwise good run fail."""
        if session.config.option.collectonly:
            return
        usages: Mapping[str, Usage] = {
            result.nodeid: result.usage for result in self._results.all() if result.usage and _fit(result)
        }
        host = host_facts()
        if self._percent is not None and self._known is not None:
            self._growths = self._known.grown(usages, self._percent, host)
            self._lines = self._known.notes(usages, host)
            if self._growths and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return
        if not usages:
            self._lines = [f"no test passed in a box: nothing was written to {self._name}"]
            return
        known = self._known or baseline.Baseline()
        known.add(usages, host)
        try:
            write_document(self._path, known.as_json())
        except OSError as error:
            self._problem = f"--sandbox-baseline: cannot write {self._path}: {error.strerror or error}"
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        runs = max(len(samples) for counters in known.tests.values() for samples in counters.values())
        tests = f"{len(usages)} test{'' if len(usages) == 1 else 's'}"
        self._lines = [f"usage of {tests} added to {self._name}, which holds {runs} run{'' if runs == 1 else 's'}"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table of what grew."""
        if self._growths:
            terminalreporter.write_sep("=", f"sandbox: usage grew by more than {self._percent:g}% of {self._name}")
            head, *rows = baseline.render(self._growths)
            terminalreporter.write_line(head, bold=True)
            for row in rows:
                terminalreporter.write_line(row, red=True)
        elif self._percent is not None and self._known is not None:
            terminalreporter.write_line(f"sandbox: no usage grew by more than {self._percent:g}% of {self._name}")
        for line in self._lines:
            terminalreporter.write_line(f"sandbox: {line}")
        if self._problem:
            terminalreporter.write_line(self._problem, red=True)
