"""Every attempt that needs no special box, made by a program in a container: as its root, or as a user."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
import resource  # noqa: F401 - now: the library may lie where a user may not go
import sys

from tests.escapes import groups, machine, network, processes, roots, storage
from tests.escapes.attempt import ATTEMPTS, PLACE, Place

ROOMS = (groups, machine, network, processes, roots, storage)
NO_FD = 999


def outcomes(place: Place) -> dict[str, str]:
    """What came of each, without a network."""
    inside = dataclasses.replace(place, inside=True, net="none")
    made = (attempt for attempt in ATTEMPTS.values() if "none" in attempt.refused and not attempt.apart)
    return {attempt.name: attempt.run(inside) for attempt in made}


if __name__ == "__main__":
    descriptors = os.listdir("/proc/self/fd")
    uid = int(sys.argv[1])
    codecs.lookup("ascii")  # ditto
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # There are none that it could have from pytest's process.
    fds = dict.fromkeys(("file", "directory", "socket"), NO_FD)
    found = outcomes(dataclasses.replace(Place.from_json(os.environ[PLACE]), fds=fds))
    print(json.dumps({"descriptors": len(descriptors), "outcomes": found}))  # noqa: T201 - the parent reads it
