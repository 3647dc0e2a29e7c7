"""State that one test leaves for another is found in their module's source."""

from __future__ import annotations

import textwrap

import pytest

from pytest_nsbox.shared_state import Module


def left_for(source: str, name: str, *earlier: str) -> list[tuple[str, str]]:
    return Module(textwrap.dedent(source)).left_for(name, earlier)


@pytest.mark.parametrize(
    ("change", "read", "path"),
    [
        ("global STATE; STATE = 1", "assert STATE == 1", "STATE"),
        ("global STATE; STATE += 1", "print(STATE)", "STATE"),
        ("global STATE; del STATE", "STATE", "STATE"),
        ("STATE['x'] = 1", "assert STATE['x'] == 1", "STATE"),
        ("del STATE['x']", "assert not STATE", "STATE"),
        ("STATE.append(1)", "assert STATE == [1]", "STATE"),
        ("STATE.value = 1", "assert STATE.value == 1", "STATE.value"),
        ("os.environ['X'] = '1'", "assert os.environ['X'] == '1'", "os.environ"),
        ("module.part.items.update(x=1)", "assert module.part.items.get('x')", "module.part.items"),
        ("with open('x') as STATE['file']: pass", "STATE['file']", "STATE"),
    ],
)
def test_a_change_that_a_later_test_reads_is_found(change: str, read: str, path: str):
    source = f"def test_a():\n    {change}\ndef test_b():\n    {read}\n"
    assert left_for(source, "test_b", "test_a") == [(path, "test_a")]


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("STATE = 1", "STATE"),  # a local
        ("STATE = []; STATE.append(1)", "STATE"),
        ("os.environ['X'] = '1'", "os.getpid()"),
        ("STATE.get('x')", "STATE"),
        ("global STATE; STATE = 1", "STATE = 2; print(STATE)"),
        ("global STATE; STATE = 1", "OTHER"),
    ],
)
def test_what_is_no_change_or_not_read_is_not_told(change: str, read: str):
    assert left_for(f"def test_a():\n    {change}\ndef test_b():\n    {read}\n", "test_b", "test_a") == []


def test_functions_that_tests_call_are_looked_into():
    source = """
        def remember(value):
            STATE.append(value)
        def remembered():
            return STATE[-1]
        def test_a():
            remember(1)
        async def test_b():
            assert remembered() == 1
    """
    assert left_for(source, "test_b", "test_a") == [("STATE", "test_a")]


@pytest.mark.parametrize("target", ["cls.made", "self.__class__.made", "type(self).made", "TestSteps.made"])
def test_attributes_of_a_class_are_found(target: str):
    source = f"""
        class TestSteps:
            def test_one(self, cls):
                {target} = 1
            def test_two(self):
                assert self.made == 1
            def test_three(self):
                self.made = 2
    """
    source = source.replace("(self, cls)", "(self)") if "cls." not in target else source
    assert left_for(source, "TestSteps.test_two", "TestSteps.test_one") == [("TestSteps.made", "TestSteps.test_one")]
    assert left_for(source, "TestSteps.test_two", "TestSteps.test_three") == []  # an instance of its own anyway


def test_only_earlier_tests_count_and_names_may_be_unknown():
    source = "def test_a():\n    STATE.append(1)\n    assert STATE == [1]\n"
    assert left_for(source, "test_a") == []
    assert left_for(source, "test_a", "test_a") == []
    assert left_for(source, "test_unknown", "test_a") == []
    with pytest.raises(SyntaxError):
        Module("def")
