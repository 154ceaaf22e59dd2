"""The nine mistakes that notebook 08 plants, each alone, in a right port of DroNet."""

from collections.abc import Callable, Iterable
from functools import partial

from torch_model import ResidualBlock, ResNet8

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def all_of(kind: type[nn.Module], model: ResNet8) -> list[nn.Module]:
    """Return all modules of a kind."""
    return [module for module in model.modules() if isinstance(module, kind)]


def exchange_heads(model: ResNet8) -> None:
    """Steer by the collision, and the other way round."""
    model.steer, model.coll = model.coll, model.steer


def exchange_height_and_width(model: ResNet8) -> None:
    """Exchange height and width of all kernels."""
    for conv in all_of(nn.Conv2d, model):
        conv.weight.data = conv.weight.data.transpose(2, 3)


def pad_half_of_kernel(convs: Iterable[nn.Conv2d]) -> None:
    """Pad both sides of an image by half of the kernel, whatever the image's size."""
    for m in convs:
        fixed = {"bias": m.bias, "stride": m.stride, "padding": m.kernel_size[0] // 2}
        m.forward = partial(F.conv2d, weight=m.weight, **fixed)


def flatten_channels_first(model: ResNet8) -> None:
    """Reorder the heads' weights, with the same effect as flattening channels first."""
    for head in (model.steer, model.coll):
        rows = head.weight.data.unflatten(1, (128, 7, 7))
        head.weight.data = rows.permute(0, 2, 3, 1).flatten(1)


def forward_with_overwritten_x(block: ResidualBlock, x: Tensor) -> Tensor:
    """Take the name of the block's input, which the shortcut reads, for its activation."""
    x = torch.relu(block.bn1(x))
    return block.downsample(x) + block.conv2(torch.relu(block.bn2(block.conv1(x))))


def overwrite_shortcut(model: ResNet8) -> None:
    """Give each block the wrong forward."""
    for block in (model.block1, model.block2, model.block3):
        block.forward = partial(forward_with_overwritten_x, block)


BN = nn.BatchNorm2d
MISTAKES: dict[str, Callable[[ResNet8], object]] = {
    "heads exchanged": exchange_heads,
    "stem: padding=2": lambda model: pad_half_of_kernel([model.conv1]),
    "flattened channels first": flatten_channels_first,
    "BatchNorm in train mode": lambda model: [m.train() for m in all_of(BN, model)],
    "epsilon 1e-5": lambda model: [setattr(m, "eps", 1e-5) for m in all_of(BN, model)],
    "kernel height and width": exchange_height_and_width,
    "statistics not copied": lambda model: [m.reset_running_stats() for m in all_of(BN, model)],
    "shortcut overwritten": overwrite_shortcut,
    "blocks: padding=1": lambda model: pad_half_of_kernel(all_of(nn.Conv2d, model)[1:]),
}
