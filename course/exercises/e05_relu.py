"""The exercises of notebook 05: ReLU in place."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from course.exercises.report import Case, report
from parity import ParityError, channels_last, largest_difference, run_torch
from parity.axes import torch_input

import keras
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_SHAPES = ((2, 5, 7, 3), (3, 6, 4, 3))


def check_wrong_in_place(answer: Iterable[str] | None, blocks: dict[str, Callable[[Any, Any], Any]]) -> None:
    """Check which blocks give another output than Keras if their ReLU works in place.

    To name a block without need is wrong too. A block that is named must equal Keras with its ReLU out of place.

    Args:
        answer: Names of blocks; None is not attempted.
        blocks: By name, a function of (net, x) that returns the block's output. It is called with the layers and the
            tensors of either framework: ``net.relu``, ``net.conv``, ``net.bn`` and ``net.dropout``.
    """
    keras_net, torch_net = _nets(1)
    x = np.random.default_rng(0).normal(size=_SHAPES[0])

    def cases(name: str, block: Callable) -> Iterator[Case]:
        def run():
            if answer is None:
                return None
            named = set(answer) if isinstance(answer, Iterable) else {answer}
            if not named <= set(blocks):
                raise ParityError("answer", [f"it must be a set of letters out of {', '.join(blocks)}"])
            expected = np.asarray(block(keras_net, x))
            output = _run(block, torch_net, x, inplace=True)
            difference = largest_difference(expected, output)
            if name in named and difference < 1e-12:
                raise ParityError(name, ["you name it, but its output equals Keras's"])
            if name not in named and not difference < 1e-12:
                raise ParityError(name, [f"you do not name it, but its output is off by up to {difference:.2g}"])
            return expected, _run(block, torch_net, x, inplace=False) if name in named else output

        yield "its ReLU in place", run

    report("Wrong in place", {name: cases(name, block) for name, block in blocks.items()}, answer)


def check_block(answer: Callable[[Any, Tensor], Tensor]) -> None:
    """Check a function of (net, x) that computes ``s + conv2(relu(conv1(relu(s))))`` with ``s = dropout(x)``.

    ``net`` has the modules ``conv1``, ``conv2`` and ``dropout``, in evaluation mode; ``x`` is (batch, channels, height,
    width). The input must stay as it was, at least one operation must work in place, and dropout must still be called.
    """
    report(
        "Residual block",
        {
            "the output": _block_cases(answer, _output),
            "the caller's x": _block_cases(answer, _input_afterwards),
            "what may stay": _block_cases(answer, _in_place_and_dropout),
        },
        answer,
    )


class _InPlaceCounter(TorchDispatchMode):
    """Counts the operations that write into one of their arguments."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.is_mutable
        return func(*args, **(kwargs or {}))


def _nets(convolutions: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Return the layers of Keras, and those of PyTorch with the same weights, from 3 channels to 3."""
    rng = np.random.default_rng(1)
    keras_net = SimpleNamespace(
        relu=keras.ops.relu,
        bn=keras.layers.BatchNormalization(dtype="float64"),
        dropout=keras.layers.Dropout(0.5, dtype="float64"),
    )
    torch_net = SimpleNamespace(bn=nn.BatchNorm2d(3, eps=1e-3).double().eval(), dropout=nn.Dropout(0.5).eval())
    keras_net.bn.build((None, None, None, 3))
    statistics = rng.uniform(0.5, 2, size=(4, 3))
    keras_net.bn.set_weights(statistics)
    names = ("weight", "bias", "running_mean", "running_var")
    torch_net.bn.load_state_dict(dict(zip(names, map(torch.tensor, statistics), strict=True)), strict=False)
    for number in range(convolutions):
        layer = keras.layers.Conv2D(3, (3, 5), padding="same", dtype="float64")
        layer.build((None, None, None, 3))
        kernel, bias = rng.normal(size=(3, 5, 3, 3)) / 6, rng.normal(size=3)
        layer.set_weights([kernel, bias])
        module = nn.Conv2d(3, 3, (3, 5), padding="same", dtype=torch.float64)
        module.load_state_dict({"weight": torch.tensor(kernel).permute(3, 2, 0, 1), "bias": torch.tensor(bias)})
        name = f"conv{number + 1}" if convolutions > 1 else "conv"
        setattr(keras_net, name, layer)
        setattr(torch_net, name, module)
    return keras_net, torch_net


def _run(block: Callable, net: SimpleNamespace, x: np.ndarray, inplace: bool) -> np.ndarray:
    """Run a block on a copy of x (batch, height, width, channels), its ReLU in place or not."""
    net.relu = nn.ReLU(inplace=inplace)
    return run_torch(lambda tensor: block(net, tensor), x)


def _block_cases(answer: Callable, see: Callable) -> Iterator[Case]:
    keras_net, torch_net = _nets(2)
    for shape in _SHAPES:
        x = np.random.default_rng(0).normal(size=shape)
        shortcut = keras_net.dropout(x)
        main = keras_net.conv1(keras_net.relu(shortcut))
        expected = np.asarray(shortcut + keras_net.conv2(keras_net.relu(main)))

        def run(x=x, expected=expected):
            with torch.no_grad():
                return see(answer, torch_net, x, expected)

        yield " x ".join(map(str, shape)), run


def _output(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple | None:
    output = answer(net, torch_input(x))
    return None if output is None else (expected, channels_last(output))


def _input_afterwards(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple:
    tensor = torch_input(x)
    answer(net, tensor)
    return x, channels_last(tensor)


def _in_place_and_dropout(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple:
    dropouts = []
    handle = net.dropout.register_forward_hook(lambda *_: dropouts.append(True))
    try:
        with _InPlaceCounter() as counter:
            output = answer(net, torch_input(x))
    finally:
        handle.remove()
    if not counter.count:
        raise ParityError("block", ["no operation works in place any more; at least one may"])
    if not dropouts:
        raise ParityError("block", ["net.dropout is not called; in train mode it would be missed"])
    return expected, channels_last(output)
