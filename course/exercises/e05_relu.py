"""The exercises of notebook 05: ReLU in place."""

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from course.exercises.report import Case, in_words, is_right, not_attempted, report, wrong
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

    To name a block without need is wrong too. A block that is named must equal Keras with its ReLU out of place. The
    check tells one block that is named without need, and only how many letters are missing or too many.

    Args:
        answer: Names of blocks; None is not attempted.
        blocks: By name, a function of (net, x) that returns the block's output. It is called with the layers and the
            tensors of either framework: ``net.relu``, ``net.conv``, ``net.bn`` and ``net.dropout``.
    """
    exercise = "Wrong in place"
    if answer is None:
        not_attempted(exercise)
        return
    named = set(answer) if isinstance(answer, Iterable) else {answer}
    if not named <= set(blocks):
        wrong(exercise, f"the answer must be a set of letters out of {', '.join(blocks)}")
        return
    try:
        due = _wrong_in_place(blocks)
    except Exception as error:
        wrong(exercise, in_words(error))
        return
    said = []
    if named - due:
        more = len(named - due) - 1
        others = f" (and so for {more} more that you name)" if more else ""
        said.append(f"you name {min(named - due)}, but its output equals Keras's{others}")
    if due - named:
        count = len(due - named)
        said.append("one letter is missing" if count == 1 else f"{count} letters are missing")
    if said:
        wrong(exercise, "; ".join(said))
    else:
        is_right(exercise, f"all {len(blocks)} blocks")


def check_block(answer: Callable[[Any, Tensor], Tensor]) -> None:
    """Check a function of (net, x) that computes ``s + conv2(relu(conv1(relu(s))))`` with ``s = dropout(x)``.

    ``net`` has the modules ``conv1``, ``conv2`` and ``dropout``; ``x`` is (batch, channels, height, width). Nothing may
    be written into the memory of x, not even to be restored, and at least one operation must work in place on what
    ``conv1`` or ``conv2`` returned. In train mode both terms of the sum must have the same mask.
    """
    report(
        "Residual block",
        {
            "the output": _block_cases(answer, _output),
            "the caller's x": _block_cases(answer, _untouched),
            "train mode": _block_cases(answer, _output_in_train_mode),
            "what may stay": _block_cases(answer, _in_place),
        },
        answer,
        finding="it does all that is asked",
    )


class _Writes(TorchDispatchMode):
    """Notes the memory that operations in place write into, and the number of elements that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            written = given.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(written, Tensor):
                self.memories.append((_memory(written), written.numel()))
        return func(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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


def _wrong_in_place(blocks: dict[str, Callable[[Any, Any], Any]]) -> set[str]:
    """Return the names of the blocks whose output is Keras's, but is not if their ReLU works in place.

    Raises:
        ParityError: If a block gives another output than Keras with its ReLU out of place, too.
    """
    keras_net, torch_net = _nets(1)
    x = np.random.default_rng(0).normal(size=_SHAPES[0])
    found = set()
    for name, block in blocks.items():
        expected = np.asarray(block(keras_net, x))
        if not largest_difference(expected, _run(block, torch_net, x, inplace=False)) < 1e-12:
            raise ParityError(name, ["its output is not Keras's, even if its ReLU works out of place"])
        if not largest_difference(expected, _run(block, torch_net, x, inplace=True)) < 1e-12:
            found.add(name)
    return found


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
    if output is None:
        return None
    if not isinstance(output, Tensor):
        raise ParityError("block", [f"it returns {type(output).__name__}, not a tensor"])
    if output.dtype != torch.float64 and largest_difference(expected, channels_last(output)) < 1e-4:
        raise ParityError("block", [f"right, but computed in {output.dtype}; x is torch.float64"])
    overwritten = torch_input(x).relu()
    due = channels_last(overwritten + net.conv2(net.conv1(overwritten).relu()))
    if output.shape == overwritten.shape and largest_difference(due, channels_last(output)) < 1e-4:
        raise ParityError(
            "block",
            ["the output is that of relu(s) + ...: the shortcut s or its name is overwritten before the sum reads it"],
        )
    return expected, channels_last(output)


def _untouched(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple:
    tensor = torch_input(x)
    with _Writes() as writes:
        answer(net, tensor)
    change = largest_difference(x, channels_last(tensor))
    if change:
        raise ParityError("block", [f"it is overwritten, and off by up to {change:.2g}"])
    if any(memory == _memory(tensor) for memory, _ in writes.memories):
        raise ParityError("block", ["it is overwritten for a while; who reads it meanwhile gets other numbers"])
    return x, channels_last(tensor)


def _output_in_train_mode(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple:
    net.dropout.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shortcut = net.dropout(torch_input(x))
            due = shortcut + net.conv2(net.conv1(shortcut.relu()).relu())
            torch.manual_seed(0)
            output = answer(net, torch_input(x))
    finally:
        net.dropout.eval()
    if isinstance(output, Tensor) and output.shape == due.shape and not largest_difference(due, output) < 1e-4:
        raise ParityError("block", ["other numbers; do both branches use what net.dropout returned, in one call?"])
    return due, output


def _in_place(answer: Callable, net: SimpleNamespace, x: np.ndarray, expected: np.ndarray) -> tuple:
    # Kept until the end, so that no other tensor gets their memory.
    returned: list[Tensor] = []
    hooks = [conv.register_forward_hook(lambda *given: returned.append(given[-1])) for conv in (net.conv1, net.conv2)]
    try:
        with _Writes() as writes:
            output = answer(net, torch_input(x))
    finally:
        for hook in hooks:
            hook.remove()
    if not {(_memory(maps), maps.numel()) for maps in returned}.intersection(writes.memories):
        raise ParityError("block", ["no operation works in place on what conv1 or conv2 returned; at least one may"])
    return expected, channels_last(output)
