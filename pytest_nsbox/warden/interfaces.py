"""Interfaces, addresses, routes and rules of networks: a process of its own makes them, with pyroute2.

It is started when the first network is made, keeps nothing between two orders, and ends with the warden. Its imports
take a third of a second and 30 MB, which every init would have to carry if they were the warden's.

An order is a list of steps, ``(name of a method of kernel.links.Links, its arguments…)``, in one network namespace.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from _socket import MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, socket

from pytest_nsbox.kernel import namespaces, process
from pytest_nsbox.kernel.rights import descriptors, room
from pytest_nsbox.policy.errors import BoxFailed, KernelError
from pytest_nsbox.warden.helper import Helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from pytest_nsbox.warden.server import Server

    Step = tuple[Any, ...]

# In place of a descriptor, in the arguments of a step: the second namespace of the order.
OTHER = "the other namespace"
_PATIENCE = 60  # seconds; it answers at once, but for the first time on a busy machine
_LARGEST = 1 << 20


class Interfaces:
    """The warden's end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # Not another program: that would take the rights in its user namespace from an ordinary user's.
        self._process = Helper(server, _fork, self._run, _PATIENCE)

    def _run(self, control: int) -> NoReturn:
        config = self._server.config
        run(control, config.path if config is not None else ())

    def do(self, namespace: int, steps: Sequence[Step], other: int = -1) -> None:
        """Do `steps` in the network namespace `namespace`, in order, up to the first that the kernel refuses.

        other  a second namespace that a step speaks of, by `OTHER`
        Raises KernelError or BoxFailed.
        """
        self._ask("do", list(steps), [namespace, *([other] if other >= 0 else [])])

    def hand_over(self, namespace: int, *arguments: object) -> None:
        """Have nftables.hand_over done in `namespace`. Raises KernelError or BoxFailed."""
        self._ask("hand over", list(arguments), [namespace])

    def routes(self) -> list[tuple[str, str]]:
        """Return the host's: what links.routes tells. Raises KernelError or BoxFailed."""
        found: list[tuple[str, str]] = self._ask("routes", [], [])
        return found

    def _ask(self, what: str, content: list[Any], fds: list[int]) -> Any:
        answer = self._exchange((what, content), fds)
        if not answer:
            # Somebody killed it. It kept nothing; what it had begun of this order is refused the second time.
            self.close()
            answer = self._exchange((what, content), fds)
        if not answer:
            raise BoxFailed("networks: the process that makes interfaces ends as soon as it begins")
        kind, value = marshal.loads(answer)
        if kind == "refused":
            raise KernelError(*value)
        if kind == "failed":
            raise BoxFailed(f"networks: {value}")
        return value

    def _exchange(self, message: tuple[str, list[Any]], fds: list[int]) -> bytes:
        """Return the answer; nothing if there is nobody."""
        try:
            return self._process.hear(_LARGEST) if self._process.tell(message, fds) else b""
        except BlockingIOError:
            self.close()
            raise BoxFailed(f"networks: the process that makes interfaces did not answer in {_PATIENCE} s") from None

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _fork() -> tuple[int, int]:
    pid = os.fork()
    return pid, process.open_pidfd(pid) if pid else -1


class Worker:
    """The other end: what the process does, one order after the other."""

    def __init__(self) -> None:
        from pytest_nsbox.kernel.links import Links

        self._make = Links
        # An ordinary user's could not come back for it, and a namespace lives as long as somebody is in it.
        self._host = Links()
        namespaces.unshare(namespaces.NEWNET)
        self._nowhere = namespaces.open_namespace("self", "net")

    def serve(self, what: str, content: list[Any], fds: list[int]) -> Any:
        """Do one order. Raises KernelError."""
        if what == "routes":
            return self._host.routes()
        namespaces.setns(fds[0], namespaces.NEWNET)
        try:
            if what == "hand over":
                from pytest_nsbox.kernel.nftables import hand_over

                hand_over(*content)
            else:
                self._do(content, fds)
        finally:
            namespaces.setns(self._nowhere, namespaces.NEWNET)
        return None

    def _do(self, steps: list[Any], fds: list[int]) -> None:
        links = self._make()
        try:
            for name, *arguments in steps:
                getattr(links, name)(*(_with(argument, fds) for argument in arguments))
        finally:
            links.close()


def _with(argument: object, fds: list[int]) -> object:
    if isinstance(argument, tuple):
        return tuple(_with(part, fds) for part in argument)
    return fds[1] if argument == OTHER else argument


def run(control: int, path: Sequence[str]) -> NoReturn:
    """In the fork: do what the warden at the other end of the socket `control` says until it hangs up. pytest's process
    has modules in `path`.
    """
    try:
        process.die_with_parent()
        process.close_all_but((0, 1, 2, control))
        process.set_name("nsbox-network")
        gc.enable()
        # What an interpreter does at its start, and the warden's leaves out: pyroute2 is there, or where pytest has it.
        import site

        site.main()
        sys.path += [entry for entry in path if entry not in sys.path]
        _serve(socket(fileno=control))
    finally:
        os._exit(0)


def _serve(control: socket) -> None:
    worker: Worker | None = None
    while True:
        data, ancillary, _, _ = control.recvmsg(_LARGEST, room(2), MSG_CMSG_CLOEXEC)
        if not data:
            return
        fds = descriptors(ancillary)
        answer: tuple[str, Any]
        try:
            worker = worker or Worker()
            what, content = marshal.loads(data)
            answer = "done", worker.serve(what, content, fds)
        except KernelError as error:
            answer = "refused", (error.call, error.target, error.errno)
        except ImportError as error:
            where = f"{sys.executable} finds no pyroute2 that works"
            answer = "failed", f"{where} ({error}); it has to be installed where pytest_nsbox is"
        except Exception as error:  # noqa: BLE001  # whatever pyroute2 makes of what the kernel says
            answer = "failed", f"pyroute2: {type(error).__name__}: {error}"
        finally:
            for each in fds:
                os.close(each)
        control.send(marshal.dumps(answer), MSG_NOSIGNAL)
