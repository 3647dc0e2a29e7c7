"""Boxes that share the network of another one."""

from __future__ import annotations

from pytest_nsbox.policy.plan import BindInit, ShowSysfs
from pytest_nsbox.policy.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_nsbox.policy.plan import Plan

# The hostname is no part of the network: each box has its own.
NAMES = ("hosts", "resolv.conf")


def with_names_of(plan: Plan, files: Mapping[str, str]) -> Plan:
    """Return `plan` with the neighbour's names for addresses: `files` is where its files of /etc are kept, by name."""
    shared = [BindInit(f"/etc/{name}", "", files[name]) for name in NAMES if name in files]
    if not shared:
        return plan
    hidden = {op.target for op in shared}
    tree = [op for op in plan.tree if not (isinstance(op, BindInit) and op.target in hidden)]
    # Before all that a volume may hide.
    at = next(number for number, op in enumerate(tree, 1) if isinstance(op, ShowSysfs))
    return replace(plan, tree=(*tree[:at], *shared, *tree[at:]), reusable=False)
