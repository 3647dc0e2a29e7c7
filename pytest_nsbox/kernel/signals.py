"""The signal module without its enums. To import those takes longer than a box takes to make; and of a mask of all
signals its pthread_sigmask makes 60 of them, 0.2 ms that every test would pay twice.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal  # noqa: PLC0414  # exported
else:
    import _signal as signal

__all__ = ["signal"]
