"""pytest's hooks. Each hands over to the room that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_nsbox import early as early  # noqa: PLC0414 - before the other modules, it has them imported faster
from pytest_nsbox import forking as forking  # noqa: PLC0414 - registers its at-fork handlers before others can
from pytest_nsbox import settings
from pytest_nsbox.fixtures import nsbox as nsbox  # noqa: PLC0414 - fixtures of the plugin
from pytest_nsbox.fixtures import nsbox_session as nsbox_session  # noqa: PLC0414 - as above
from pytest_nsbox.fixtures import sandbox as sandbox  # noqa: PLC0414 - as above

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_nsbox.run import Run
    from pytest_nsbox.warden.spawn import Spawned

RUN: Final[pytest.StashKey[Run]] = pytest.StashKey()
SPAWNED: Final[pytest.StashKey[Spawned]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    settings.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start the warden's process where every test is to run in a box: it imports its modules beside the conftests."""
    spawned = early.take(wanted=settings.is_sure_to_box(early_config))
    if spawned is not None:
        early_config.stash[SPAWNED] = spawned
        early_config.add_cleanup(spawned.discard)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    settings.add_marker(config)
    read = settings.read(config)
    if config.option.help or config.option.version:
        return
    from pytest_nsbox.run import Run

    config.stash[RUN] = Run(config, read, config.stash.get(SPAWNED, None))
    config.stash[RUN].configure()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:  # pytest collects its garbage meanwhile, for as long as the warden takes to remove everything
        run = config.stash.get(RUN, None)
        if run is not None:
            run.close()


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("sandbox_doctor"):
        return None
    from pytest_nsbox import doctor

    config._do_configure()
    try:
        return doctor.run(config)
    finally:
        config._ensure_unconfigure()


def pytest_report_header(config: pytest.Config) -> list[str]:
    run = config.stash.get(RUN, None)
    return run.header() if run is not None else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings.generate(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    run = session.config.stash.get(RUN, None)
    if run is not None:
        run.collected(session, items)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    run = session.config.stash.get(RUN, None)
    if run is None:
        return (yield)
    with run.looping(session):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    run = item.config.stash.get(RUN, None)
    guard = run.guard(item, nextitem) if run is not None else None
    if guard is None:
        return (yield)
    with guard:
        return (yield)


def pytest_enter_pdb(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is not None:
        run.debugging(entered=True)


def pytest_leave_pdb(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is not None:
        run.debugging(entered=False)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    run = node.config.stash.get(RUN, None)
    if run is not None:
        run.take_worker_output(getattr(node, "workeroutput", None) or {})


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash.get(RUN, None)
    if run is not None:
        run.finish(session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    run = terminalreporter.config.stash.get(RUN, None)
    if run is not None:
        run.summarise(terminalreporter)
