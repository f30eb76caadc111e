"""A cache that is bounded by what it holds in bytes, not by how many things that is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from sfss_ray.masks.bank.painting import PaintedRuns

_ONE_TAKEN_IN_OF = 8  # new images that there is no room for


class PaintedCache:
    """Painted images, those used last; safe to use from several threads.

    Args:
        most_bytes: upper bound of the sum of the images' arrays. An image that alone is larger is
            painted anew each time.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self._turned_away = 0
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
        """The image of a key, made where it is not held.

        Threads that ask for the same new image at once may each make it: none waits for another.

        Args:
            key: of the image.
            make: the image.
            make_part: what is wanted of it, in less time. Where no room is left, this is made instead
                and not held, but one time in so many: a folder that does not fit is read in turn, and
                would drop each image before it is wanted again.
        """
        with self._lock:
            held = self._images.get(key)
            if held is not None:
                self._images.move_to_end(key)
                return held
            in_part = make_part is not None and not self._takes_in()
        if in_part and make_part is not None:
            return make_part()
        made = make()
        with self._lock:
            self._put(key, made)
        return made

    def _takes_in(self) -> bool:
        """Whether a new image is to be held: those of images no longer in use must go in the end."""
        mean = self.held_bytes / max(1, len(self._images))
        if self.held_bytes + mean <= self.most_bytes:
            return True
        self._turned_away = (self._turned_away + 1) % _ONE_TAKEN_IN_OF
        return self._turned_away == 0

    def _put(self, key: Hashable, image: PaintedRuns) -> None:
        if key in self._images or image.nbytes > self.most_bytes:
            return
        self._images[key] = image
        self.held_bytes += image.nbytes
        while self.held_bytes > self.most_bytes:
            _, oldest = self._images.popitem(last=False)
            self.held_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._images.clear()
            self.held_bytes = 0
