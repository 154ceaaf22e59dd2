"""What a PyTorch model calls while it runs: its modules, and the functions between them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_TAG = "_parity_number"
_DROPOUTS = frozenset(
    {
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        nn.functional.dropout,
        nn.functional.dropout1d,
        nn.functional.dropout2d,
        nn.functional.dropout3d,
        nn.functional.alpha_dropout,
        nn.functional.feature_alpha_dropout,
    }
)


class Call(NamedTuple):
    """One call of a module, or of a function outside of such modules.

    Attributes:
        name: The module's name, or the function's.
        module: The module, None for a function.
        inputs: Numbers of the tensors that it takes, as far as the model computed them.
        outputs: Numbers of the tensors that it returns.
        shapes: Shape of each tensor it returns.
        rate: Of dropout: the share that it drops in training.
        overwrites: Whether it returns the very tensor that it takes, with other numbers or the same.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    rate: float | None = None
    overwrites: bool = False


# Called with the number of a call, whether it is about to run ("in") or has run ("out"), and its tensors.
Watcher = Callable[[int, str, list[Tensor]], None]


def record(
    model: nn.Module,
    inputs: Sequence[Tensor],
    whole: Collection[nn.Module] = (),
    watch: Watcher | None = None,
    dropout: bool = True,
) -> tuple[list[Call], list[Tensor]]:
    """Run a PyTorch model and record its calls in their order.

    A module without modules in it counts as one call, and so does one in ``whole``; what happens within is not
    recorded. The model is not changed.

    Args:
        model: The model; it runs in the mode (training or evaluation) that it is in.
        inputs: Its inputs. The tensors number 0, 1, ... are these.
        whole: Modules that count as one call although they have modules in them.
        watch: Called before and after each call. It must not change the tensors, and not keep them: a later call may
            overwrite them.
        dropout: Whether functions such as ``F.dropout`` drop anything; modules do as their mode says.

    Returns:
        The calls, and the model's outputs as a flat list.
    """
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=True)}
    ends = {id(module) for module in model.modules() if not any(True for _ in module.children())}
    ends |= {id(module) for module in whole}
    recorder = _Recorder(watch, names, ends, dropout)
    for tensor in inputs:
        recorder.number(tensor)
    with recorder.listening(), recorder:
        outputs = model(*inputs)
    return recorder.calls, [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def number_of(tensor: Tensor) -> int:
    """Return the number of a tensor that a recorded model computed, -1 for any other."""
    return getattr(tensor, _TAG, -1)


class _Recorder(TorchFunctionMode):
    """Numbers every tensor as it is computed; the number stays with the tensor as an attribute."""

    def __init__(self, watch: Watcher | None, names: dict[int, str], ends: set[int], dropout: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.watch = watch
        self.names = names
        self.ends = ends
        self.calls: list[Call] = []
        self.inside: list[tuple[int, list[Tensor], tuple[int, ...]]] = []  # module, its inputs, their numbers
        self.count = 0

    def number(self, tensor: Tensor) -> int:
        setattr(tensor, _TAG, self.count)
        self.count += 1
        return self.count - 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to all modules while a model runs; hooks of the modules themselves are left alone."""
        handles = [register_module_forward_pre_hook(self.enter), register_module_forward_hook(self.leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, module: nn.Module, args: Any) -> None:
        if self.inside or id(module) not in self.ends or id(module) not in self.names:
            return
        tensors = _tensors(args)
        self.inside.append((id(module), tensors, tuple(map(number_of, tensors))))
        self.notify("in", tensors)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.inside or self.inside[-1][0] != id(module):
            return
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else None
        _, tensors, numbers = self.inside.pop()
        self.add(self.names[id(module)], module, tensors, numbers, _tensors(output), rate)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = _tensors((args, kwargs))
        numbers = tuple(map(number_of, tensors))
        if any(number >= 0 for number in numbers):
            self.notify("in", tensors)
        rate = _rate(func, args, kwargs)
        # A function that drops nothing returns a tensor of its own, as one that drops does.
        output = func(*args, **kwargs) if rate is None or self.dropout else tensors[0].clone()
        results = _tensors(output)
        if results and any(number >= 0 for number in numbers):
            # x.T and the like are attributes: their function is called __get__, that of any attribute.
            self.add("permute" if name == "__get__" else name.strip("_"), None, tensors, numbers, results, rate)
        return output

    def add(
        self,
        name: str,
        module: nn.Module | None,
        inputs: list[Tensor],
        numbers: tuple[int, ...],
        outputs: list[Tensor],
        rate: float | None,
    ) -> None:
        self.notify("out", outputs)
        shapes = tuple(tuple(tensor.shape) for tensor in outputs)
        overwrites = any(output is tensor for output in outputs for tensor in inputs)
        returned = tuple(map(self.number, outputs))
        self.calls.append(Call(name, module, numbers, returned, shapes, rate, overwrites))

    def notify(self, when: str, tensors: list[Tensor]) -> None:
        if self.watch is not None:
            with torch._C.DisableTorchFunction():
                self.watch(len(self.calls), when, tensors)


def _rate(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return the rate of a call of dropout, None of any other function."""
    if func not in _DROPOUTS:
        return None
    given = dict(zip(("input", "p", "training"), args, strict=False)) | dict(kwargs)
    return float(given.get("p", 0.5))


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
