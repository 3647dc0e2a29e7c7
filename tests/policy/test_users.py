from __future__ import annotations

import pytest

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.users import User, find_user

PASSWD = """root:x:0:0:root:/root:/bin/bash
# a comment, and a line that is cut off
broken:x:
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
me:x:1000:1001:Me,,,:/home/me:/bin/bash
"""
GROUP = """root:x:0:
www-data:x:33:me
me:x:1001:
audio:x:29:me,other
bad:x:many:me
"""


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("root", User(0, 0, (0,), "/root")),
        ("me", User(1000, 1001, (1001, 33, 29), "/home/me")),
        ("1000", User(1000, 1001, (1001, 33, 29), "/home/me")),
        ("4321", User(4321, 0, (0,), "/")),
        ("4321:1234", User(4321, 1234, (1234,), "/")),
        ("me:audio", User(1000, 29, (29,), "/home/me")),
        ("33:me", User(33, 1001, (1001,), "/var/www")),
    ],
)
def test_users_are_found_by_name_and_number(wanted: str, found: User) -> None:
    assert find_user(wanted, PASSWD, GROUP) == found


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ("ghost", "user: no 'ghost' in the box's /etc/passwd"),
        ("broken", "user: no 'broken' in the box's /etc/passwd"),
        ("me:ghosts", "user: no group 'ghosts' in the box's /etc/group"),
    ],
)
def test_who_is_missing_is_named(wanted: str, text: str) -> None:
    with pytest.raises(BoxFailed) as told:
        find_user(wanted, PASSWD, GROUP)
    assert str(told.value) == text
