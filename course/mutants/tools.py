"""What mistakes are planted with: changes of a twin's tensors, settings and forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def put(tensor: Tensor, value: Tensor | float) -> None:
    """Overwrite a tensor of a twin."""
    with torch.no_grad():
        tensor.copy_(value.clone().reshape(tensor.shape) if isinstance(value, Tensor) else torch.tensor(value))


def exchange(a: Tensor, b: Tensor) -> None:
    """Exchange the values of two tensors."""
    a_before = a.detach().clone()
    put(a, b.detach())
    put(b, a_before)


def exchange_tensors(a: nn.Module, b: nn.Module) -> None:
    """Exchange all values of two modules of one kind."""
    for key, tensor in a.state_dict().items():
        exchange(tensor, b.state_dict()[key])


def reset(module: nn.Module) -> None:
    """Give a module the initial values that PyTorch gives it, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.reset_parameters()


def like(module: nn.Module, kind: type[nn.Module], **settings: Any) -> nn.Module:
    """Return a convolution of another kind or with other settings that has the tensors of a module."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
    kept = {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
    made = kind(**(kept | settings)).to(module.weight.dtype)
    made.load_state_dict(module.state_dict())
    return made


def another_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module another forward, as a class of the same name derived from its own."""
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def another_method(module: nn.Module, name: str, method: Callable[..., Any]) -> None:
    """Give a module another method in the place of one of its own, as ``another_forward`` does."""
    module.__class__ = type(type(module).__name__, (type(module),), {name: method})


def before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Make a module change its first input before it does what it did."""
    original = type(module).forward
    another_forward(module, lambda self, x, *rest, **named: original(self, change(x), *rest, **named))


def halves(module: nn.Module, *names: str) -> None:
    """Round tensors of a module to float16."""
    for name in names:
        put(getattr(module, name), getattr(module, name).detach().half().to(getattr(module, name).dtype))


def norms(twin: nn.Module) -> list[nn.Module]:
    """Return all BatchNorm modules of a twin."""
    return [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
