"""Batches that a thread makes before they are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any


def read_ahead(batches: Iterator[Any], count: int) -> Generator[Any]:
    """Yield batches that a thread takes from an iterator, `count` ahead. The thread starts at the call.

    An error of the iterator is raised here. The thread ends with the iterator that is returned.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=count)
    ended = threading.Event()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for batch in batches:
                put(batch)
                if ended.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=fetch, name="read ahead", daemon=True).start()
    return _take(ready, ended)


def _take(ready: queue.Queue[Any], ended: threading.Event) -> Generator[Any]:
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        ended.set()
