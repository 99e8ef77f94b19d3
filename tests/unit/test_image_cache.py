"""What an image cache lets go of: the image that was asked for least recently, and no more than it must."""

from __future__ import annotations

import torch

from planner.runtime import ImageCache
from planner.runtime.imaging.image_stream import ImageStream, Key

#: Bytes of one image's stream below.
SIZE = 8 * 4


def key(name: str) -> Key:
    return Key("model", "0-2", name)


def states(value: float) -> dict[int, torch.Tensor]:
    return {3: torch.full((2, 4), value)}


def holding(*names: str, room: int) -> ImageCache:
    cache = ImageCache(max_bytes=room * SIZE)
    for number, name in enumerate(names):
        cache.put(key(name), states(float(number)))
    return cache


def held(cache: ImageCache) -> str:
    return "".join(one.image for one in cache.stream().images)


def test_an_image_that_is_asked_for_stays_longer_than_one_that_is_not() -> None:
    cache = holding("a", "b", room=2)
    assert cache.find([key("a")]) is not None
    cache.put(key("c"), states(9.0))
    assert held(cache) == "ac" and cache.bytes == 2 * SIZE


def test_all_images_of_a_prompt_count_as_asked_for_in_its_order() -> None:
    cache = holding("a", "b", "c", "d", room=4)
    found = cache.find([key("c"), key("a")])
    assert found is not None and [float(one[3][0, 0]) for one in found] == [2.0, 0.0]
    cache.put(key("e"), states(4.0))
    cache.put(key("f"), states(5.0))
    assert held(cache) == "caef"


def test_an_image_put_again_is_the_newest_and_counts_once() -> None:
    cache = holding("a", "b", "a", room=2)
    assert cache.bytes == 2 * SIZE
    cache.put(key("c"), states(9.0))
    assert held(cache) == "ac"


def test_a_prompt_that_is_not_all_here_refreshes_nothing() -> None:
    cache = holding("a", "b", room=2)
    assert cache.find([key("a"), key("z")]) is None and (cache.hits, cache.misses) == (0, 1)
    cache.put(key("c"), states(9.0))
    assert held(cache) == "bc"


def test_an_image_too_large_for_the_cache_drives_nothing_out() -> None:
    cache = holding("a", "b", room=2)
    cache.add(ImageStream({key("z"): {0: torch.zeros(100)}}))
    assert held(cache) == "ab"
