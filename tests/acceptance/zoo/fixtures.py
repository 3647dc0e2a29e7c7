import os

import pytest
from conftest import log


def setup_module(module):
    log("outer setup_module>")
    module.STATE = ["set by setup_module"]


def teardown_module(module):
    log("outer teardown_module<")


def setup_function(function):
    log("inner setup_function>", function.__name__)


def teardown_function(function):
    log("inner teardown_function<", function.__name__)


def test_module_state():
    assert STATE == ["set by setup_module"]


def test_session_list(session_list, of_function):
    assert session_list is of_function
    assert session_list == [1, 2, 3]


def test_parameters(module_parameter, function_parameter, session_parameter, of_package):
    assert of_package == 3


def test_dynamic_scope(of_dynamic_scope):
    assert of_dynamic_scope == 7


def test_dynamic_scope_again(of_dynamic_scope):
    assert of_dynamic_scope == 7


@pytest.mark.usefixtures("prints_in_session")
class TestClass:
    def setup_class(cls):
        log("outer setup_class>")
        cls.own = 5

    def teardown_class(cls):
        log("outer teardown_class<")

    def setup_method(self, method):
        log("inner setup_method>", method.__name__)

    def teardown_method(self, method):
        log("inner teardown_method<", method.__name__)

    def test_one(self, of_class):
        assert of_class == "class value" and self.own == 5
        assert self.given == [1, 2, 3]

    def test_two(self, of_class, of_function):
        assert self.given is of_function


class TestBrokenTeardown:
    def test_one(self, fails_in_class_teardown):
        print("in the test")

    def test_two(self, fails_in_class_teardown):
        assert 0


def test_broken_module_fixture(fails_in_module_setup):
    pass


def test_broken_module_fixture_again(of_function, fails_in_module_setup):
    pass


def test_skips(skips_the_session):
    pass


def test_skips_again(skips_the_session):
    pass


@pytest.mark.parametrize("of_function", [5], indirect=True)
def test_indirect(of_function):
    assert of_function == [1, 2, 3]


@pytest.mark.parametrize("session_list", [[9]], scope="session")
def test_directly_given(session_list):
    assert session_list == [9]


def test_requests_dynamically(request):
    assert request.getfixturevalue("session_list") == [1, 2, 3]
    assert request.getfixturevalue("of_function") == [1, 2, 3]


def test_global_state_of_pytests_process_is_there(session_list):
    assert os.environ.get("ZOO_FROM_A_SESSION_FIXTURE") is None
