"""In a process that goes into a box: give up what `policy.confinement` does not leave it, in two steps around the
change of its user.
"""

from __future__ import annotations

from pytest_nsbox.kernel import call_filter, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pytest_nsbox.policy.confinement import Confinement


class Confiner:
    """One confinement, prepared before the process goes into the box."""

    def __init__(self, confinement: Confinement) -> None:
        self._mask = confinement.mask
        self._filter = call_filter.build(confinement.capabilities) if confinement.filtered else None

    def before_user(self) -> None:
        """As root of the box, who alone may. Raises KernelError."""
        process.bound_capabilities(self._mask)

    def after_user(self) -> None:
        """As who the process is to be. Raises KernelError."""
        process.keep_capabilities(self._mask)
        if self._filter is not None:
            call_filter.install(self._filter)
