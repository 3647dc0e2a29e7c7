"""Coverage of forked tests: measured in the child, sent as plain data, added to pytest's own measurement.

Coverage.py keeps what it measured in the memory of its collector until it is saved. The child sends its collector's
data instead of saving them. Data files that other processes of the test save end with its box, so the child reads them
first. (``CoverageData.dumps()`` would be SQL that the parent executes: not from a sandboxed test. No more is a file.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_nsbox.real import os

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Data = dict[str, dict[str, dict[str, list[Any]]]]  # context -> "lines" | "arcs" | "tracers" -> file -> values


def _current() -> Any:
    """The running `coverage.Coverage`, or None."""
    import coverage

    current = getattr(coverage.Coverage, "current", None)
    found = current() if current is not None else None
    return found if getattr(found, "_collector", None) is not None else None


class Measured:
    """In the child: stands in for the collector's `CoverageData` and keeps what it is given."""

    def __init__(self, collector: Any, files: Files | None, *, branch: bool) -> None:
        self._collector = collector
        self._files, self._branch = files, branch
        self._context = getattr(collector.covdata, "_current_context", None) or ""
        self._data: Data = {}

    @classmethod
    def start(cls) -> Measured | None:
        """Leave what was measured so far to the parent, and record from here on; None without coverage."""
        found = _current()
        if found is None:
            return None
        collector = found._collector
        collector._clear_data()
        files = Files(collector.covdata.base_filename()) if _is_saved_by_others(found.config) else None
        measured = cls(collector, files, branch=bool(found.config.branch))
        collector.covdata = measured
        return measured

    def collect(self) -> Data:
        """What the child measured since the last call, as plain data."""
        self._collector.flush_data()
        for path in self._files.new() if self._files is not None else ():
            self._add_file(path)
        data, self._data = self._data, {}
        return data

    def _add_file(self, path: str) -> None:
        """Take in what another process saved, if it is what this measurement can hold."""
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        try:
            saved = CoverageData(path)
            saved.read()
            if saved.has_arcs() is not self._branch:
                return
            for context in saved.measured_contexts():
                saved.set_query_context(context)
                self._add_context(context, saved)
        except (CoverageException, OSError):
            return  # cut short by the end of its process

    def _add_context(self, context: str, saved: Any) -> None:
        before, self._context = self._context, context
        for file in saved.measured_files():
            if self._branch:
                self.add_arcs({file: saved.arcs(file) or ()})
            else:
                self.add_lines({file: saved.lines(file) or ()})
            if tracer := saved.file_tracer(file):
                self.add_file_tracers({file: tracer})
        self._context = before

    def _of_context(self, kind: str) -> dict[str, list[Any]]:
        return self._data.setdefault(self._context, {}).setdefault(kind, {})

    # The part of CoverageData that a collector uses.

    def set_context(self, context: str | None) -> None:
        self._context = context or ""

    def add_lines(self, lines: Mapping[str, Iterable[int]]) -> None:
        for file, numbers in lines.items():
            self._of_context("lines").setdefault(file, []).extend(numbers)

    def add_arcs(self, arcs: Mapping[str, Iterable[tuple[int, int]]]) -> None:
        for file, pairs in arcs.items():
            self._of_context("arcs").setdefault(file, []).extend(pairs)

    def add_file_tracers(self, tracers: Mapping[str, str]) -> None:
        for file, plugin in tracers.items():
            self._of_context("tracers")[file] = [plugin]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"coverage asked the sandboxed test's data for {name!r}")


class Files:
    """The data files that appear beside a measurement's own, each told once."""

    def __init__(self, base: str) -> None:
        self._directory, name = os.path.split(base)
        self._prefix = f"{name}."
        self._known = self._names()

    def new(self) -> list[str]:
        """Paths of those that are whole: a journal of SQLite lies beside one that is being written."""
        found = self._names()
        new = found - self._known
        whole = {name for name in new if not name.endswith("-journal") and f"{name}-journal" not in found}
        self._known |= whole
        return [os.path.join(self._directory, name) for name in sorted(whole)]

    def _names(self) -> set[str]:
        try:
            return {name for name in os.listdir(self._directory) if name.startswith(self._prefix)}
        except OSError:  # the box has no such directory
            return set()


def _is_saved_by_others(config: Any) -> bool:
    """Say if processes that a test starts are measured: by coverage's settings, or by its older variable."""
    return bool(
        getattr(config, "patch", None)
        or "multiprocessing" in (getattr(config, "concurrency", None) or ())
        or "COVERAGE_PROCESS_START" in os.environ
    )


class Gathered:
    """In pytest's process: the union of what the children measured, kept small and in memory until the end."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], set[int]] = {}
        self._arcs: dict[tuple[str, str], set[tuple[int, int]]] = {}
        self._tracers: dict[str, str] = {}

    def add(self, data: Data) -> None:
        """Take in what `Measured.collect` gave."""
        for context, kinds in data.items():
            for file, numbers in kinds.get("lines", {}).items():
                self._lines.setdefault((context, file), set()).update(numbers)
            for file, pairs in kinds.get("arcs", {}).items():
                self._arcs.setdefault((context, file), set()).update((first, second) for first, second in pairs)
            for file, plugins in kinds.get("tracers", {}).items():
                self._tracers[file] = plugins[0]

    def hand_over(self) -> None:
        """Add everything to the running measurement, before whoever started it saves and reports."""
        if not (self._lines or self._arcs):
            return
        found = _current()
        if found is None:
            return
        data = found.get_data()
        before = getattr(data, "_current_context", None)
        for context, group in _by_context(self._lines).items():
            data.set_context(context)
            data.add_lines(group)
        for context, arcs in _by_context(self._arcs).items():
            data.set_context(context)
            data.add_arcs(arcs)
        if self._tracers:
            data.add_file_tracers(self._tracers)
        data.set_context(before)
        self.__init__()  # type: ignore[misc]


def _by_context(found: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for (context, file), values in found.items():
        groups.setdefault(context, {})[file] = values
    return groups
