"""A cache of painted images that is bounded by bytes, not by the number of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from sfss_ray.masks.bank.painted_runs import PaintedRuns

_ADMIT_ONE_OF = 8  # new images, once the cache is full


class PaintedCache:
    """The painted images that were used last; safe to use from several threads.

    Args:
        max_bytes: upper bound of the sum of the images' arrays. A single larger image is painted
            again each time.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._num_rejected = 0
        self._images: OrderedDict[Hashable, PaintedRuns] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._images)

    def get(
        self,
        key: Hashable,
        make: Callable[[], PaintedRuns],
        make_part: Callable[[], PaintedRuns] | None = None,
    ) -> PaintedRuns:
        """Return the image of a key, painted if it is not in the cache.

        Threads that request the same new image at once may each paint it: none waits for another.

        Args:
            key: of the image.
            make: paints the image.
            make_part: paints the required part of it in less time. If the cache is full, the part is
                painted and not stored, except for one in 8 images. A folder that does not fit is read
                in turn and would otherwise evict each image before its next use.
        """
        with self._lock:
            cached = self._images.get(key)
            if cached is not None:
                self._images.move_to_end(key)
                return cached
            only_part = make_part is not None and not self._admits()
        if only_part and make_part is not None:
            return make_part()
        image = make()
        with self._lock:
            self._put(key, image)
        return image

    def _admits(self) -> bool:
        """Return whether to store a new image; some are stored so that unused ones are evicted."""
        mean_bytes = self.nbytes / max(1, len(self._images))
        if self.nbytes + mean_bytes <= self.max_bytes:
            return True
        self._num_rejected = (self._num_rejected + 1) % _ADMIT_ONE_OF
        return self._num_rejected == 0

    def _put(self, key: Hashable, image: PaintedRuns) -> None:
        if key in self._images or image.nbytes > self.max_bytes:
            return
        self._images[key] = image
        self.nbytes += image.nbytes
        while self.nbytes > self.max_bytes:
            _, oldest = self._images.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def clear(self) -> None:
        """Remove all images."""
        with self._lock:
            self._images.clear()
            self.nbytes = 0
