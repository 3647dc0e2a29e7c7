"""A test's box and its network: it joins when it is handed out, since fixtures make networks; pytest's side."""

from __future__ import annotations

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.warden.engine import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.warden.client import Warden
    from pytest_nsbox.warden.handle import Box


def join(warden: Warden, box: Box) -> None:
    """Take `box` into the network that its spec names. Raises BoxFailed if there is none; the box is given back then.

    The connection is not kept: a test's process would inherit it.
    """
    engine = Engine(warden.connect())
    try:
        engine.ask("network", what="join", name=box.spec.net, box=box.name, hostname=box.spec.hostname)
    except BoxFailed:
        box.release()
        raise
    finally:
        engine.close()
