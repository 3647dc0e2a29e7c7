"""What the user reads: the header, the report of a test that died, the summary table."""

from __future__ import annotations

import keyword
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_nsbox.policy.record import keyword_record
from pytest_nsbox.policy.spec import spelled
from pytest_nsbox.results import Results, attach, host_facts, write_json, write_whole

__all__ = ["Facts", "Summary", "attach", "ending_repr", "header", "note_limit", "place_of", "placed"]

# --- header ---------------------------------------------------------------------------------------------------------


@keyword_record
class Facts:
    """What boxes of this session are made of.

    ``mode``: "shifted" (root, files idmapped), "identity" (root, ids as on the host),
    "rootless" (ordinary user) or "nested" (root of another user namespace).
    ``cgroup_version``: None if no group can be made; ``cgroup_driver``: "cgroupfs" or "systemd"; ``controllers``: those
    that limits can use here.
    """

    mode: str
    cgroup_version: int | None = None
    cgroup_driver: str = "cgroupfs"
    controllers: tuple[str, ...] = ()


_MODES = {
    "shifted": "as root, with idmapped files",
    "identity": "as root, with the host's ids: nested boxes and writing to /proc/sys and cgroups are off",
    "rootless": "rootless",
    "nested": "inside another container",
}
# What limits of each controller are called as keys.
_KEYS = {
    "cpu": ("cpu", "cpu_shares"),
    "cpuset": ("cpuset",),
    "memory": ("mem", "swap"),
    "pids": ("pids",),
}


def header(*, mode: str, facts: Facts | None, defaults: Mapping[str, object] | None = None) -> list[str]:
    """Lines of pytest's report header.

    ``mode`` tells which tests get a box: "all", "marked" or "off". Without ``facts`` (nobody asked the warden, or this
    is the controller of xdist) only the wish is told. ``defaults``: keys set for every box, as from Spec.shown.
    """
    if mode == "off":
        return ["sandbox: off (--sandbox-off), marked tests run without a box"]
    which = "every test in a box" if mode == "all" else "marked tests in boxes"
    lines = _describe(which, facts)
    if defaults:
        lines.append(f"sandbox: defaults: {' '.join(f'{key}={value}' for key, value in defaults.items())}")
    return lines


def _describe(which: str, facts: Facts | None) -> list[str]:
    """The header's lines on ``which`` tests get a box, and on what boxes are made of here."""
    if facts is None:
        return [f"sandbox: {which}"]
    lines = [f"sandbox: {which}, {_MODES.get(facts.mode, facts.mode)}"]
    off = [key for controller, keys in _KEYS.items() if controller not in facts.controllers for key in keys]
    if facts.cgroup_version is None:
        lines.append("sandbox: no cgroup; off: " + ", ".join([*off, "usage of memory and CPU"]))
    else:
        on = [key for controller, keys in _KEYS.items() if controller in facts.controllers for key in keys]
        told = f"sandbox: cgroup v{facts.cgroup_version} ({facts.cgroup_driver}); on: {', '.join(on) or 'no limit'}"
        lines.append(told + (f"; off: {', '.join(off)}" if off else ""))
    if off:
        lines[-1] += " (--sandbox-doctor tells why)"
    return lines


# --- a test that died -----------------------------------------------------------------------------------------------


def placed(error: BaseException, path: str, lineno: int, name: str) -> BaseException:
    """Give ``error`` a traceback of one entry: function ``name`` at ``path``:``lineno`` (from 1).

    The test's process is gone and so are its frames; the plugin's own would mislead. So the error is raised from a
    function that claims the test's place: pytest then shows the test's source, and the crash line names the test.
    """
    function = name if name.isidentifier() and not keyword.iskeyword(name) else "test"
    source = "\n" * (lineno - 1) + f"def {function}(error): raise error from None"
    namespace: dict[str, Callable[[BaseException], NoReturn]] = {}
    exec(compile(source, path, "exec"), namespace)
    try:
        namespace[function](error.with_traceback(None))
    except BaseException as caught:
        if caught is not error:
            raise
        return error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)


def place_of(item: pytest.Item) -> tuple[str, int, str]:
    """Path, line (from 1) and function name of a test, for :func:`placed`."""
    _, lineno, _ = item.reportinfo()
    return str(item.path), (lineno or 0) + 1, getattr(item, "originalname", None) or item.name


def ending_repr(excinfo: pytest.ExceptionInfo[BaseException], extra_text: Mapping[str, str]) -> Any:
    """A longrepr of an ending: the error's text, then the titled texts; its crash line is the error's first line."""
    representation = excinfo.getrepr(style="value")
    if representation.reprcrash is not None:
        representation.reprcrash.message = first_line(str(excinfo.value))
    for title, text in extra_text.items():
        if text.strip():
            representation.addsection(title, text.rstrip("\n"), sep="-")
    return representation


def first_line(text: str) -> str:
    """The first line of a text, or an empty one."""
    return text.splitlines()[0] if text else ""


def note_limit(report: pytest.TestReport, text: str) -> None:
    """Tell of a limit that the test met and outlived: a section, and the end of the message if the test failed."""
    report.sections.append(("sandbox", text))
    if not report.failed:
        return
    if isinstance(report.longrepr, str):
        report.longrepr = f"{report.longrepr}\n{text}"
        return
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = f"{crash.message}\n{text}"
    entries = getattr(getattr(longrepr, "reprtraceback", None), "reprentries", None)
    lines = getattr(entries[-1], "lines", None) if entries else None
    if isinstance(lines, list):
        lines.extend(f"E   {line}" for line in text.splitlines())
    elif hasattr(longrepr, "addsection"):
        longrepr.addsection("sandbox", text)


def terminal_width() -> int:
    """Columns of the terminal, as pytest takes them: a pipe counts as 80, and so does a width below 40."""
    columns = shutil.get_terminal_size(fallback=(80, 24)).columns
    return columns if columns >= 40 else 80


# --- the plugin -----------------------------------------------------------------------------------------------------


class Summary:
    """Collects the reports of a run; at its end writes the JSON file and the report page, and the table into the
    terminal summary.

    Register it in the process that logs reports for the user: not in a worker of xdist. ``rows`` of the table (None:
    all); ``json_path`` and ``html_path`` are taken relative to the directory that pytest was started in; ``about``
    tells the page what boxes are made of.
    """

    def __init__(
        self,
        *,
        rows: int | None = 10,
        json_path: Path | None = None,
        html_path: Path | None = None,
        about: Callable[[], Sequence[str]] = tuple,
        host: Callable[[], Mapping[str, object]] = host_facts,
    ) -> None:
        self._rows = rows
        # Made absolute now: a test may leave the process in another directory.
        self._json_path = json_path.absolute() if json_path is not None else None
        self._html_path = html_path.absolute() if html_path is not None else None
        self._about = about
        self._host = host
        self._began = time.time()
        self._problems: list[str] = []  # with files
        self._written: list[str] = []
        self.results = Results(keep_texts=html_path is not None)
        self._kept: list[tuple[str, str]] = []  # nodeid and path
        self.notes: list[str] = []  # lines for the user, shown once collection is over

    def pytest_report_collectionfinish(self) -> list[str]:
        """Show the notes."""
        return self.notes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a report."""
        self.results.add(report)
        kept = getattr(report, "sandbox_kept", None)
        if kept is not None:
            self._kept.append((report.nodeid, kept))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files; one that cannot be written makes an otherwise good run exit with 4."""
        if session.config.option.collectonly:
            return
        if self._json_path is not None:
            self._write("json", "usage", self._json_path, self._write_json)
        if self._html_path is not None:
            self._write("html", "report", self._html_path, partial(self._write_page, session.config.rootpath.name))
        if self._problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def _write(self, kind: str, what: str, path: Path, write: Callable[[Path], None]) -> None:
        try:
            write(path)
        except OSError as error:
            self._problems.append(f"--sandbox-{kind}: cannot write {path}: {error.strerror or error}")
        else:
            self._written.append(f"sandbox {what} written to {path}")

    def _write_json(self, path: Path) -> None:
        write_json(path, self._host(), self.results.all())

    def _write_page(self, name: str, path: Path) -> None:
        from pytest_nsbox.html.page import Entry, Page, render
        from pytest_nsbox.policy import table

        began = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self._began))
        tests = [
            Entry(
                nodeid=result.nodeid,
                outcome=result.outcome,
                limits=spelled(result.limits),
                usage=result.usage,
                texts=result.texts or (),
            )
            for result in self.results.all()
        ]
        page = Page(
            name=name,
            when=f"{began}, took {table.short_seconds(time.time() - self._began)}",
            about=self._about(),
            host=self._host(),
            tests=tests,
        )
        write_whole(path, render(page))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the table."""
        boxed = self.results.boxed()
        if boxed and self._rows != 0:
            from pytest_nsbox.policy import table

            shown = table.heaviest(boxed, self._rows)
            terminalreporter.write_sep("=", self._title(len(shown), len(boxed)))
            head, *lines = table.render(shown, terminal_width())
            terminalreporter.write_line(head, bold=True)
            for (_, usage), line in zip(shown, lines, strict=True):
                terminalreporter.write_line(line, red=bool(usage.get("oom_kills")))
            terminalreporter.write_line(table.totals(boxed))
        if self._kept:
            terminalreporter.write_sep("=", "sandbox: files of failed tests")
            for nodeid, path in self._kept:
                terminalreporter.write_line(f"{nodeid}: {path}")
            terminalreporter.write_line("rm -r takes them away; nothing else does")
        for problem in self._problems:
            terminalreporter.write_line(problem, red=True)
        for line in self._written if self.results.all() else ():
            terminalreporter.write_line(line)

    def _title(self, shown: int, every: int) -> str:
        if shown == every:
            return "sandbox usage"
        return f"sandbox usage: {shown} heaviest of {every} (CPU, memory and wall time)"
