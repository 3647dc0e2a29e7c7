"""What every box with an image's root has of its own in /etc, as Docker's init layer: mount points in a layer of their
own, and files that are bound on them. Source: hosts(5), resolv.conf(5), hostname(5).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILES = ("hosts", "hostname", "resolv.conf")
# Mount points of any root: an image need not have them. Name and mode.
DIRECTORIES = (("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555))

_LOCAL = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hosts(hostname: str = "", addresses: Iterable[tuple[str, Sequence[str]]] = ()) -> str:
    """Return an /etc/hosts: localhost, then each address with its names; `hostname` stands for 127.0.0.1 unless an
    address has it.
    """
    rows = [(address, tuple(names)) for address, names in addresses]
    if hostname and not any(hostname in names for _, names in rows):
        rows.insert(0, ("127.0.0.1", (hostname,)))
    return _LOCAL + "".join(f"{address}\t{' '.join(names)}\n" for address, names in rows)


def resolv_conf(nameservers: Sequence[str] = (), search: Sequence[str] = ()) -> str:
    """Return an /etc/resolv.conf; without name servers nothing is asked."""
    lines = [f"nameserver {address}\n" for address in nameservers]
    lines += [f"search {' '.join(search)}\n"] if search else []
    return "".join(lines)
