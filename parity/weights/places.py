"""Where one kind of Keras weight goes, and how it is viewed in PyTorch's layout."""

import re
from collections.abc import Callable
from typing import NamedTuple

from parity.weights.module_settings import SettingsOf, none

from torch import Tensor, nn


class Place(NamedTuple):
    """Where one kind of Keras weight goes.

    Attributes:
        tensor: Name of the PyTorch tensor within its module.
        modules: The kinds of module that may hold it.
        view: Takes the Keras tensor and returns a view of it in PyTorch's layout.
        settings: Takes the Keras layer and the module, and yields each setting that must agree: its name, the value
            that the Keras layer needs, and the value that the module has.
        part: Which of the layer's modules it is, for a layer that becomes several modules.
        kind: What to call these modules in a message, if not by their own names.
        also: Other kinds of module that may hold it in a shape with more or fewer axes of size 1, such as a 1 x 1
            convolution for Dense.
        names: A regular expression for the names that the tensor may have, if it has more than one.
        otherwise: Other places that the weight may go to instead.
        beside: Other places that the weight goes to as well, each with a share of it.
    """

    tensor: str
    modules: tuple[type[nn.Module], ...]
    view: Callable[[Tensor], Tensor]
    settings: SettingsOf = none
    part: str = ""
    kind: str = ""
    also: tuple[type[nn.Module], ...] = ()
    names: str = ""
    otherwise: tuple["Place", ...] = ()
    beside: tuple["Place", ...] = ()

    @property
    def all(self) -> tuple["Place", ...]:
        """Return this place and all others that the weight may go to."""
        return (self, *self.otherwise, *self.beside)

    def is_named(self, tensor: str) -> bool:
        """Tell whether a tensor of this name within its module may be meant."""
        return re.fullmatch(self.names, tensor) is not None if self.names else tensor == self.tensor

    @property
    def needed(self) -> str:
        """Return what to call the kinds of module that may hold it: "Conv2d"."""
        return self.kind or " or ".join(module.__name__ for module in self.modules)


def unchanged(weight: Tensor) -> Tensor:
    """Return a weight that has the same layout in both."""
    return weight


def kernel(weight: Tensor) -> Tensor:
    """View (*spatial, a, b) as (b, a, *spatial): the kernels of all convolutions, transposed ones too, and of Dense."""
    *spatial, a, b = range(weight.ndim)
    return weight.permute(b, a, *spatial)


def depthwise_kernel(weight: Tensor) -> Tensor:
    """View (*spatial, i, m) as (i * m, 1, *spatial)."""
    *spatial, i, m = range(weight.ndim)
    return weight.permute(i, m, *spatial).flatten(0, 1).unsqueeze(1)


def channels_moved(weight: Tensor) -> Tensor:
    """View (*spatial, c) as (c, *spatial)."""
    return weight.movedim(-1, 0) if weight.ndim else weight


def shared_alpha(weight: Tensor) -> Tensor:
    """View a shared alpha as (c,), and another one, which fits no nn.PReLU, as (c, *spatial).

    The shared one is (1, ..., 1, c), or (c, 1, ..., 1) where Keras has the channels first.
    """
    return weight.flatten() if weight.numel() == max(weight.shape) else channels_moved(weight)


def standard_deviation(variance: Tensor) -> Tensor:
    """Return the square root of a variance."""
    return variance.sqrt()
