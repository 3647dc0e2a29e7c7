"""Every hook of an item logs to one file, through a descriptor that the boxes inherit, with its process."""

import os

import pytest

FD = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def log(what, nodeid, *detail):
    os.write(FD, " ".join([str(os.getpid()), what, nodeid, *map(str, detail)]).encode() + b"\n")


def pytest_runtest_logstart(nodeid, location):
    log("logstart", nodeid)


def pytest_runtest_logreport(report):
    log("logreport", report.nodeid, report.when, report.outcome)


def pytest_runtest_logfinish(nodeid, location):
    log("logfinish", nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    log("protocol>", item.nodeid, nextitem and nextitem.name)
    try:
        return (yield)
    finally:
        log("protocol<", item.nodeid)


class Plain:
    """Implementations before and after pytest's own."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        log("setup-first", item.nodeid, sorted(item.funcargs))
        if "setup_hook_skips" in item.keywords:
            pytest.skip("by a setup hook, before a session fixture that fails")
        if "setup_hook_fails" in item.keywords:
            raise RuntimeError("the setup hook fails")

    def pytest_runtest_call(self, item):
        log("call", item.nodeid, sorted(item.funcargs))
        if "call_hook_fails" in item.keywords:
            raise RuntimeError("the call hook fails")

    @pytest.hookimpl(trylast=True)  # before it, pytest itself would not tear the item down
    def pytest_runtest_teardown(self, item, nextitem):
        log("teardown", item.nodeid)
        if "teardown_hook_fails" in item.keywords:
            raise RuntimeError("the teardown hook fails")

    @pytest.hookimpl(trylast=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        log("pyfunc_call", pyfuncitem.nodeid)

    def pytest_exception_interact(self, node, call, report):
        log("exception_interact", node.nodeid, call.when, call.excinfo.typename)

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        log("fixture_setup", request.node.nodeid, fixturedef.argname)

    def pytest_fixture_post_finalizer(self, fixturedef, request):
        log("fixture_post_finalizer", request.node.nodeid, fixturedef.argname)

    def pytest_runtest_makereport(self, item, call):
        # pytest's own documentation has a recipe that reads funcargs here
        values = {name: value for name, value in item.funcargs.items() if isinstance(value, (int, str))}
        log("makereport", item.nodeid, call.when, values)


class AfterSetup:
    @pytest.hookimpl(trylast=True)
    def pytest_runtest_setup(self, item):
        log("setup-last", item.nodeid, sorted(item.funcargs))
        if "late_setup_hook_fails" in item.keywords:
            raise RuntimeError("the late setup hook fails")


def wrappers(kind):
    """Wrappers of the phases, in the shape of one kind."""

    def with_finally(name):
        def new(self, item):
            log(f"{kind} {name}>", item.nodeid)
            try:
                return (yield)
            finally:
                log(f"{kind} {name}<", item.nodeid)

        return new

    def without_finally(name):
        def new(self, item):
            log(f"{kind} {name}>", item.nodeid)
            result = yield
            log(f"{kind} {name}<", item.nodeid)
            return result

        return new

    def catching(name):
        def new(self, item):
            log(f"{kind} {name}>", item.nodeid)
            try:
                result = yield
            except BaseException as error:
                log(f"{kind} {name}!", item.nodeid, type(error).__name__)
                raise
            log(f"{kind} {name}<", item.nodeid)
            return result

        return new

    def old(name):
        def old_style(self, item):
            log(f"{kind} {name}>", item.nodeid)
            outcome = yield
            log(f"{kind} {name}<", item.nodeid, outcome.excinfo and outcome.excinfo[0].__name__)

        return old_style

    def old_with_finally(name):
        def old_style(self, item):
            log(f"{kind} {name}>", item.nodeid)
            try:
                outcome = yield
                log(f"{kind} {name}=", item.nodeid, outcome.excinfo and outcome.excinfo[0].__name__)
            finally:
                log(f"{kind} {name}<", item.nodeid)

        return old_style

    make = locals()[kind]
    is_old = kind.startswith("old")
    option = {"hookwrapper": True} if is_old else {"wrapper": True}
    hooks = {}
    for position in ("tryfirst", "trylast"):
        for phase in ("setup", "call", "teardown"):
            hooks[f"{position}_{phase}"] = (f"pytest_runtest_{phase}", pytest.hookimpl(**option, **{position: True}))
    made = []
    for position in ("tryfirst", "trylast"):
        body = {
            name: hooks[f"{position}_{phase}"][1](make(f"{position} {phase}"))
            for phase in ("setup", "call", "teardown")
            for name in [f"pytest_runtest_{phase}"]
        }
        made.append(type(f"{kind}_{position}", (), body)())
    return made


class Wrappers:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        log("makereport-wrapper", item.nodeid, report.when, report.outcome)
        setattr(item, f"report_{report.when}", report)
        report.user_properties.append(("from_makereport", f"{report.when} {sorted(item.funcargs)}"))
        report.sections.append(("of the hook", report.when))
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem):
        log("pyfunc_call>", pyfuncitem.nodeid)
        try:
            return (yield)
        finally:
            log("pyfunc_call<", pyfuncitem.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        log("fixture_setup>", request.node.nodeid, fixturedef.argname)
        try:
            return (yield)
        finally:
            log("fixture_setup<", request.node.nodeid, fixturedef.argname)


def pytest_configure(config):
    manager = config.pluginmanager
    for plugin in [Plain(), AfterSetup(), Wrappers()]:
        manager.register(plugin)
    for kind in ("with_finally", "without_finally", "catching", "old", "old_with_finally"):
        for plugin in wrappers(kind):
            manager.register(plugin)


@pytest.fixture(scope="session")
def failing_session_fixture():
    log("failing session fixture", "session")
    raise RuntimeError("the session fixture fails")


@pytest.fixture(scope="session")
def session_value():
    log("session fixture>", "session")
    yield 11
    log("session fixture<", "session")


@pytest.fixture
def value(session_value, request):
    log("fixture>", request.node.nodeid)
    yield session_value + 1
    # the recipe of pytest's documentation: a fixture that looks at the outcome of its test
    log("fixture<", request.node.nodeid, getattr(getattr(request.node, "report_call", None), "outcome", None))
