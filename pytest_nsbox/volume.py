"""A named volume, as the fixture `nsbox` returns it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_nsbox.policy.errors import are_shown_at_the_caller as __tracebackhide__  # noqa: F401 - pytest reads it

if TYPE_CHECKING:
    from pytest_nsbox.nsbox import NsBox


class Volume:
    """A named volume: a directory that boxes share, and that outlives them."""

    def __init__(self, boxes: NsBox, name: str) -> None:
        self._boxes = boxes
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Volume {self.name}>"

    def remove(self) -> None:
        """Remove it with all that is in it; BoxFailed while a box uses it."""
        self._boxes.engine.ask("remove_volume", name=self.name)
        if self in self._boxes.volumes:
            self._boxes.volumes.remove(self)
