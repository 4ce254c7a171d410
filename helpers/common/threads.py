"""Calls on other threads: made ahead, in order, or waited for at the end."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = 4
MOST_CALLS = 8  # that wait for these threads, or whose results wait


def ahead(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int = THREADS, most: int = MOST_CALLS
) -> Iterator[Any]:
    """Yield `function(item)` for each item in order; other threads call it for up to `most` of them ahead."""
    calls: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            if len(calls) == most:
                yield calls.popleft().result()
            calls.append(pool.submit(function, item))
        while calls:
            yield calls.popleft().result()


def read_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, up to three of them made on another thread while the last one is in use."""
    items, end = iter(items), object()
    calls = ahead(lambda _: next(items, end), itertools.repeat(None), threads=1, most=4)  # the one in use is the fourth
    yield from itertools.takewhile(lambda item: item is not end, calls)


class Writer:
    """Calls made on other threads: `with Writer() as write: write(function, argument, ...)`.

    A few may wait. The end waits for all of them; an error in one is raised by a later call, or at the end.
    """

    def __init__(self) -> None:
        self._pool, self._waiting = ThreadPoolExecutor(THREADS), deque()

    def __enter__(self) -> Writer:
        return self

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        while len(self._waiting) == MOST_CALLS:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *args))

    def __exit__(self, kind, error, trace) -> None:
        self._pool.shutdown()
        for call in self._waiting if error is None else ():
            call.result()
