"""What the warden needs of the signal module, without its enums: importing those takes longer than a box."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal  # noqa: PLC0414  # exported
else:
    import _signal as signal

__all__ = ["signal"]
