"""A network of boxes, as the fixture `nsbox` returns it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_nsbox.policy import networks
from pytest_nsbox.policy.errors import BadValueError, SpecError, SpecProblems
from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_nsbox.container import Box
    from pytest_nsbox.nsbox import NsBox


class Network:
    """A network: boxes that were started with ``net=`` it, or its name, reach each other by name and address."""

    def __init__(self, boxes: NsBox, told: dict[str, Any]) -> None:
        self._boxes = boxes
        self.name: str = told["Name"]
        self._told = told

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Network {self.name} {' '.join(self.subnets)}>"

    @property
    def subnets(self) -> tuple[str, ...]:
        """Its subnets in CIDR notation, the IPv4 one first; an IPv6 one where the kernel has it."""
        return tuple(self._told["Subnets"])

    @property
    def subnet(self) -> str:
        """Its IPv4 subnet, such as ``10.213.0.0/24``."""
        return self.subnets[0]

    @property
    def internal(self) -> bool:
        """Whether there is no way out of it."""
        return bool(self._told["Internal"])

    def inspect(self) -> dict[str, Any]:
        """Name, Internal, Subnets, Gateways and Containers: by name, with Interface, MacAddress, IPAddress and
        GlobalIPv6Address.
        """
        return dict(self._ask("inspect"))

    def disconnect(self, box: Box | str) -> None:
        """Pull the cable of a box: it keeps its addresses and connections, and nothing reaches it or leaves it."""
        self._ask("link", box=_name(box), up=False)

    def connect(self, box: Box | str) -> None:
        """Plug the cable of a box in again. One that is in is no error."""
        self._ask("link", box=_name(box), up=True)

    def cut(self, one: Box | str, other: Box | str) -> None:
        """Cut the link between two boxes: each still reaches all others. What they send each other is lost, without an
        error.
        """
        self._ask("path", boxes=[_name(one), _name(other)], there=False)

    def mend(self, one: Box | str, other: Box | str) -> None:
        """Mend a link that was cut. One that was not is no error."""
        self._ask("path", boxes=[_name(one), _name(other)], there=True)

    def remove(self) -> None:
        """Remove it; BoxFailed while a box is in it."""
        self._ask("remove")
        if self in self._boxes.networks:
            self._boxes.networks.remove(self)

    def _ask(self, what: str, **fields: Any) -> Any:
        return self._boxes.engine.ask("network", what=what, name=self.name, **fields)[0]


def make(boxes: NsBox, name: str | None, *, detached: bool = False, **wanted: Any) -> tuple[Network, bool]:
    """The network that ``nsbox.network`` was asked for, and whether it is new; `detached` if it is not to go with us.
    SpecProblems, BoxFailed.
    """
    problems: list[SpecError] = []

    def read(key: str, parse: Callable[[Any], Any], accepted: str) -> Any:
        value = wanted[key]
        if value is None:
            return None
        try:
            return parse(value)
        except BadValueError as error:
            problems.append(SpecError(key, repr(value), error.accepted or accepted, error.reason, "nsbox.network"))
            return None

    wanted["name"] = name
    fields = {
        "name": read("name", networks.parse_name, networks.NAME),
        "subnets": list(read("subnet", networks.parse_subnets, networks.SUBNET) or ()),
        "rate": read("rate", networks.parse_rate, networks.RATE),
        "delay": read("delay", networks.parse_delay, ""),
        "loss": read("loss", networks.parse_loss, networks.LOSS),
    }
    internal = wanted.get("internal", True)
    if not isinstance(internal, bool):
        problems.append(SpecError("internal", repr(internal), "True or False", "not a truth value", "nsbox.network"))
    if problems:
        raise SpecProblems(tuple(problems))
    told, _ = boxes.engine.ask("network", what="make", internal=internal, detached=detached, **fields)
    return Network(boxes, told), told["made"]


def read_publish(value: object, spec: dict[str, Any], joined: dict[str, Any]) -> list[list[Any]]:
    """What ``publish=`` says, for the warden; a `spec` without a network gets one of the box's own. SpecProblems (a
    ValueError) with what is wrong.
    """
    if not joined and spec.setdefault("net", False) in (True, "host"):
        reason = "the box has the host's network, and its ports are the host's already"
        raise SpecProblems((SpecError("publish", repr(value), "net=False or a network", reason, "nsbox.start"),))
    try:
        ports = networks.parse_publish(value)
    except BadValueError as error:
        problem = SpecError("publish", repr(value), error.accepted, error.reason, "nsbox.start")
        raise SpecProblems((problem,)) from None
    return [[port.box, port.host, port.protocol, port.address] for port in ports]


def _name(box: Box | str) -> str:
    return box if isinstance(box, str) else box.name
