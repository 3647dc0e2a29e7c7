"""One pytest session with boxes: what starts when, and what ends when."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import reporting, settings
from pytest_nsbox.places import volumes_directory
from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.record import replace
from pytest_nsbox.policy.spec import Spec

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterator, Mapping

    from pytest_nsbox.boxes import Boxes
    from pytest_nsbox.kept import Kept
    from pytest_nsbox.placement import Placement
    from pytest_nsbox.protocol import Lockstep
    from pytest_nsbox.results import Results
    from pytest_nsbox.warden.client import SessionConfig, Warden
    from pytest_nsbox.warden.spawn import Spawned

WORKER_PROBLEMS: Final = "nsbox_problems"
WORKER_PLACEMENTS: Final = "nsbox_placements"


class Run:
    """What the plugin holds for one `pytest.Config`."""

    def __init__(self, config: pytest.Config, read: settings.Settings, spawned: Spawned | None = None) -> None:
        self._config = config
        self._settings = read
        self._spawned = spawned  # a warden's process that was started ahead
        self._warden: Warden | None = None
        self._ending: Warden | None = None  # removes what is left while pytest writes its summary
        self._boxes: Boxes | None = None
        self._lockstep: Lockstep | None = None
        self._placement: Placement | None = None
        self._notes: list[str] = []  # told right after the collection
        self._base_temp_path: str | None = None
        self._wanted = False  # some test of this session runs in a box
        self.worker_problems: list[str] = []  # what xdist's workers found wrong with marks
        self._placements: dict[str, None] = {}  # lines on where fixtures lived

    # --- configure

    @property
    def _is_worker(self) -> bool:
        return hasattr(self._config, "workerinput")

    @property
    def _distributes(self) -> bool:
        return not self._is_worker and bool(getattr(self._config.option, "tx", None))

    def configure(self) -> None:
        """Start the warden while pytest collects, where it is sure to be needed."""
        options = self._config.option
        if not self._is_worker:
            asked = self._settings
            summary = reporting.Summary(
                rows=asked.report,
                json_path=Path(asked.json) if asked.json else None,
                html_path=Path(asked.html) if asked.html else None,
                about=self.header,
            )
            self._config.pluginmanager.register(summary, "nsbox-summary")
            self._notes = summary.notes
            self._register_budget(summary.results)
        if self._settings.shell and not self._settings.off:
            self._require_terminal()
        idle = options.collectonly or getattr(options, "setupplan", False) or self._distributes
        if self._settings.all and not self._settings.off and not idle:
            self._start_warden()

    def _register_budget(self, results: Results) -> None:
        asked = self._settings
        if not asked.suggest and asked.baseline is None:
            return
        from pytest_nsbox.budget import Comparison, Suggestions

        plugins = self._config.pluginmanager
        if asked.suggest:
            plugins.register(Suggestions(results), "nsbox-suggestions")
        if asked.baseline is not None:
            comparison = Comparison(results, Path(asked.baseline), asked.fail_on_increase)
            plugins.register(comparison, "nsbox-baseline")

    def _require_terminal(self) -> None:
        """Refuse a shell that nobody could type into."""
        if self._is_worker or self._distributes:
            raise pytest.UsageError("--sandbox-shell: workers of xdist have no terminal (accepted: a run without -n)")
        from pytest_nsbox.terminal import Terminal

        terminal = Terminal()
        if not terminal.is_there():
            raise pytest.UsageError(
                "--sandbox-shell: pytest has no terminal (accepted: a run in a terminal's foreground)"
            )
        terminal.close()

    def header(self) -> list[str]:
        if self._settings.off:
            return reporting.header(mode="off", facts=None)
        defaults = Spec.build(self._settings.layers).shown() if self._settings.layers else None
        if not self._settings.all and not defaults:
            return []
        return reporting.header(mode="all" if self._settings.all else "marked", facts=self._facts(), defaults=defaults)

    def _facts(self) -> reporting.Facts | None:
        if not sys.platform.startswith("linux"):
            return None
        from pytest_nsbox.warden.outlook import look

        found = look(self._settings.cgroup_parent)
        return reporting.Facts(
            mode=found.mode,
            cgroup_version=found.version,
            cgroup_driver=found.driver,
            controllers=found.controllers,
        )

    def _start_warden(self) -> Warden:
        if self._warden is None or self._warden.gone:
            from pytest_nsbox.warden.client import Warden

            self._warden = Warden.start(self._session_config(), self._spawned)
        return self._warden

    def _session_config(self) -> SessionConfig:
        from pytest_nsbox.warden.client import SessionConfig

        return SessionConfig(
            tmpdir=tempfile.gettempdir(),
            cgroup_parent=self._settings.cgroup_parent,
            rootdir=str(self._config.rootpath),
            pool=self._settings.pool,
            shared_paths=self._settings.shared_paths,
            volumes=volumes_directory(),
        )

    # --- collection

    def collected(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Read every item's marks; all problems at once are a usage error."""
        resolved = settings.resolve(items, self._settings)
        if resolved.problems and self._is_worker:
            # The controller tells them, once, and exits with 4.
            self._config.workeroutput[WORKER_PROBLEMS] = resolved.problems  # type: ignore[attr-defined]
            items.clear()
            return
        if resolved.problems:
            raise pytest.UsageError(*resolved.problems)
        if self._settings.unavailable != "fail" and not session.config.option.collectonly:
            from pytest_nsbox import doctor

            self._notes += doctor.settle(resolved.specs, self._settings)
        self._notes += self._told_of_benchmarks(resolved.specs)
        self._wanted = any(spec is not None for spec in resolved.specs.values())
        shows_limits = any(spec is not None and spec.proc == "limits" for spec in resolved.specs.values())
        if shows_limits and not self._is_worker and not session.config.option.collectonly:
            from pytest_nsbox import sysinfo

            self._notes += sysinfo.notes()

    def _told_of_benchmarks(self, specs: Mapping[pytest.Item, Spec | None]) -> list[str]:
        """A note where pytest-benchmark would show less than the user expects, and not say why."""
        plugin = self._config.pluginmanager
        if not plugin.hasplugin("benchmark") or getattr(self._config.option, "benchmark_disable", False):
            return []
        boxed = [item for item, spec in specs.items() if spec is not None]
        found = sum("benchmark" in getattr(item, "fixturenames", ()) for item in boxed)
        text = f"sandbox: {found} benchmarks run in boxes, where pytest-benchmark cannot collect their figures; "
        return [f"{text}mark them with @pytest.mark.sandbox(False)"] if found else []

    # --- the run

    @contextlib.contextmanager
    def looping(self, session: pytest.Session) -> Iterator[None]:
        """Around the loop over the items: lockstep is on, and coverage is complete at the end."""
        if not self._wanted or session.config.option.collectonly:
            yield
            return
        self._base_temp_path = self._base_temp()
        self._begin_first(session)
        from pytest_nsbox.admission import Admission
        from pytest_nsbox.boxes import Boxes
        from pytest_nsbox.placement import Placement
        from pytest_nsbox.protocol import Lockstep

        admission = Admission(lambda: settings.budget(self._settings), self._tell)
        self._boxes = Boxes(self._config, self._configured_warden, admission, self._make_kept())
        self._placement = Placement(self._settings.host_fixtures, self._settings.box_fixtures)
        self._config.pluginmanager.register(self._placement, "nsbox-placement")
        if self._config.pluginmanager.hasplugin("timeout"):
            from pytest_nsbox import timeouts

            self._config.pluginmanager.register(timeouts.Timeouts(), timeouts.PLUGIN)
        self._lockstep = Lockstep(session, self._boxes, self._placement)
        self._lockstep.launcher.tests_left = sum(self._boxes.spec_of(item) is not None for item in session.items)
        try:
            yield
        finally:
            self._lockstep.close()
            self._boxes.gathered.hand_over()
            self._boxes.close()
            self._ending, self._boxes, self._warden = self._warden, None, None
            self._remove_links()

    def _tell(self, line: str) -> None:
        """Tell the user something while tests run, where pytest has somebody to tell it to."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(line)

    def _begin_first(self, session: pytest.Session) -> None:
        """Have the first test's box made while the modules for the rest are imported."""
        spec = session.items[0].stash.get(settings.SPEC, None)
        if spec is not None:
            # What is wrong the test itself finds out, and tells.
            with contextlib.suppress(BoxFailed, OSError):
                self._configured_warden().prefetch(spec, most=1)

    def _make_kept(self) -> Kept | None:
        if not self._settings.keep:
            return None
        from pytest_nsbox.kept import Kept

        return Kept(tempfile.gettempdir())

    def _configured_warden(self) -> Warden:
        """The warden, told of the paths that are known only now."""
        warden = self._start_warden()
        found = replace(self._session_config(), base_temp=self._base_temp_path, rw_paths=self._read_write_paths())
        warden.configure(found)
        return warden

    def connect(self) -> socket:
        """A connection to the warden, for containers that a test starts."""
        return (self._boxes.warden if self._boxes is not None else self._configured_warden()).connect()

    def _base_temp(self) -> str | None:
        """The directory that tmp_path fixtures use, made now: tests find it in their boxes, and may lock it by name.

        Under xdist it is the one above the workers' own, which they share.
        """
        factory: Any = getattr(self._config, "_tmp_path_factory", None)
        if factory is None:
            return None
        base = factory.getbasetemp()
        return str(base.parent if self._is_worker else base)

    def _read_write_paths(self) -> tuple[str, ...]:
        found = (self._cache_directory(), _hypothesis_directory())
        return tuple(directory for directory in found if directory is not None and os.path.isdir(directory))

    def _cache_directory(self) -> str | None:
        cache = getattr(self._config, "cache", None)
        if cache is None:
            return None
        if not os.path.isdir(cache._cachedir):
            with contextlib.suppress(OSError):  # a read-only checkout: pytest warns of it when it writes
                cache.mkdir("nsbox").rmdir()
        return str(cache._cachedir)

    def _remove_links(self) -> None:
        """Take links out of the caches where tests write too: pytest's process would write through them, as itself."""
        for cache in self._read_write_paths():
            for directory, folders, names in os.walk(cache):
                for name in (*folders, *names):
                    path = os.path.join(directory, name)
                    if os.path.islink(path):
                        os.unlink(path)

    def guard(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """The context of one item's protocol; None where no box is concerned."""
        if self._lockstep is None or self._boxes is None or self._lockstep.ends_by_itself:
            return None
        self._boxes.expect(nextitem)
        return self._lockstep.guard(item)

    def debugging(self, *, entered: bool) -> None:
        """A debugger starts or ends."""
        if self._lockstep is not None:
            self._lockstep.debugging(entered=entered)

    # --- xdist

    def take_worker_output(self, output: dict[str, Any]) -> None:
        for problem in output.get(WORKER_PROBLEMS, ()):
            if problem not in self.worker_problems:
                self.worker_problems.append(problem)
        self._placements.update(dict.fromkeys(output.get(WORKER_PLACEMENTS, ())))

    def finish(self, session: pytest.Session) -> None:
        """In a worker of xdist, tell its controller where fixtures lived. There, marks that its workers could not read
        make the run a usage error.
        """
        if self._placement is not None:
            self._placements.update(dict.fromkeys(self._placement.tell()))
        if self._is_worker and self._placements:
            self._config.workeroutput[WORKER_PLACEMENTS] = list(self._placements)  # type: ignore[attr-defined]
        if self.worker_problems:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    # --- the end

    def summarise(self, terminal: pytest.TerminalReporter) -> None:
        """What the user is to know in the end besides the usage: problems of workers; with -v, where fixtures lived."""
        for problem in self.worker_problems:
            terminal.write_line(f"ERROR: {problem}", red=True)
        if self._placements and self._config.option.verbose > 0:
            terminal.write_sep("=", "sandbox: where fixtures lived")
            for line in self._placements:
                terminal.write_line(line)

    def close(self) -> None:
        """Return when nothing of the warden and its boxes is left."""
        for warden in (self._ending, self._warden):
            if warden is not None:
                warden.close()
        self._ending = self._warden = None


def _hypothesis_directory() -> str | None:
    """Where hypothesis keeps the examples that failed, and tables that take it half a second to make anew.

    There once the suite has imported it: made as hypothesis makes it.
    """
    configuration: Any = sys.modules.get("hypothesis.configuration")
    if configuration is None:
        return None
    directory = configuration.storage_directory(intent_to_write=False)
    if hasattr(directory, "create_if_missing"):
        with contextlib.suppress(OSError):  # a read-only checkout: hypothesis keeps its examples in memory
            directory.create_if_missing()
        return str(directory.path)
    return str(directory)  # of versions that return the path; not there before something was written
