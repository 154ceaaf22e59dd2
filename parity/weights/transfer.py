"""Move the weights of a Keras model into its PyTorch twin: all checks first, then all copies."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from parity.errors import ParityError
from parity.models.keras_layers import inner_layers
from parity.tensors import as_tensor
from parity.weights.fast_copy import copy_permuted
from parity.weights.flattened import ON_FEATURES, counts_features, is_shape_of, unflattened_channels_first
from parity.weights.layouts import MOMENTUM, Place, covered_layers, find_layout, same_setting
from parity.weights.mapping import Row, mapping_rows, source_of, unknown_names

import keras
import pandas as pd
import torch
from torch import Tensor, nn


def transfer(
    keras_model: keras.Model,
    torch_model: nn.Module,
    mapping: pd.DataFrame,
    flatten: Mapping[str, Sequence[int]] | None = None,
    *,
    training: bool = False,
) -> None:
    """Fill a PyTorch model with the weights of its Keras twin: every tensor once, all or nothing.

    The layout is decided by the kind of the Keras layer (``parity.weights.layouts``). The values are copied into the
    tensors that the PyTorch model has: they keep their dtype, device and identity.

    Args:
        keras_model: The model to take weights from. It is not changed.
        torch_model: The twin to fill.
        mapping: A table with the columns ``keras`` and ``torch``, as ``parity.read_mapping`` returns it. An
            empty keras field is right for ``num_batches_tracked``, which becomes 0, for a scale that the Keras layer
            does without, which becomes 1, and for a bias or offset that it does without, which becomes 0.
        flatten: For a twin that flattens its activations channels first: the name of each Keras layer after such a
            ``Flatten``, up to the first Dense layer, and the shape (*spatial, channels) that Keras flattens. The layer
            may be Dense, whose kernel has a row for each feature, or BatchNormalization, LayerNormalization or PReLU,
            whose vectors have a number for each feature.
        training: Whether the twin will be trained. Then another momentum of BatchNormalization is a fault; else it is
            a warning, because it changes no prediction.

    Raises:
        ParityError: If anything does not fit: unknown, repeated or missing names, a kind of layer that is not
            covered, another kind of module, shape, epsilon, stride, dilation or number of groups, a value that is NaN
            or infinite or too large for the twin's dtype, a negative variance. It lists every fault with the line of
            the mapping, and leaves the PyTorch model as it was.
    """
    rows = mapping_rows(mapping)
    weights, faults = _keras_weights(keras_model)
    tensors = {k: v for k, v in torch_model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    faults += unknown_names(rows, weights, tensors)
    faults += _repeated_or_missing(rows, weights, tensors)
    known = [row for row in rows if row.torch in tensors and (not row.keras or row.keras in weights)]
    modules = dict(torch_model.named_modules(remove_duplicate=False))
    pairs = [_Pair(row, weights[row.keras], tensors[row.torch], modules[row.module]) for row in known if row.keras]
    moves = list(_moves(pairs))
    flattened = {name: tuple(shape) for name, shape in (flatten or {}).items()}
    for pair in pairs:
        faults += [f"{pair.row.label}: {fault}" for fault in _pair_faults(pair, flattened.get(pair.weight.layer.name))]
    faults += [
        f"{row.label}: {row.torch} cannot be written: {obstacle}"
        for row in known
        if (obstacle := _obstacle_to_writing(tensors[row.torch]))
    ]
    settings = list(_other_settings(moves))
    faults += [said for name, said in settings if name != MOMENTUM]
    faults += _twin_faults(moves)
    in_training = [said for name, said in settings if name == MOMENTUM]
    if training:
        faults += in_training
    layers = {id(weight.layer): weight.layer for weight in weights.values()}.values()
    count = Counter(layer.name for layer in layers if isinstance(layer, ON_FEATURES))
    kinds = ", ".join(kind.__name__ for kind in ON_FEATURES)
    faults += [f"flatten: the Keras model has no layer {n} of the kinds {kinds}" for n in flattened if count[n] == 0]
    faults += [f"flatten: the Keras model has {count[n]} layers {n}" for n in flattened if count[n] > 1]
    twins = {pair.row.module: pair.weight for pair in pairs}
    constants: dict[Row, float] = {}
    for row in known:
        if not row.keras:
            value = _constant(row, twins.get(row.module))
            if value is None:
                faults.append(f"{row.label}: {row.torch} needs a Keras weight")
            else:
                constants[row] = value
    if faults:
        raise ParityError(source_of(mapping), faults)
    if in_training and not training:
        what = f"{in_training[0]}{f', and {len(in_training) - 1} more' if len(in_training) > 1 else ''}"
        warnings.warn(
            f"{source_of(mapping)}: {what}. This changes no prediction, but it changes training; with training=True it "
            "is a fault",
            stacklevel=2,
        )
    with torch.no_grad():
        for move in moves:
            _copy(move, flattened.get(move.layer.name))
        for row, constant in constants.items():
            tensors[row.torch].fill_(constant)


class _Weight(NamedTuple):
    """A Keras weight, the innermost layer that has it, and where it goes: None if that is not known."""

    layer: keras.Layer
    variable: keras.Variable
    place: Place | None


class _Pair(NamedTuple):
    """A row whose names both exist: the Keras weight, and the PyTorch tensor and module that it is for."""

    row: Row
    weight: _Weight
    tensor: Tensor
    module: nn.Module


class _Move(NamedTuple):
    """A pair whose module is of a kind that the weight can go to."""

    row: Row
    layer: keras.Layer
    variable: keras.Variable
    place: Place
    tensor: Tensor
    module: nn.Module


def _moves(pairs: Iterable[_Pair]) -> Iterator[_Move]:
    """Yield the pairs whose module is of a kind that the weight can go to."""
    for row, (layer, variable, place), tensor, module in pairs:
        if place is not None and isinstance(module, place.modules):
            yield _Move(row, layer, variable, place, tensor, module)


def _keras_weights(model: keras.Model) -> tuple[dict[str, _Weight], list[str]]:
    """Return {path: weight}, and faults."""
    owners = {id(variable): (layer, variable) for layer in inner_layers(model) for variable in layer.weights}
    weights = [
        _Weight(layer, variable, (find_layout(layer) or {}).get(variable.name)) for layer, variable in owners.values()
    ]
    paths = Counter(weight.variable.path for weight in weights)
    faults = [
        f"{n} weights of the Keras model have the path {p}; rename their layers" for p, n in paths.items() if n > 1
    ]
    if not weights:
        faults.append("the Keras model has no weights; build it first")
    return {weight.variable.path: weight for weight in weights}, faults


def _repeated_or_missing(rows: list[Row], weights: Iterable[str], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a fault for each name that has two rows or none."""
    # A tensor has two keys if its module is registered twice, or if weights are tied; tied weights may even be two
    # tensors in the same memory. A row for either key will do, but not for both. A tensor on the meta device has no
    # memory, so its own identity counts.
    identity = {key: tensor.data_ptr() or id(tensor) for key, tensor in tensors.items()}
    row_of: dict[object, Row] = {}
    for row in rows:
        for what, name, key in (
            ("Keras weight", row.keras, row.keras),
            ("PyTorch tensor", row.torch, identity.get(row.torch, row.torch)),
        ):
            if not name:
                continue
            if (what, key) in row_of:
                yield f"{row.label}: {what} {name} has a row already, {row_of[what, key].label}"
            row_of.setdefault((what, key), row)
    for path in weights:
        if ("Keras weight", path) not in row_of:
            yield f"no row for Keras weight {path}"
    for key in tensors:
        if ("PyTorch tensor", identity[key]) not in row_of:
            yield f"no row for PyTorch tensor {key}"


def _pair_faults(pair: _Pair, flattened: tuple[int, ...] | None) -> Iterator[str]:
    """Yield what is wrong with one pair by itself: kinds, names, shapes, values."""
    row, (layer, variable, place), tensor, module = pair
    kind = type(layer).__name__
    if find_layout(layer) is None:
        yield f"{row.keras}: the kind {kind} is not covered; covered are {', '.join(covered_layers())}"
    elif place is None:
        yield f"{row.keras}: a {kind} has no weight {variable.name} that can be moved"
    elif not isinstance(module, place.modules):
        yield f"{row.keras} goes to the {place.tensor} of a {place.needed}; {row.torch} is in a {type(module).__name__}"
    elif row.tensor != place.tensor:
        right = row.torch.removesuffix(row.tensor) + place.tensor
        yield f"{row.keras} belongs in {right}, not in {row.torch}"
    else:
        value = as_tensor(variable)
        reordered = flattened if counts_features(layer, variable.name) else None
        if reordered is not None and not is_shape_of(reordered, value.shape[0]):
            yield f"{row.keras} {tuple(value.shape)} does not take {flattened} flattened"
        elif (shape := tuple(place.view(value).shape)) != tuple(tensor.shape):
            yield f"{row.keras} {tuple(value.shape)} becomes {shape}, but {row.torch} is {tuple(tensor.shape)}"
        yield from (f"{row.keras} {fault}" for fault in _value_faults(value, tensor, variable.name))


def _obstacle_to_writing(tensor: Tensor) -> str:
    """Return why PyTorch would refuse to copy into a tensor, or nothing."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "it was made in inference mode"
    if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "some of its elements are one and the same"
    return ""


def _value_faults(value: Tensor, target: Tensor, name: str) -> Iterator[str]:
    if not value.is_floating_point():
        yield f"is kept as {value.dtype}; only floating-point weights can be moved"
        return
    # A finite sum proves that all values are finite, at a fraction of the cost of looking at each.
    if not (value.sum().isfinite() or value.isfinite().all()):
        yield "has values that are NaN or infinite"
    elif name == "moving_variance" and value.min() < -torch.finfo(value.dtype).eps * max(1.0, value.max().item()):
        yield f"has negative variances, the least {value.min().item():.3g}"
    if target.is_meta:
        yield "has nowhere to go: the PyTorch model is on the meta device"
    elif not target.is_floating_point():
        yield f"cannot be kept as {target.dtype}"
    elif _narrower(target.dtype, value.dtype) and value.abs().max() > torch.finfo(target.dtype).max:
        yield f"has values too large for {target.dtype}"


def _narrower(a: torch.dtype, b: torch.dtype) -> bool:
    return torch.finfo(a).max < torch.finfo(b).max


def _twin_faults(moves: Iterable[_Move]) -> Iterator[str]:
    """Yield a fault wherever a layer has two modules, or a module has two layers."""
    module_of: dict[tuple[int, str], Row] = {}
    layer_of: dict[int, tuple[tuple[int, str], Row]] = {}
    for row, layer, _, place, _, module in moves:
        part = (id(layer), place.part)
        first = module_of.setdefault(part, row)
        if first.module != row.module:
            yield f"{row.label}: {row.keras} goes to {row.owner}, but {first.keras} to {first.owner} ({first.label})"
        first_part, first = layer_of.setdefault(id(module), (part, row))
        if first_part != part:
            yield f"{row.label}: {row.owner} takes {row.keras}, but {first.keras} as well ({first.label})"


def _other_settings(moves: Iterable[_Move]) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting in which a layer and its module differ, and what is said of their first row."""
    layers, modules = set(), set()
    for row, layer, _, place, _, module in moves:
        if (id(layer), place.part) not in layers and id(module) not in modules:
            for name, expected, actual in place.settings(layer, module):
                if not same_setting(expected, actual):
                    is_, needs = _shown(actual), _shown(expected)
                    yield name, f"{row.label}: {name} of {row.owner} is {is_}; {layer.name} needs {needs}"
        layers.add((id(layer), place.part))
        modules.add(id(module))


def _shown(setting: object) -> str:
    """Return a setting as one would write it: a fraction with the digits that ``same_setting`` compares."""
    return f"{setting:.7g}" if isinstance(setting, float) else str(setting)


def _copy(move: _Move, flattened: tuple[int, ...] | None) -> None:
    source, target = move.place.view(as_tensor(move.variable)), move.tensor
    if flattened and counts_features(move.layer, move.variable.name):
        *spatial, channels = flattened
        source, target = unflattened_channels_first(source, flattened), target.unflatten(-1, (channels, *spatial))
    copy_permuted(source, target)


def _constant(row: Row, twin: _Weight | None) -> float | None:
    """Return the value of a tensor that no Keras weight fills; None if a Keras weight should fill it.

    Args:
        row: The row of the tensor.
        twin: A weight that fills another tensor of the same module, if there is one.
    """
    if row.tensor == "num_batches_tracked":
        return 0
    layout = find_layout(twin.layer) if twin is not None else None
    if twin is None or twin.place is None or layout is None or row.tensor not in ("weight", "bias"):
        return None
    places = [layout[variable.name] for variable in twin.layer.weights if variable.name in layout]
    if any((place.tensor, place.part) == (row.tensor, twin.place.part) for place in places):
        return None
    return 1 if row.tensor == "weight" else 0
