"""Fixtures of every scope and hooks that log with their process, for suites that run in one box for each group."""

import os

import pytest

FD = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
WHO = [os.urandom(8).hex()]
os.register_at_fork(after_in_child=lambda: WHO.append(os.urandom(8).hex()))


def log(what, *detail):
    os.write(FD, " ".join([WHO[-1], what, *map(str, detail)]).encode() + b"\n")


def fixture(name, scope, requests=(), **options):
    def steps(request):
        for other in requests:
            request.getfixturevalue(other)
        log("fixture>", name, getattr(request, "param", ""))
        yield []
        log("fixture<", name, getattr(request, "param", ""))

    return pytest.fixture(steps, scope=scope, name=name, **options)


everywhere = fixture("everywhere", "session", autouse=True)
session_parameter = fixture("session_parameter", "session", params=["x", "y"])
module_parameter = fixture("module_parameter", "module", params=[1, 2])
of_module = fixture("of_module", "module", ["everywhere"])


@pytest.fixture(scope="class")
def of_class(of_module):
    log("fixture>", "of_class")
    yield of_module
    log("fixture<", "of_class")


@pytest.fixture
def own(of_class):
    log("fixture>", "own")
    yield of_class
    log("fixture<", "own")


@pytest.fixture(scope="session")
def fails():
    log("fixture>", "fails")
    raise RuntimeError("a session fixture fails")


@pytest.fixture(scope="module")
def fails_late():
    yield
    print("printed by a module fixture")
    raise RuntimeError("the tear-down of a module fixture fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    log("protocol>", item.name)
    try:
        return (yield)
    finally:
        log("protocol<", item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    log("setup>", item.name)
    try:
        return (yield)
    finally:
        log("setup<", item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    log("call>", item.name)
    try:
        return (yield)
    finally:
        log("call<", item.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    log("teardown>", item.name, nextitem and nextitem.name)
    try:
        return (yield)
    finally:
        log("teardown<", item.name)


def pytest_runtest_makereport(item, call):
    log("makereport", item.name, call.when, sorted(item.funcargs))


def pytest_exception_interact(node, call, report):
    log("interact", node.name, call.when)


def pytest_runtest_logstart(nodeid):
    log("logstart", nodeid)


def pytest_runtest_logreport(report):
    log("logreport", report.nodeid, report.when, report.outcome)


def pytest_runtest_logfinish(nodeid):
    log("logfinish", nodeid)
