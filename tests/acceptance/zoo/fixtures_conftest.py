"""Logs every set-up and tear-down of fixtures and xunit functions, with its process, through an inherited descriptor."""

import os

import pytest

FD = os.open(os.environ["NSBOX_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def log(*words):
    os.write(FD, " ".join(map(str, (os.getpid(), *words))).encode() + b"\n")


@pytest.fixture(scope="session", autouse=True)
def automatic_session():
    log("outer automatic_session>")
    yield
    log("outer automatic_session<")


@pytest.fixture(scope="session")
def session_list(tmp_path_factory):
    log("outer session_list>")
    yield [1, 2, 3]
    log("outer session_list<")


@pytest.fixture(scope="session", params=["x", "y"])
def session_parameter(request):
    log(f"outer session_parameter[{request.param}]>")
    request.addfinalizer(lambda: log(f"outer session_parameter[{request.param}] finalizer"))
    yield request.param
    log(f"outer session_parameter[{request.param}]<")


@pytest.fixture(scope="package")
def of_package(session_list):
    log("outer of_package>")
    yield len(session_list)
    log("outer of_package<")


@pytest.fixture(scope="module", params=[1, 2, 3])
def module_parameter(request, session_list):
    log(f"outer module_parameter[{request.param}]>")
    yield session_list[request.param - 1]
    log(f"outer module_parameter[{request.param}]<")


@pytest.fixture(scope="module", autouse=True)
def automatic_module(request):
    log("outer automatic_module>", request.module.__name__)
    yield
    log("outer automatic_module<", request.module.__name__)


@pytest.fixture(scope="class")
def of_class(request, session_list):
    log("outer of_class>", request.node.name)
    request.cls.given = session_list
    yield "class value"
    log("outer of_class<", request.node.name)


@pytest.fixture(autouse=True)
def automatic_function(request):
    log("inner automatic_function>", request.node.name)
    yield
    log("inner automatic_function<", request.node.name)


@pytest.fixture
def of_function(request, session_list):
    log("inner of_function>", request.node.name)
    request.addfinalizer(lambda: log("inner of_function finalizer", request.node.name))
    yield session_list
    log("inner of_function<", request.node.name)


@pytest.fixture(params=["a", "b"])
def function_parameter(request):
    return request.param


def dynamic_scope(fixture_name, config):
    return config.getini("test_scope")


@pytest.fixture(scope=dynamic_scope)
def of_dynamic_scope():
    log("outer of_dynamic_scope>")
    yield 7
    log("outer of_dynamic_scope<")


@pytest.fixture(scope="module")
def fails_in_module_setup():
    log("outer fails_in_module_setup>")
    raise ValueError("module fixture: broken set-up")


@pytest.fixture(scope="class")
def fails_in_class_teardown():
    log("outer fails_in_class_teardown>")
    yield
    print("printed in the class's teardown")
    raise ValueError("class fixture: broken tear-down")


@pytest.fixture(scope="session")
def skips_the_session():
    log("outer skips_the_session>")
    pytest.skip("the session fixture skips")


@pytest.fixture(scope="session")
def prints_in_session():
    print("printed in the session's set-up")
    yield
    print("printed in the session's tear-down")


def pytest_addoption(parser):
    parser.addini("test_scope", "scope of a fixture", default="module")
