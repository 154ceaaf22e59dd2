"""What the layers within a Keras layer take while it runs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from parity.models.keras_graph import Step, run_step
from parity.models.keras_values import Value
from parity.models.rounding import errors_of, perturbed_tensor

import keras
from keras import tree


def inputs_within(
    step: Step, inputs: Sequence[Value], outputs: Sequence[Value], inner: Sequence[keras.Layer]
) -> dict[int, list[Value]]:
    """Run a step again; return what layers within its layer take, call by call, by the identity of the layer.

    They stand in the order of their first calls. What is computed within the layer, is perturbed as its outputs are.

    Args:
        step: The step.
        inputs: What it takes.
        outputs: What it returns.
        inner: The layers, of which each is called with its input as the first argument.
    """
    if not inner:
        return {}
    errors = errors_of(step, [value.exact for value in inputs], [value.exact for value in outputs], False)
    exact = _watched(step, [value.exact for value in inputs], inner)
    perturbed = _watched(step, [value.perturbed for value in inputs], inner)
    taken = {id(value.exact) for value in inputs}

    def value_of(one: Any, other: Any, call: int) -> Value:
        return Value(one, other if id(one) in taken else perturbed_tensor(other, call, errors))

    return {
        layer: [value_of(*pair, call) for call, pair in enumerate(zip(calls, perturbed[layer], strict=True))]
        for layer, calls in exact.items()
    }


def _watched(step: Step, values: Sequence[Any], inner: Sequence[keras.Layer]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}

    def watch(layer: keras.Layer) -> Callable[..., Any]:
        call = layer.call

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.setdefault(id(layer), []).extend(tree.flatten((args, kwargs))[:1])
            return call(*args, **kwargs)

        return watched

    with ExitStack() as stack:
        for layer in {id(layer): layer for layer in inner}.values():
            stack.enter_context(mock.patch.dict(vars(layer), {"call": watch(layer)}))
        run_step(step, values)
    return found
