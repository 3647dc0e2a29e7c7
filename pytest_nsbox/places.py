"""Where things of the user's are."""

from __future__ import annotations

import os

# The environment's variable for the cgroup of boxes.
CGROUP_PARENT = "PYTEST_NSBOX_CGROUP_PARENT"


def data_directory() -> str:
    """Where what outlives sessions is: in XDG_DATA_HOME, else in ~/.local/share."""
    base = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "pytest-nsbox")


def volumes_directory() -> str:
    """Where `nsbox volume create` makes volumes."""
    return os.path.join(data_directory(), "volumes")
