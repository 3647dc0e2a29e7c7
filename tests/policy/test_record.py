from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from pytest_nsbox.policy.record import FrozenRecordError, fields, keyword_record, record, replace


@record
class Point:
    """Two numbers."""

    x: int
    y: int = 7

    def total(self) -> int:
        return self.x + self.y


@keyword_record
class Named:
    name: str = "a"


@record
class Other:
    x: int
    y: int = 7


def test_a_record_is_made_by_position_or_keyword_and_fills_defaults():
    assert Point(1) == Point(x=1, y=7)
    assert Point(1, 2).total() == 3
    assert Point.__doc__ == "Two numbers."


def test_a_keyword_record_refuses_positions():
    assert Named(name="b").name == "b"
    with pytest.raises(TypeError, match="positional"):
        Named("b")  # type: ignore[call-arg]  # what is tested


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="'z'"):
        Point(1, z=2)  # type: ignore[call-arg]  # what is tested
    with pytest.raises(TypeError, match="'x'"):
        Point()  # type: ignore[call-arg]  # what is tested


def test_a_record_cannot_be_changed():
    point = Point(1)
    with pytest.raises(FrozenRecordError, match="Point is frozen: cannot set 'x'"):
        point.x = 2  # type: ignore[misc]  # what is tested
    with pytest.raises(FrozenRecordError, match="Point is frozen: cannot delete 'x'"):
        del point.x
    with pytest.raises(AttributeError):
        point.z = 2  # type: ignore[attr-defined]  # what is tested
    assert not hasattr(point, "__dict__")


def test_records_compare_hash_and_print_by_value_and_class():
    assert Point(1, 2) == Point(1, 2)
    assert Point(1, 2) != Point(1, 3)
    other: object = Other(1, 2)
    assert Point(1, 2) != other
    assert len({Point(1), Point(1), Other(1)}) == 2
    assert repr(Point(1)) == "Point(x=1, y=7)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_records_survive_copying_and_pickling(duplicate):
    assert duplicate(Point(1, 2)) == Point(1, 2)
    assert duplicate(Named(name="x")) == Named(name="x")


def test_replace_changes_fields_of_a_copy():
    point = Point(1)
    assert replace(point, y=3) == Point(1, 3)
    assert point.y == 7
    with pytest.raises(TypeError, match="'z'"):
        replace(point, z=1)


def test_fields_are_told_in_order_and_only_of_records():
    assert fields(Point) == ("x", "y")
    with pytest.raises(TypeError, match="int is not a record"):
        fields(int)


def test_the_signature_can_be_read():
    assert list(inspect.signature(Point).parameters) == ["x", "y"]


def test_records_match_by_position():
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
