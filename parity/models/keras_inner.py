"""What the layers within a Keras layer take while it runs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

from parity.models.keras_graph import Step, run_step
from parity.models.keras_values import Value

import keras
from keras import tree


def inputs_within(step: Step, inputs: Sequence[Value], inner: Sequence[keras.Layer]) -> dict[int, list[Value]]:
    """Run a step again; return what layers within its layer take, call by call, by the identity of the layer.

    Args:
        step: The step.
        inputs: What it takes.
        inner: The layers, of which each is called with its input as the first argument.
    """
    if not inner:
        return {}
    exact = _watched(step, [value.exact for value in inputs], inner)
    perturbed = _watched(step, [value.perturbed for value in inputs], inner)
    return {key: [Value(*pair) for pair in zip(exact[key], perturbed[key], strict=True)] for key in exact}


def _watched(step: Step, values: Sequence[Any], inner: Sequence[keras.Layer]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {id(layer): [] for layer in inner}

    def watch(call: Callable[..., Any], taken: list[Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            taken.extend(tree.flatten((args, kwargs))[:1])
            return call(*args, **kwargs)

        return watched

    with ExitStack() as stack:
        for layer in inner:
            stack.enter_context(mock.patch.dict(vars(layer), {"call": watch(layer.call, found[id(layer)])}))
        run_step(step, values)
    return found
