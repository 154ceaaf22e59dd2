"""The exercises of notebook 06: the order of features behind Flatten and before Reshape."""

from collections.abc import Callable, Iterator, Sequence
from math import prod

from course.exercises.report import Case, report
from parity import ParityError, channels_last, largest_difference
from parity.axes import torch_input

import keras
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_Shape = tuple[int, int, int]

# Maps (h, w, c). One row hides exchanged axes. None has as many channels as pixels: there, an order and its inverse are
# the same.
_ONE_ROW = [(1, 5, 3)]
_SEVERAL_ROWS = [(4, 6, 3), (3, 4, 7)]


def check_feature_order(answer: Callable[[int, int, int], Tensor | Sequence[int]]) -> None:
    """Check a function of (h, w, c) that returns the index of features.

    At place n of the index stands the place, in what Keras flattens, of the n-th feature of ``nn.Flatten``. The index
    is put to use on the four vectors of a BatchNormalization between Flatten and Dense, and on the kernel of the Dense.
    """
    report(
        "BatchNormalization",
        {"one row": _order_cases(answer, _ONE_ROW), "several rows": _order_cases(answer, _SEVERAL_ROWS)},
        answer,
    )


def check_decoder(answer: Callable[[Tensor, Tensor, int, int, int], tuple[Tensor, Tensor]]) -> None:
    """Check a function of (kernel, bias, h, w, c) that returns the weight and bias of an ``nn.Linear``.

    The kernel (i, h * w * c) and the bias (h * w * c) are those of a Dense before ``Reshape((h, w, c))``; the Linear
    stands before ``nn.Unflatten(1, (c, h, w))``.
    """
    report(
        "Decoder",
        {"a bias of zeros": _decoder_cases(answer, 0), "a random bias": _decoder_cases(answer, 1)},
        answer,
    )


def _order_cases(answer: Callable, shapes: list[_Shape]) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for h, w, c in shapes:
        maps = rng.normal(size=(2, h, w, c))
        batch_norm = keras.layers.BatchNormalization(dtype="float64")
        dense = keras.layers.Dense(5, dtype="float64")
        features = keras.layers.Flatten(dtype="float64")(maps)
        dense(batch_norm(features))
        batch_norm.set_weights([rng.uniform(0.5, 2, size=h * w * c) for _ in range(4)])
        dense.set_weights([rng.normal(size=(h * w * c, 5)), np.zeros(5)])
        expected = np.asarray(dense(batch_norm(features)))

        def run(maps=maps, expected=expected, batch_norm=batch_norm, dense=dense):
            index = answer(*maps.shape[1:])
            if index is None:
                return None
            index = _as_index(index, maps.shape[1:])
            kernel = torch.tensor(np.asarray(dense.kernel))
            gamma, beta, mean, variance = (torch.tensor(np.asarray(vector))[index] for vector in batch_norm.weights)
            x = torch_input(maps).flatten(1)
            return expected, F.batch_norm(x, mean, variance, gamma, beta, eps=batch_norm.epsilon) @ kernel[index]

        yield f"{h} x {w} x {c}", run


def _as_index(answer: Tensor | Sequence[int], shape: _Shape) -> Tensor:
    """Return the index as a tensor.

    Raises:
        ParityError: If it is none, or one of those that readers mistake for the right one.
    """
    features = prod(shape)
    index = torch.as_tensor(answer)
    if index.shape != (features,):
        raise ParityError("answer", [f"the index has the shape {tuple(index.shape)}, not {(features,)}"])
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ParityError("answer", [f"the index holds {index.dtype}, not integers"])
    index = index.long()
    places = torch.arange(features)
    if not torch.equal(index.remainder(features).sort().values, places):
        raise ParityError("answer", [f"the index must hold each number from 0 to {features - 1} once"])
    right = places.reshape(shape).permute(2, 0, 1).flatten()
    if torch.equal(index, places):
        raise ParityError("answer", ["this index changes nothing; the features stay in Keras's order"])
    if torch.equal(index[right], places):
        raise ParityError("answer", ["this is the way back, from PyTorch's order to Keras's"])
    if torch.equal(index, places.reshape(shape).permute(2, 1, 0).flatten()) and not torch.equal(index, right):
        raise ParityError("answer", ["this is the order c, w, h; PyTorch's is c, h, w"])
    return index


def _decoder_cases(answer: Callable, bias_scale: float) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for h, w, c in _ONE_ROW + _SEVERAL_ROWS:
        x = rng.normal(size=(2, 5))
        dense = keras.layers.Dense(h * w * c, dtype="float64")
        dense.build(x.shape)
        dense.set_weights([rng.normal(size=(5, h * w * c)), bias_scale * rng.normal(size=h * w * c)])
        expected = np.asarray(keras.layers.Reshape((h, w, c), dtype="float64")(dense(x)))
        weights = [torch.tensor(np.asarray(weight)) for weight in dense.weights]

        def run(shape=(h, w, c), x=x, expected=expected, weights=weights):
            converted = answer(*(weight.clone() for weight in weights), *shape)
            if converted is None:
                return None
            weight, bias = _as_weight_and_bias(converted, prod(shape), x.shape[1])
            h, w, c = shape
            output = F.linear(torch.tensor(x), weight.double(), bias.double()).unflatten(1, (c, h, w))
            if not largest_difference(expected, channels_last(output)) < 1e-4:
                _expect_reordered_outputs(weight, weights[0], shape)
                _name_the_order(weight, weights[0].T, "outputs stay", shape)
                _name_the_order(bias, weights[1], "biases stay", shape)
            coarse = [tensor.dtype for tensor in (weight, bias) if tensor.dtype != torch.float64]
            if coarse and largest_difference(expected, channels_last(output)) < 1e-4:
                raise ParityError("answer", [f"right, but computed in {coarse[0]}; the tensors given are float64"])
            return expected, channels_last(output)

        yield f"{h} x {w} x {c}", run


def _name_the_order(given: Tensor, unordered: Tensor, what_stays: str, shape: _Shape) -> None:
    """Say so if the rows of a tensor are in one of the orders that readers mistake for PyTorch's.

    Args:
        given: The reader's tensor.
        unordered: The same with its rows in Keras's order.
        what_stays: What these rows are, and the verb.
        shape: The maps (h, w, c).

    Raises:
        ParityError: If the order is Keras's own, the way back, or c, w, h.
    """
    places = torch.arange(prod(shape)).reshape(shape)
    right = places.permute(2, 0, 1).flatten()
    orders = {
        f"the {what_stays} in Keras's order": places.flatten(),
        "this is the way back, from PyTorch's order to Keras's": right.argsort(),
        "this is the order c, w, h; PyTorch's is c, h, w": places.permute(2, 1, 0).flatten(),
    }
    if torch.allclose(given.double(), unordered[right]):
        return
    for said, order in orders.items():
        if torch.allclose(given.double(), unordered[order]):
            raise ParityError("answer", [said])


def _expect_reordered_outputs(weight: Tensor, kernel: Tensor, shape: _Shape) -> None:
    """Say so if the weight is what the page's ``reorder_rows`` makes of the kernel, whose rows are the inputs here."""
    reordered_rows = kernel.reshape(*shape, -1).permute(2, 0, 1, 3).flatten(0, 2)
    if torch.allclose(weight.double(), reordered_rows):
        problem = "this reorders the rows of the kernel; here the rows are the inputs, and the outputs are the columns"
        raise ParityError("answer", [problem])


def _as_weight_and_bias(answer: tuple[Tensor, Tensor], outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the pair as tensors.

    Raises:
        ParityError: If it is no pair, or if a shape is not that of a Linear.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise ParityError("answer", [f"it returns {type(answer).__name__}, not the pair (weight, bias)"])
    weight, bias = (torch.as_tensor(part).detach() for part in answer)
    for name, tensor, due in (("weight", weight, (outputs, inputs)), ("bias", bias, (outputs,))):
        if tensor.shape != due:
            raise ParityError("answer", [f"the {name} has the shape {tuple(tensor.shape)}, not {due}"])
    return weight, bias
