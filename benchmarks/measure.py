"""How long does something take, and how much memory?"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf

import psutil

REPEATS = 9


def best_times(actions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest time of several runs of each action, in seconds; the shortest is the least disturbed.

    The actions run in turn, so that a slow phase of the machine is one for all of them: their ratios can be compared
    with those of another machine.
    """
    times = dict.fromkeys(actions, inf)
    for _ in range(REPEATS):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


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
