"""The resource limits of a box's test, set by the forked child on itself. Source: setrlimit(2)."""

from __future__ import annotations

import resource

from pytest_nsbox.policy.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.spec import Spec


def raise_hard(spec: Spec) -> None:
    """Before entering the box: raise hard limits that the spec wants higher. Inside nobody has the right any more."""
    for name, soft, hard in spec.ulimits:
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            continue
        _, now = resource.getrlimit(number)
        if now != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > now):
            _set(name, soft, hard)


def set_all(spec: Spec) -> None:
    """In the box: set what the spec says. Raises KernelError."""
    for name, soft, hard in spec.ulimits:
        _set(name, soft, hard)


def _set(name: str, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (soft, hard))
    except (OSError, ValueError) as error:
        raise KernelError("setrlimit", f"{name}={soft}:{hard}", getattr(error, "errno", None) or 1) from None
