"""Move the weights of a Keras model into its PyTorch twin: all checks first, then all copies."""

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from parity.errors import ParityError
from parity.weights.fast_copy import copy_permuted
from parity.weights.fills import Fill, Weight, fills, is_own, keras_weights, same_but_for_ones, twin_tensors
from parity.weights.flattened import ON_FEATURES, counts_features, is_shape_of, unflattened_channels_first
from parity.weights.layouts import find_layout, needs_no_place
from parity.weights.mapping import AS_IT_IS, BY_HAND, NOT_FROM_KERAS, Row, mapping_rows, source_of, unknown_names
from parity.weights.module_settings import MOMENTUM, same_setting
from parity.weights.names import with_names_of
from parity.weights.sequence_layouts import is_query_key_or_value, slot_of

import keras
import pandas as pd
import torch
from torch import Tensor, nn

# Of the tensors that are left to the user, so many are named.
_MOST_NAMED = 5


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
            whose vectors have a number for each feature. A Keras model with the channels first needs this only for a
            ``Flatten(data_format="channels_first")``, which moves the channels to the end before it flattens.
        training: Whether the twin will be trained. Then another momentum of BatchNormalization is a fault; else it is
            a warning, because it changes no prediction.

    Raises:
        ParityError: If anything does not fit: unknown, repeated or missing names, a kind of layer that is not
            covered, another kind of module, shape, epsilon, stride, dilation or number of groups, a value that is NaN
            or infinite or too large for the twin's dtype, a negative variance. It lists every fault with the line of
            the mapping, and leaves the PyTorch model as it was.
    """
    rows = mapping_rows(mapping)
    weights, faults = _by_path(keras_model)
    tensors = twin_tensors(torch_model)
    rows = with_names_of(rows, weights, tensors)
    faults += unknown_names(rows, weights, tensors)
    faults += _repeated_or_missing(rows, weights, tensors)
    known = [row for row in rows if row.torch in tensors and (not row.keras or row.keras in weights)]
    moved = [row for row in known if row.keras and row.how in ("", AS_IT_IS)]
    modules = dict(torch_model.named_modules(remove_duplicate=False))
    placed = list(fills(moved, weights, tensors, modules))
    moves = [fill for fill in placed if isinstance(fill, Fill)]
    flattened = {name: tuple(shape) for name, shape in (flatten or {}).items()}
    for one in placed:
        if isinstance(one, Fill):
            of_one: Iterable[str] = _fill_faults(one, flattened.get(one.weight.layer.name))
        else:
            of_one = [one.why]
        faults += [f"{one.row.label}: {fault}" for fault in of_one]
    faults += [
        f"{row.label}: {row.torch} cannot be written: {obstacle}"
        for row in known
        if row.how in ("", AS_IT_IS) and (obstacle := _obstacle_to_writing(tensors[row.torch]))
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
    constants: dict[Row, float] = {}
    for row in known:
        if not row.keras and row.how == "":
            value = _constant(row, moves)
            if value is None:
                known_kind = any(fill.row.module == row.module and not is_own(fill.module) for fill in moves)
                how = "" if known_kind else f"; if it has none, say {NOT_FROM_KERAS!r} in the column how"
                faults.append(f"{row.label}: {row.torch} needs a Keras weight{how}")
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
    by_hand = [row.torch or row.keras for row in rows if row.how == BY_HAND]
    if by_hand and source_of(mapping) == "proposal":  # whoever writes these rows knows
        more = f", and {len(by_hand) - _MOST_NAMED} more" if len(by_hand) > _MOST_NAMED else ""
        named = ", ".join(by_hand[:_MOST_NAMED]) + more
        warnings.warn(f"{source_of(mapping)}: left to you, as the column how says: {named}", stacklevel=2)
    with torch.no_grad():
        # A tensor that is computed is a copy: its module still has its old weights when the copy has been filled.
        computed = [fill for fill in moves if _is_parametrized(fill)]
        for move in computed:
            _copy(move, flattened.get(move.weight.layer.name))
        if faults := list(_parametrization_faults(computed, tensors)):
            raise ParityError(source_of(mapping), faults)
        for move in computed:
            setattr(move.module, move.row.tensor, tensors[move.row.torch])
        for move in moves:
            if not _is_parametrized(move):
                _copy(move, flattened.get(move.weight.layer.name))
        for row, constant in constants.items():
            tensors[row.torch].fill_(constant)


def _by_path(model: keras.Model) -> tuple[dict[str, Weight], list[str]]:
    """Return {path: weight}, and faults."""
    weights = list(keras_weights(model))
    paths = Counter(weight.variable.path for weight in weights)
    faults = [
        f"{n} weights of the Keras model have the path {p}; rename their layers" for p, n in paths.items() if n > 1
    ]
    if not weights:
        faults.append("the Keras model has no weights; build it first")
    return {weight.variable.path: weight for weight in weights}, faults


def _repeated_or_missing(
    rows: list[Row], weights: Mapping[str, Weight], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yield a fault for each name that has two rows that cannot both hold, or none."""
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
            before = row_of.setdefault((what, key), row)
            # Several weights may fill one tensor, and one weight several tensors.
            together = row.keras and before.keras and row.torch and before.torch
            same = row.torch == before.torch if what == "PyTorch tensor" else row.torch != before.torch
            if before is not row and not (together and same):
                yield f"{row.label}: {what} {name} has a row already, {before.label}"
    for path, weight in weights.items():
        if ("Keras weight", path) not in row_of and not needs_no_place(weight.layer, weight.variable.name):
            yield f"no row for Keras weight {path}"
    for key in tensors:
        if ("PyTorch tensor", identity[key]) not in row_of:
            yield f"no row for PyTorch tensor {key}"


def _fill_faults(fill: Fill, flattened: tuple[int, ...] | None) -> Iterator[str]:
    """Yield what is wrong with one row by itself: shapes and values."""
    row, (layer, variable), value = fill.row, fill.weight, fill.weight.value
    reordered = flattened if counts_features(layer, variable.name) else None
    shape, target = tuple(fill.place.view(value).shape), tuple(fill.tensor.shape)
    if fill.wrong_name:
        yield f"{row.keras} {fill.wrong_name}"
        return
    if reordered is not None and not is_shape_of(reordered, value.shape[0]):
        yield f"{row.keras} {tuple(value.shape)} does not take {flattened} flattened"
    elif fill.rows is None and not same_but_for_ones(shape, target):
        yield f"{row.keras} {tuple(value.shape)} becomes {shape}, but {row.torch} is {target}"
    elif fill.rows is not None and not same_but_for_ones(shape[1:], target[1:]):
        yield f"{row.keras} {tuple(value.shape)} becomes {shape}, but its part {row.torch} is {target}"
    yield from (f"{row.keras} {fault}" for fault in _value_faults(value, fill.tensor, variable.name))


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


def _twin_faults(moves: Iterable[Fill]) -> Iterator[str]:
    """Yield a fault wherever the weights of a layer go to different modules, or those of a module to different layers.

    A module with layers and directions of its own, such as ``nn.LSTM``, counts as several. Several layers may share a
    module if they fill each of its tensors together and in one order.
    """
    moves = [fill for fill in moves if not is_own(fill.module)]
    slots_of: dict[tuple[_Part, str], list[Fill]] = defaultdict(list)
    parts_of: dict[tuple[_Slot, str], list[Fill]] = defaultdict(list)
    for fill in moves:
        slots_of[_part_of(fill), fill.weight.variable.name].append(fill)
        parts_of[_slot_of(fill), fill.row.tensor].append(fill)
    first_slots: dict[_Part, list[Fill]] = {}
    first_parts: dict[_Slot, list[Fill]] = {}
    for fill in moves:
        row, part, slot = fill.row, _part_of(fill), _slot_of(fill)
        together = slots_of[part, fill.weight.variable.name]
        first = first_slots.setdefault(part, together)
        if fill is together[0] and _slots(first) != _slots(together):
            other = first[0].row
            yield f"{row.label}: {row.keras} goes to {row.owner}, but {other.keras} to {other.owner} ({other.label})"
        together = parts_of[slot, row.tensor]
        first = first_parts.setdefault(slot, together)
        if fill is together[0] and [*map(_part_of, first)] != [*map(_part_of, together)]:
            other = first[0].row
            yield f"{row.label}: {row.owner} takes {row.keras}, but {other.keras} as well ({other.label})"
        due = is_query_key_or_value(fill.weight.layer)
        at = next(number for number, one in enumerate(together) if one is fill)
        if isinstance(fill.module, nn.MultiheadAttention) and len(together) == 3 and due not in (None, at):
            yield f"{row.label}: {row.keras} is part {at + 1} of {row.torch}, whose order is query, key, value"


_Part = tuple[int, str]
_Slot = tuple[int, str]


def _part_of(fill: Fill) -> _Part:
    """Return which module's weights of a layer it is."""
    return id(fill.weight.layer), fill.place.part


def _slot_of(fill: Fill) -> _Slot:
    """Return the module that it fills, with the layer and direction in it."""
    return id(fill.module), slot_of(fill.row.tensor)


def _slots(several: list[Fill]) -> list[_Slot]:
    """Return the slots of several fills, each once: two biases of one module are no two modules."""
    return list(dict.fromkeys(map(_slot_of, several)))


def _other_settings(moves: Iterable[Fill]) -> Iterator[tuple[str, str]]:
    """Yield the name of each setting in which a layer and its module differ, and what is said of their first row."""
    layers, slots = set(), set()
    for fill in moves:
        row, layer = fill.row, fill.weight.layer
        if _part_of(fill) not in layers and _slot_of(fill) not in slots:
            for name, expected, actual in fill.place.settings(layer, fill.module):
                if not same_setting(expected, actual):
                    is_, needs = _shown(actual), _shown(expected)
                    yield name, f"{row.label}: {name} of {row.owner} is {is_}; {layer.name} needs {needs}"
        layers.add(_part_of(fill))
        slots.add(_slot_of(fill))


def _shown(setting: object) -> str:
    """Return a setting as one would write it: a fraction with the digits that ``same_setting`` compares."""
    return f"{setting:.7g}" if isinstance(setting, float) else str(setting)


def _copy(fill: Fill, flattened: tuple[int, ...] | None) -> None:
    source, target = fill.value, fill.tensor
    if flattened and counts_features(fill.weight.layer, fill.weight.variable.name):
        *spatial, channels = flattened
        source, target = unflattened_channels_first(source, flattened), target.unflatten(-1, (channels, *spatial))
    copy_permuted(source, target)


def _parametrization_faults(moves: Iterable[Fill], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield a fault for each tensor that a parametrization would change when it is set."""
    for fill in {fill.row.torch: fill for fill in moves}.values():
        tried, name = copy.deepcopy(fill.module), fill.row.tensor
        setattr(tried, name, tensors[fill.row.torch])
        if not torch.allclose(getattr(tried, name), tensors[fill.row.torch], rtol=1e-4, atol=1e-6):
            how = f"{fill.row.torch} is computed by a parametrization, which changes what it is given"
            yield f"{fill.row.label}: {how}; take it off, or fill the tensor by hand"


def _is_parametrized(fill: Fill) -> bool:
    return torch.nn.utils.parametrize.is_parametrized(fill.module, fill.row.tensor)


def _constant(row: Row, moves: Iterable[Fill]) -> float | None:
    """Return the value of a tensor that no Keras weight fills; None if a Keras weight should fill it.

    Args:
        row: The row of the tensor.
        moves: What Keras weights fill.
    """
    if row.tensor == "num_batches_tracked":
        return 0
    beside = [
        fill for fill in moves if fill.row.module == row.module and slot_of(fill.row.tensor) == slot_of(row.tensor)
    ]
    kind = "weight" if row.tensor == "weight" else "bias" if "bias" in row.tensor else None
    if not beside or kind is None:
        return None
    for layer, part in {_part_of(fill): (fill.weight.layer, fill.place.part) for fill in beside}.values():
        layout = find_layout(layer) or {}
        for variable in layer.weights:
            for place in layout[variable.name].all if variable.name in layout else ():
                filled = any(fill.weight.variable is variable and fill.place.tensor == place.tensor for fill in beside)
                if place.part == part and place.is_named(row.tensor) and not filled:
                    return None
    return 1 if kind == "weight" else 0
