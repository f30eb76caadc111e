"""The cache of painted images: its bound in bytes, and the order of eviction."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.painted_runs import PaintedRuns


def image(kilobytes: int) -> PaintedRuns:
    """Return an image whose arrays have exactly so many kB."""
    rows = np.zeros(kilobytes * 1000 - 4, np.uint8)
    return PaintedRuns((1, 0), range(0), np.zeros(1, np.int32), rows, rows[:0])


class Maker:
    """Paints images and counts how often."""

    def __init__(self, kilobytes: int):
        self.kilobytes, self.calls = kilobytes, 0

    def __call__(self) -> PaintedRuns:
        self.calls += 1
        return image(self.kilobytes)


def test_an_image_is_painted_once():
    cache, make = PaintedCache(5000), Maker(2)
    assert cache.get("a", make) is cache.get("a", make)
    assert make.calls == 1
    assert (len(cache), cache.nbytes) == (1, 2000)


def test_the_least_recently_used_image_is_evicted():
    cache, makers = PaintedCache(5000), {key: Maker(2) for key in "abc"}
    for key in "abaca":  # c evicts b, because a was used after it
        cache.get(key, makers[key])
    assert (len(cache), cache.nbytes) == (2, 4000)
    for key in "acb":
        cache.get(key, makers[key])
    assert [makers[key].calls for key in "abc"] == [1, 2, 1]


def test_the_bound_holds_for_images_of_all_sizes():
    cache, rng = PaintedCache(50_000), np.random.default_rng(0)
    for key in range(300):
        kilobytes = int(rng.integers(1, 30))
        assert cache.get(key, Maker(kilobytes)).nbytes == 1000 * kilobytes
        assert cache.nbytes <= 50_000
        assert cache.nbytes == sum(image.nbytes for image in cache._images.values())
        assert len(cache) >= 1


def test_an_image_larger_than_the_bound_is_not_stored_and_evicts_none():
    cache, small, large = PaintedCache(5000), Maker(5), Maker(6)
    for _ in range(2):
        cache.get("small", small)
        cache.get("large", large)
    assert (small.calls, large.calls) == (1, 2)
    assert cache.nbytes == 5000


def test_a_full_cache_paints_parts_but_not_always():
    """Images read in turn do not evict each other, and unused images are evicted in the end."""
    cache, old, new, part = PaintedCache(10_000), Maker(2), Maker(2), Maker(1)
    for key in range(5):
        assert cache.get(("old", key), old, part).nbytes == 2000
    assert (len(cache), part.calls) == (5, 0)
    for _ in range(3):
        for key in range(20):
            cache.get(("new", key), new, part)
    assert part.calls > 2 * new.calls >= 10
    assert all(key[0] == "new" for key in cache._images)
    assert cache.nbytes <= 10_000


def test_a_failed_image_is_painted_again():
    def fail() -> PaintedRuns:
        raise DataError("no RLE")

    cache = PaintedCache(5000)
    with pytest.raises(DataError):
        cache.get("a", fail)
    assert cache.get("a", Maker(1)).nbytes == 1000


def test_a_cleared_cache_is_empty():
    cache, make = PaintedCache(5000), Maker(2)
    cache.get("a", make)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)
    cache.get("a", make)
    assert make.calls == 2


def test_threads_share_the_cache():
    cache = PaintedCache(10_000)

    def work(seed: int) -> bool:
        keys = np.random.default_rng(seed).integers(1, 8, 500)
        return all(cache.get(int(k), lambda k=k: image(k)).nbytes == 1000 * k for k in keys)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.nbytes == sum(image.nbytes for image in cache._images.values()) <= 10_000
