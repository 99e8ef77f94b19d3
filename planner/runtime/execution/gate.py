"""Forwards go through while a plan is attached; detaching waits for those that run and holds up those that come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from planner.errors import RuntimeStateError


class Gate:
    """Counts the forwards of a model that run, over all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = threading.local()
        self._running = 0
        self._closing = False
        self.open = True

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """A forward runs in the block; True while the plan is attached. Waits while somebody detaches it."""
        depth = getattr(self._inside, "depth", 0)
        with self._changed:
            if not depth:  # a forward inside a forward is part of it
                self._changed.wait_for(lambda: not self._closing)
            if not self.open:
                attached = False
            else:
                attached = True
                self._running += 1
        if not attached:
            yield False
            return
        self._inside.depth = depth + 1
        try:
            yield True
        finally:
            self._inside.depth = depth
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Nothing runs in the block, and the gate is shut after it; True for whoever shuts it first.

        Raises:
            RuntimeStateError: called from inside a forward, which would wait for itself.
        """
        if getattr(self._inside, "depth", 0):
            raise RuntimeStateError(
                "the plan cannot be detached from inside a forward of the model", "Detach it after the forward returns"
            )
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)
            self._closing = True
            try:
                self._changed.wait_for(lambda: not self._running)
                first, self.open = self.open, False
                yield first
            finally:
                self._closing = False
                self._changed.notify_all()
