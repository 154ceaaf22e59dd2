"""What the networks for images have in common: inputs, weights under which every layer has something to do, and layers.

With random weights and statistics that do not fit them, the numbers of a deep network die out or explode. So the
statistics of BatchNormalization are those of the inputs, and a little off, as they are of inputs not seen in training.
"""

from collections.abc import Collection

from course.small_models import draw, fill_scaled

import keras
import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (96, 80)
"""Height and width of the images: after five halvings 3 and 2.5 pixels, so that odd sizes occur, too."""


def images(height: int = SIZE[0], width: int = SIZE[1], batch: int = 2) -> np.ndarray:
    """Return random images (batch, height, width, 3) as they are after preprocessing."""
    return draw(batch, height, width, 3, seed=7)


def pixels(height: int = SIZE[0], width: int = SIZE[1], batch: int = 2) -> np.ndarray:
    """Return random images (batch, height, width, 3) with numbers from 0 to 255."""
    return np.random.default_rng(7).uniform(0, 255, (batch, height, width, 3)).astype(np.float32)


def calibrated(
    model: keras.Model, x: np.ndarray, seed: int = 0, keep: Collection[str] = ()
) -> tuple[keras.Model, list[np.ndarray]]:
    """Give a Keras model random weights, and statistics that fit them and its inputs; return it and its inputs.

    Args:
        model: The model.
        x: The inputs.
        seed: What the random numbers are drawn from.
        keep: The names of layers whose weights stay as they are.
    """
    kept = {name: model.get_layer(name).get_weights() for name in keep}
    fill_scaled(model, seed)
    for name, weights in kept.items():
        model.get_layer(name).set_weights(weights)
    norms = [layer for layer in _layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    drops = [layer for layer in _layers(model) if isinstance(layer, keras.layers.Dropout)]
    settings = [norm.momentum for norm in norms], [drop.rate for drop in drops]
    for norm in norms:
        norm.momentum = 0.0  # one step in training sets the statistics to those of its batch
    for drop in drops:
        drop.rate = 0.0
    model(x, training=True)
    for number, (norm, momentum) in enumerate(zip(norms, settings[0], strict=True)):
        norm.momentum = momentum
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        # A channel that hardly varies would be blown up.
        variance = np.maximum(variance, 0.01 * variance.mean())
        off = draw(2, *mean.shape, seed=(seed, 1000 + number))
        norm.moving_mean.assign(mean + 0.2 * np.sqrt(variance) * off[0])
        norm.moving_variance.assign(variance * np.exp(0.2 * off[1]))
    for drop, rate in zip(drops, settings[1], strict=True):
        drop.rate = rate
    return model, [x]


def _layers(model: keras.Model) -> list[keras.Layer]:
    """Return all layers of a model and of the models in it."""
    found = []
    for layer in model.layers:
        found += _layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (batch, channels, height, width) as TensorFlow's SAME does: an odd element goes behind."""
    surplus = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
    (top, left), (height, width) = (amount // 2 for amount in surplus), surplus
    return F.pad(x, (left, width - left, top, height - top), value=value)


class Conv2dSame(nn.Conv2d):
    """A convolution that pads as Keras's SAME does, by the size of its input, as timm has one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, filters, height / stride, width / stride), rounded up."""
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def replaced(twin: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module in the place of one of a twin's, given by its dotted name."""
    parent, _, name = path.rpartition(".")
    setattr(twin.get_submodule(parent), name, module)
