"""Episodes kept in memory, as many as a budget of bytes allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ByteCache(Generic[Item]):
    """The most recently used items within ``budget`` bytes; the very last one is kept even if it alone is larger.

    An item may grow after it was put in (:meth:`grow`), as an episode does whose film is decoded. Thread-safe.
    """

    def __init__(self, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"a cache of {budget} bytes: give 0 or more")
        self.budget = budget
        self.bytes = 0
        self._items: OrderedDict[int, tuple[Item, int]] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: int) -> Item | None:
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: int, item: Item, size: int) -> None:
        with self._lock:
            self._drop(key)
            self._items[key] = (item, size)
            self.bytes += size
            self._shrink()

    def grow(self, key: int, item: Item, size: int) -> None:
        """Count ``size`` more bytes of ``item``, if it is still the one kept as ``key``."""
        with self._lock:
            kept = self._items.get(key)
            if kept is None or kept[0] is not item:
                return
            self._items[key] = (item, kept[1] + size)
            self._items.move_to_end(key)
            self.bytes += size
            self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self.budget and len(self._items) > 1:
            self._drop(next(iter(self._items)))

    def _drop(self, key: int) -> None:
        if key in self._items:
            self.bytes -= self._items.pop(key)[1]
