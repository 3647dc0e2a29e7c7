"""What a client can ask of a container that exists. Each returns the answer, or LATER if it answers by itself."""

from __future__ import annotations

import time

from pytest_nsbox.kernel.signals import signal
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.warden.freezing import PATIENCE, Freezer
from pytest_nsbox.warden.order import LATER, answer_not_started, make_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.warden.container import Container
    from pytest_nsbox.warden.containers import Containers
    from pytest_nsbox.warden.order import Order

_STEP = 0.002  # seconds between two looks at what freezes


def find(containers: Containers, order: Order) -> Container:
    name = order.head["box"]
    try:
        return containers.by_name[name]
    except KeyError:
        for container in containers.by_name.values():
            if container.id == name:
                return container
        raise BoxFailed(f"there is no box {name!r}") from None


def find_running(containers: Containers, order: Order) -> Container:
    container = find(containers, order)
    if container.status not in ("running", "paused"):
        raise BoxFailed(f"the box {container.name!r} is not running (it is {container.status})")
    return container


def wait(containers: Containers, order: Order) -> object:
    container = find(containers, order)
    main = container.main
    assert main is not None
    if main.returncode is not None:
        return containers.state(container)
    main.waiting.append(lambda: order.answer(containers.state(container)))
    return LATER


def exec_(containers: Containers, order: Order) -> object:
    container = find_running(containers, order)
    if container.status == "paused":
        raise BoxFailed(f"the box {container.name!r} is paused: resume it first")
    begun = time.monotonic()

    def told(error: KernelError | BoxFailed | None) -> None:
        if error is not None:
            answer_not_started(order, error, run=True)

    program = make_program(order.head, container.spec)
    seconds = order.seconds("timeout")
    running = containers.spawn(container, program, order.take_stdin(), told, order.take_outputs())
    container.execs.append(running)

    def ended() -> None:
        container.execs.remove(running)
        value = {
            "returncode": running.returncode,
            "counters": container.read_counters(),
            "wall": time.monotonic() - begun,
            "timed_out": timed_out,
        }
        order.answer(value, running.output)
        running.output.close()

    timed_out = False

    def time_out() -> None:
        nonlocal timed_out
        if running.returncode is None:
            timed_out = True
            running.signal(signal.SIGKILL)

    running.waiting.append(ended)
    if seconds is not None:
        containers.after(seconds, time_out)
    return LATER


def logs(containers: Containers, order: Order) -> object:
    container = find(containers, order)
    assert container.main is not None
    if container.main.returncode is None:
        container.main.drain()
    order.answer(None, container.main.output)
    return LATER


def follow(containers: Containers, order: Order) -> object:
    """What the main program printed after the first `at` bytes of its log, as soon as there is something, or it has
    ended (then that is told).
    """
    container = find(containers, order)
    main, at = container.main, order.head["at"]
    if main is None:
        raise BoxFailed(f"the box {container.name!r} is not running yet")

    def tell() -> None:
        frames = main.output.since(at)
        ended = main.returncode is not None and at + len(frames) >= main.output.size
        order.answer_with_frames({"at": at + len(frames), "ended": ended}, frames)

    if main.output.size > at or main.returncode is not None:
        tell()
    else:
        main.followers.append(tell)
    return LATER


def usage(containers: Containers, order: Order) -> object:
    """The counters and the seconds that it has run."""
    container = find(containers, order)
    return {"counters": container.read_counters(), "wall": container.wall()}


def send_signal(containers: Containers, order: Order) -> object:
    container = find_running(containers, order)
    assert container.main is not None
    container.main.signal(order.head["signal"])
    return None


def stop(containers: Containers, order: Order) -> object:
    """SIGTERM (or what the order says), then SIGKILL after so many seconds, if any; answered when it has ended."""
    container = find(containers, order)
    if container.status in ("running", "paused"):
        assert container.main is not None
        seconds = order.seconds("seconds")
        container.thaw()
        container.main.signal(order.head.get("signal", signal.SIGTERM))
        if seconds is not None:
            containers.after(seconds, container.kill)
    return wait(containers, order)


def kill(containers: Containers, order: Order) -> object:
    container = find(containers, order)
    if container.status in ("running", "paused"):
        container.kill()
    return wait(containers, order)


def pause(containers: Containers, order: Order) -> object:
    container = find_running(containers, order)
    session = containers.server.session
    assert session is not None
    assert session.cgroups is not None
    assert container.box is not None
    if container.status == "paused":
        return None
    try:
        if container.freezer is None:
            node = container.box.node
            container.freezer = Freezer(node, session.cgroups.freezer(node), session.cgroups.version)
        freezer = container.freezer
        freezer.freeze()
    except (BoxFailed, KernelError) as error:
        raise BoxFailed(f"pause: the box's processes cannot be frozen: {error}") from None
    deadline = time.monotonic() + PATIENCE

    def look() -> None:
        if container.status != "running":
            order.fail(f"the box {container.name!r} ended before it was frozen")
        elif freezer.is_frozen():
            container.status = "paused"
            order.answer()
        elif time.monotonic() > deadline:
            freezer.thaw()
            order.fail("pause: a process of the box is in a wait of the kernel's that cannot be frozen")
        else:
            containers.after(_STEP, look)

    look()
    return LATER


def resume(containers: Containers, order: Order) -> object:
    find_running(containers, order).thaw()
    return None


def inspect(containers: Containers, order: Order) -> object:
    return find(containers, order).inspect()


def remove(containers: Containers, order: Order) -> object:
    """Remove a container, in whatever status it is; what it left is answered."""
    container = find(containers, order)
    container.kill()
    assert container.main is not None

    def finish() -> None:
        containers.finished(container, order)

    if container.main.returncode is None:
        container.main.waiting.append(finish)
    else:
        finish()
    return LATER


def list_(containers: Containers, order: Order) -> object:
    """Return the state of every container of this client, of all clients if the order says so."""
    everyone = order.head.get("all")
    found = [c for c in containers.by_name.values() if everyone or c.owner is order.connection]
    return [{**containers.state(c), "note": c.note, "wall": c.wall(), "since": c.since()} for c in found]


def networks(containers: Containers, _order: Order) -> object:
    """Return what there is to say of each network."""
    if containers.connected is None:
        return []
    found = containers.connected.networks
    found.prune()
    return [network.describe() for network in found.by_name.values()]


ACTS: dict[str, Callable[[Containers, Order], object]] = {
    "wait": wait,
    "exec": exec_,
    "logs": logs,
    "follow": follow,
    "usage": usage,
    "signal": send_signal,
    "stop": stop,
    "kill": kill,
    "pause": pause,
    "resume": resume,
    "state": lambda containers, order: containers.state(find(containers, order)),
    "result": lambda containers, order: containers.result(find(containers, order)),
    "inspect": inspect,
    "remove": remove,
    "list": list_,
    "networks": networks,
}
