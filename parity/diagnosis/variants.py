"""What a recurrent layer or an attention would return with other settings, or with the twin's weights, as causes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, short_name
from parity.models.keras_graph import Step
from parity.models.keras_variants import Variant, output_of
from parity.weights.fills import Fill, keras_weight_of

import keras
import torch
from torch import Tensor

Said = tuple[str, str]
"""A cause, and in words what is wrong."""


def step_of_kind(evidence: Evidence, kinds: tuple[type[keras.Layer], ...]) -> Step | None:
    """Return the step, if it is that of a layer of these kinds, and it is known what it takes."""
    step = evidence.step
    known = step is not None and not step.is_activation and isinstance(step.layer, kinds)
    return step if known and evidence.inputs else None


def first_that_explains(
    step: Step, inputs: Sequence[Tensor], variants: Iterable[tuple[str, str, Variant]], views: Sequence[Evidence]
) -> Iterator[Cause]:
    """Yield the cause of the first variant with which a layer returns what the twin has.

    Args:
        step: The step of the layer.
        inputs: A tensor for each of its inputs.
        variants: Each with its cause and the words for it.
        views: The evidence; several if the twin may have done it in several ways.
    """
    for cause, detail, variant in variants:
        value = output_of(step, inputs, variant)
        if any(evidence.explains(value) for evidence in views):
            yield known_cause(cause, detail)
            return


def each_cause_once(said: Iterable[Said]) -> Iterator[Cause]:
    """Yield each cause once, with the first words for it."""
    named: dict[str, str] = {}
    for cause, detail in said:
        named.setdefault(cause, detail)
    yield from (known_cause(cause, detail) for cause, detail in named.items())


def weights_of_twin(fills: Mapping[str, list[Fill]]) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the twin has in the place of each weight, in Keras's layout, and the paths of the wrong ones.

    Args:
        fills: What each weight fills, by its path.
    """
    actual: dict[str, Tensor] = {}
    for path, several in fills.items():
        found = keras_weight_of(several)
        if found is not None:
            actual[path] = _with_second_bias(found, several[0]) if short_name(path) == "bias" else found
    return actual, [path for path, found in actual.items() if not torch.equal(found, fills[path][0].weight.value)]


def explaining_weights(step: Step, evidence: Evidence) -> tuple[dict[str, Tensor], list[str]]:
    """Return the same of a step's weights; no wrong ones if Keras's layer with these does not return what the twin has.

    Args:
        step: The step.
        evidence: The layer that diverges.
    """
    actual, wrong = weights_of_twin(evidence.fills_by_path())
    explained = wrong and evidence.explains(output_of(step, evidence.inputs, Variant(weights=actual)))
    return actual, wrong if explained else []


def _with_second_bias(bias: Tensor, fill: Fill) -> Tensor:
    """Return a bias and the other one that PyTorch's recurrent modules add; but for a GRU, Keras has one bias."""
    name = fill.row.tensor
    other = name.replace("_ih", "_hh") if "_ih" in name else name.replace("_hh", "_ih")
    second: Any = getattr(fill.module, other, None) if other != name else None
    added = isinstance(second, Tensor) and not isinstance(fill.weight.layer, keras.layers.GRUCell)
    return bias + second.detach() if added else bias
