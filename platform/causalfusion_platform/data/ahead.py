"""Items that a thread makes ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

_WAIT = 0.2  # seconds between two looks at whether the items are still wanted


class _End:
    """Behind the last item."""


@dataclass(frozen=True)
class _Raised:
    """In place of an item that could not be made."""

    error: BaseException


def ahead(items: Iterator[Item], count: int = 1) -> Generator[Item]:
    """Yield the items in their order, while a thread makes up to `count` of those that follow.

    An exception in the thread is raised here, in place of the item. Closing the result ends the thread.

    Args:
        items: they are made in the thread, one at a time. It starts at the first request.
        count: items that may be ready and not yet taken, beside the one that is being made.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=_WAIT)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if ended.is_set():
                    return
            put(_End())
        except BaseException as error:  # raised where the items are used
            put(_Raised(error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        ended.set()
