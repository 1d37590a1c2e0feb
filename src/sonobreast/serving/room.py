"""How much the service takes on at once: what does not fit is refused at once, so that nothing grows."""

from __future__ import annotations

import math
import threading
import time


class Room:
    """Counts images that wait or run, and bytes of uploads that are held. May be used by several threads.

    Parameters
    ----------
    images, memory : int
        As in `sonobreast.serving.settings.Settings`.
    workers : int
        Images that run at the same time.
    """

    def __init__(self, images: int, memory: int, workers: int) -> None:
        self._most_images, self._most_bytes, self._workers = images, memory, workers
        self._lock = threading.Lock()
        self._mean = 0.05  # seconds for an image; follows what is seen
        self.images = 0
        self.bytes = 0

    def fits(self, n: int) -> bool:
        """Whether an upload of so many bytes may begin. Nothing is reserved: whoever sends nothing holds nothing."""
        with self._lock:
            return self.bytes + n <= self._most_bytes and self.images < self._most_images

    def take_bytes(self, n: int) -> bool:
        """Reserve memory for a part of an upload that has arrived; False where there is not enough."""
        with self._lock:
            if self.bytes + n > self._most_bytes:
                return False
            self.bytes += n
            return True

    def give_bytes(self, n: int) -> None:
        """The upload is no longer held."""
        with self._lock:
            self.bytes -= n

    def take_images(self, n: int) -> bool:
        """Reserve places for images; False where there are not enough. One upload alone always fits."""
        with self._lock:
            if self.images and self.images + n > self._most_images:
                return False
            self.images += n
            return True

    def give_image(self, began: float | None) -> None:
        """An image is done; ``began``: `time.monotonic` when it was begun, None where it never was."""
        with self._lock:
            self.images -= 1
            if began is not None:
                self._mean += 0.1 * (time.monotonic() - began - self._mean)

    def retry_after(self) -> int:
        """Seconds, at least 1, until what waits now should be done."""
        with self._lock:
            return max(1, min(60, math.ceil(self.images * self._mean / self._workers)))
