"""A bounded cache of image streams, kept from one question to the next.

    cache = ImageCache(max_bytes=2 << 30)
    with plan.apply(model, image_cache=cache):
        model.generate(**first_question)
        model.generate(**second_question)      # same image: no vision encoder, no shallow layers for its tokens

An image that is not here, or was made by another model or plan, or behind another text under a plan whose visual tokens
see it, is computed and kept; nothing is ever refused. A batch
is served when all its images are here: one that is missing means that the vision encoder runs for all of them. Threads
and models may share one cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from planner.errors import InputError
from planner.runtime.imaging.image_stream import ImageStream, Key, States, size_bytes


class ImageCache:
    """Image streams by content, model and plan, least recently used first out.

    Args:
        max_bytes: bound on what is held; an image larger than this is not kept at all.

    Attributes:
        hits, misses: prompts (batches) served from here, and those that were not.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise InputError(f"an image cache of {max_bytes} bytes holds nothing", "Give max_bytes above 0")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._held: OrderedDict[Key, States] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def find(self, keys: list[Key]) -> list[States] | None:
        """The streams of a prompt's images, or None unless all are here."""
        with self._lock:
            if not all(key in self._held for key in keys):
                self.misses += 1
                return None
            self.hits += 1
            for key in keys:
                self._held.move_to_end(key)
            return [self._held[key] for key in keys]

    def put(self, key: Key, states: States) -> None:
        """Keep one image's stream, and let go of the oldest ones where that is too much."""
        size = size_bytes(states)
        if size > self.max_bytes:
            return
        with self._lock:
            self._drop(key)
            self._held[key] = states
            self._bytes += size
            while self._bytes > self.max_bytes:
                self._drop(next(iter(self._held)))

    def add(self, stream: ImageStream) -> None:
        """Keep streams that were computed ahead, such as those of a file."""
        for key, states in stream.images.items():
            self.put(key, states)

    def stream(self) -> ImageStream:
        """All that is held, oldest first: to be saved, or to be used as it is."""
        with self._lock:
            return ImageStream(self._held)

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    def _drop(self, key: Key) -> None:
        if key in self._held:
            self._bytes -= size_bytes(self._held.pop(key))
