"""What does moving weights cost? ``python benchmarks/transfer.py``.

Moves the 138 million parameters of VGG16, random values, and prints the time beside that of a plain memory copy of the
same bytes, and how much memory the move takes beside the two models. It takes about a minute and 2 GB.
"""

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

from parity.transfer import transfer

import keras
import numpy as np
import pandas as pd
import psutil
import torch
from torch import nn

# Output channels of the convolutions; "pool" halves height and width.
CONVOLUTIONS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
REPEATS = 9


def torch_vgg16() -> nn.Sequential:
    """Build VGG16 (Simonyan and Zisserman, 2014, https://arxiv.org/abs/1409.1556), its classifier with 1000 classes."""
    modules: list[nn.Module] = []
    channels = 3
    for item in CONVOLUTIONS:
        if item == "pool":
            modules.append(nn.MaxPool2d(2))
        else:
            modules += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
            channels = item
    modules += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(4096, 1000))


def build() -> tuple[keras.Model, nn.Module, pd.DataFrame, dict[str, tuple[int, ...]]]:
    """Return VGG16 in both frameworks, the mapping between them, and the shape that the twin flattens."""
    keras_model = keras.applications.VGG16(weights=None)
    torch_model = torch_vgg16()
    mapping = pd.DataFrame(
        {"keras": [weight.path for weight in keras_model.weights], "torch": list(torch_model.state_dict())}
    )
    return keras_model, torch_model, mapping, {"fc1": (7, 7, 512)}


def best_time(action: Callable[[], object]) -> float:
    """Return the shortest time of several runs, in seconds; the shortest is the least disturbed."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def peak_memory():
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


def main() -> None:
    """Measure and print."""
    keras_model, torch_model, mapping, flatten = build()
    sources = [torch.from_numpy(np.asarray(weight)) for weight in keras_model.weights]
    targets = [torch.zeros_like(source) for source in sources]
    size = sum(source.nbytes for source in sources)
    largest = max(source.nbytes for source in sources)

    def copy() -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    plain = best_time(copy)
    del targets[:]
    moved = best_time(lambda: transfer(keras_model, torch_model, mapping, flatten))
    with peak_memory() as growth:
        transfer(keras_model, torch_model, mapping, flatten)
    print(f"{size / 1e6:.0f} MB of weights, {torch.get_num_threads()} threads, best of {REPEATS}")
    print(f"plain copy  {plain:.3f} s")
    print(f"transfer    {moved:.3f} s, {moved / plain:.1f} times as long")
    print(f"peak memory {growth[0] / 1e6:.0f} MB more, {growth[0] / largest:.2f} of the largest tensor")


if __name__ == "__main__":
    main()
