"""What a run's reports say in the end, test by test, and the file of ``--sandbox-json``.

The usage of a test travels in its reports' ``user_properties`` (names ``sandbox.*``) and its limits in the report
attribute ``sandbox_limits``; both survive pytest's report serialisation, so under xdist the controller has them too.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_nsbox import __version__
from pytest_nsbox.policy.limits import LIMITS
from pytest_nsbox.policy.usage import Usage, from_properties

if TYPE_CHECKING:
    from pytest_nsbox.policy.table import Row

SCHEMA = 1


# --- usage and limits on the report ---------------------------------------------------------------------------------


def attach(report: pytest.TestReport, properties: Iterable[tuple[str, object]], spec: Mapping[str, object]) -> None:
    """Put a test's usage (named ``sandbox.*``) and the limits among its spec's values on its report.

    ``spec``: as from Spec.to_json. Limits are kept by marker key, as plain JSON: bytes, CPUs, microseconds
    (cpu_period), seconds, ``{"nofile": [soft, hard]}``, ``{"rbps": number}``.
    """
    report.user_properties.extend(properties)
    # Not a property: their names are fixed, and junit would show every attribute as one.
    limits = {limit.name: spec[limit.name] for limit in LIMITS if limit.name in spec}
    tables: Any = {name: limits[name] for name in ("io", "hugetlb") if name in limits}
    limits |= {name: dict(rows) for name, rows in tables.items()}
    report.__dict__["sandbox_limits"] = limits
    ulimits: Any = spec.get("ulimits")
    if ulimits:
        report.__dict__["sandbox_limits"]["ulimits"] = {name: [soft, hard] for name, soft, hard in ulimits}


def tell_kept(report: pytest.TestReport, path: str) -> None:
    """Put on its report where the files of a failed test are kept."""
    report.sections.append(("sandbox kept", path))
    report.__dict__["sandbox_kept"] = path


# --- collected results ----------------------------------------------------------------------------------------------

_RANKS = {"passed": 1, "skipped": 2, "xfailed": 2, "xpassed": 2, "rerun": 3, "error": 4, "failed": 5}


def outcome_of(report: pytest.TestReport) -> str | None:
    """What one report says about its test; None when it says nothing (a setup that passed)."""
    if report.failed:
        return "error" if report.when in ("setup", "teardown") else "failed"
    if _is_subtest(report):
        return None  # only its failure concerns the test
    if hasattr(report, "wasxfail"):
        return {"skipped": "xfailed", "passed": "xpassed"}.get(report.outcome, report.outcome)
    if report.passed and report.when != "call":
        return None
    return report.outcome


def _is_subtest(report: pytest.TestReport) -> bool:
    # pytest >= 9 and pytest-subtests: both give the report of a subtest its context.
    return hasattr(report, "context")


LONGEST_TEXT = 100_000  # characters, of each


def texts_of(report: pytest.TestReport) -> list[tuple[str, str]]:
    """(title, text) of what one report tells a reader: how the test failed, with what it had written by then; why it
    was skipped; what it has from its box.
    """
    found = []
    if report.failed:
        found.append((f"{report.when} failed", report.longreprtext))
    elif hasattr(report, "wasxfail"):
        found.append(("xfail", report.wasxfail))
    elif report.skipped:
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        found.append(("skipped", told.removeprefix("Skipped: ")))
    found += [section for section in report.sections if report.failed or section[0].startswith("sandbox")]
    return [(title, _shortened(text)) for title, text in found if text.strip()]


def _shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n... {len(text) - LONGEST_TEXT} characters are left out ...\n{text[-half:]}"


class Result:
    """One test, over its phases. ``outcome``: failed, error, rerun, xfailed, xpassed, skipped, passed, or
    "interrupted" when the run ended in the midst of it. ``texts``: (title, text) of what it tells besides, if those are
    kept."""

    def __init__(self, nodeid: str, *, keeps_texts: bool = False) -> None:
        self.nodeid = nodeid
        self.texts: list[tuple[str, str]] | None = [] if keeps_texts else None
        self.outcome = "interrupted"
        self.limits: dict[str, object] = {}
        self.usage: Usage = {}
        self.begun = False

    def add(self, report: pytest.TestReport) -> None:
        """Take in the report of a phase (or of a subtest)."""
        said = outcome_of(report)
        if said is not None and _RANKS.get(said, 3) > _RANKS.get(self.outcome, 0):
            self.outcome = said
        self.begun = self.begun or report.when == "setup"
        self.limits.update(getattr(report, "sandbox_limits", {}))
        if report.user_properties:
            self.usage.update(from_properties(report.user_properties))
        if self.texts is not None:
            # Of what was captured, a report has that of the phases before as well.
            self.texts += [text for text in texts_of(report) if text not in self.texts]

    def as_json(self) -> dict[str, object]:
        """The entry of ``--sandbox-json``."""
        return {"nodeid": self.nodeid, "outcome": self.outcome, "limits": self.limits, "usage": self.usage}


class Results:
    """All tests of a run in the order of their first reports."""

    def __init__(self, *, keep_texts: bool = False) -> None:
        self._keep_texts = keep_texts
        self._order: list[Result] = []
        self._latest: dict[tuple[str, str], Result] = {}

    def add(self, report: pytest.TestReport) -> None:
        """Take in a report as it is logged."""
        # xdist's --dist=each runs one nodeid in several workers at once.
        key = (report.nodeid, str(getattr(report, "worker_id", "")))
        result = self._latest.get(key)
        if result is None or (report.when == "setup" and result.begun and result.outcome != "rerun"):
            result = self._latest[key] = Result(report.nodeid, keeps_texts=self._keep_texts)
            self._order.append(result)
        elif report.when == "setup" and result.begun:
            # The next attempt of a test that is run again: it alone counts, and it stays one test.
            result.__init__(report.nodeid, keeps_texts=self._keep_texts)  # type: ignore[misc]
        result.add(report)

    def all(self) -> list[Result]:
        """Every test, boxed or not."""
        return list(self._order)

    def boxed(self) -> list[Row]:
        """Name and usage of the tests that ran in a box."""
        return [(result.nodeid, result.usage) for result in self._order if result.usage]


# --- JSON -----------------------------------------------------------------------------------------------------------


def host_facts() -> dict[str, object]:
    """The ``host`` entry of ``--sandbox-json``: what makes figures of two machines comparable."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "pytest": pytest.__version__,
        "pytest_nsbox": __version__,
    }


def write_json(path: Path, host: Mapping[str, object], results: Sequence[Result]) -> None:
    """Write ``--sandbox-json``; or OSError."""
    write_document(path, {"schema": SCHEMA, "host": dict(host), "tests": [result.as_json() for result in results]})


def write_document(path: Path, document: Mapping[str, object]) -> None:
    """Write a JSON file as `write_whole` does."""
    write_whole(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the whole new one, never a part; or OSError."""
    # A nodeid may hold a file name that is no UTF-8: Python's escape of its bytes is JSON's too.
    data = text.encode("utf-8", "backslashreplace")
    target = Path(os.path.realpath(path))  # else the rename would replace a link instead of the file behind it
    with contextlib.suppress(FileExistsError):  # a file stands there: opening ours says it better
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # /dev/stdout, a fifo: nothing to replace
        return
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with part.open("xb") as stream:
            stream.write(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
