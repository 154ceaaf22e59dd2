"""What does moving weights cost? ``python benchmarks/transfer.py``.

Moves the 138 million parameters of VGG16, random values, and prints the time beside that of a permuted ``copy_`` of the
same weights: what a move would be without ``parity.weights.fast_copy``, without any check, and for a twin that flattens
as Keras does. Beside them stands a plain copy of the same bytes, which permutes nothing. It also prints how much memory
the move takes beside the two models. It takes about a minute and 5 GB.
"""

from parity import transfer

import keras
import numpy as np
import pandas as pd
import torch
from measure import REPEATS, best_times, peak_memory
from torch import nn

# Output channels of the convolutions; "pool" halves height and width.
CONVOLUTIONS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


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


def main() -> None:
    """Measure and print."""
    keras_model, torch_model, mapping, flatten = build()
    sources = [torch.tensor(np.asarray(weight)) for weight in keras_model.weights]
    targets = [torch.zeros_like(source) for source in sources]
    pairs = list(zip(sources, targets, strict=True))
    size = sum(source.nbytes for source in sources)
    largest = max(source.nbytes for source in sources)

    def plain_copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    def permuted_copy() -> None:
        for source, target in pairs:
            if source.ndim > 1:
                *spatial, i, o = range(source.ndim)
                source = source.permute(o, i, *spatial)
            target.view(source.shape).copy_(source)

    actions = {
        "plain copy_": plain_copy,
        "permuted copy_": permuted_copy,
        "transfer": lambda: transfer(keras_model, torch_model, mapping, flatten),
    }
    times = best_times(actions)
    del sources[:], targets[:], pairs[:]
    with peak_memory() as growth:
        actions["transfer"]()
    print(f"{size / 1e6:.0f} MB of weights, {torch.get_num_threads()} threads, the best of {REPEATS} runs in turn")
    for name, seconds in times.items():
        print(f"{name:15} {seconds:.3f} s, {seconds / times['permuted copy_']:.2f} of the permuted copy_")
    print(f"peak memory     {growth[0] / 1e6:.0f} MB more, {growth[0] / largest:.2f} of the largest tensor")


if __name__ == "__main__":
    main()
