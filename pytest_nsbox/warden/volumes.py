"""Named volumes: directories of the session that boxes mount, made and removed on their own."""

from __future__ import annotations

import fcntl
import os

from pytest_nsbox.policy.errors import BoxFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.warden.box import Box
    from pytest_nsbox.warden.container import Container
    from pytest_nsbox.warden.containers import Containers
    from pytest_nsbox.warden.order import Order
    from pytest_nsbox.warden.session import Session


def make(containers: Containers, order: Order) -> object:
    """Make a volume; say if it is new."""
    session, name = _session(containers), _name(order)
    if os.path.isdir(session.volume(name)):
        return False
    session.doors.make_directory(f"volumes/{name}")
    return True


def remove(containers: Containers, order: Order) -> object:
    """Remove a volume that no box uses; or (`release`) only have nothing to do any more with one of the user's."""
    session, name = _session(containers), _name(order)
    kept = session.volume(name) != f"volumes/{name}"
    if kept != bool(order.head.get("release")):
        raise BoxFailed(f"the volume {name!r} is of `nsbox volume create`: `nsbox volume rm` removes it")
    if not os.path.isdir(session.volume(name)):
        raise BoxFailed(f"there is no volume {name!r}")
    shown = {c.box.name: c.name for c in containers.by_name.values() if c.box is not None}
    users = [shown.get(box.name, box.name) for box in containers.server.boxes.values() if _uses(box, name)]
    users += [c.name for c in containers.by_name.values() if c.box is None and _wants(c, name)]
    if users:
        raise BoxFailed(f"the volume {name!r} is in use by {', '.join(sorted(users))}")
    containers.server.waste += session.drop_volume(name)
    return None


def hold_kept(session: Session, name: str) -> str:
    """Return the directory of a volume that outlives sessions, kept from being removed; "" if there is none."""
    path = f"{session.kept_volumes}/{name}"
    if name not in session.held_volumes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return ""
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not os.path.isdir(path):
            os.close(fd)
            return ""
        session.held_volumes[name] = fd
    return path


def _uses(box: Box, name: str) -> bool:
    # What was released is ending, and what waits for a test is not used yet but holds it all the same.
    return not box.released and ("volume", name) in box.tree.plan.sources()


def _wants(container: Container, name: str) -> bool:
    return any(volume.kind == "volume" and volume.source == name for volume in container.spec.volumes)


def _session(containers: Containers) -> Session:
    session = containers.server.session
    if session is None or containers.server.failure:
        raise BoxFailed(containers.server.failure)
    return session


def _name(order: Order) -> str:
    name = order.head["name"]
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or "\0" in name:
        raise BoxFailed(f"{name!r} is no name of a volume")
    return name


ACTS: dict[str, Callable[[Containers, Order], object]] = {"volume": make, "remove_volume": remove}
