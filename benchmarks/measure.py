"""How long does something take, and how much memory?"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

REPEATS = 9


def best_time(action: Callable[[], object]) -> float:
    """Return the shortest time of several runs, in seconds; the shortest is the least disturbed."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch the memory of this process; yields a list that holds the growth at its peak, in bytes, afterwards."""
    process, found, done = psutil.Process(), [], threading.Event()
    start = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.0005):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found.append(highest - start)
