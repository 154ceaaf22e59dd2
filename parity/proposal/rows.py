"""Which rows of a mapping fill a module with a part; none if the module does not fit it."""

from collections.abc import Iterator, Mapping

from parity.proposal.parts import ATTENTION, JOINED, LAYER, OWN, RECURRENT, Part
from parity.weights.fills import Fill, Misfit, fills, is_own, same_but_for_ones
from parity.weights.layouts import find_layout
from parity.weights.mapping import AS_IT_IS, Row
from parity.weights.standard_rows import Pair, attention_pairs, cell_pairs

import keras
import torch
from torch import Tensor, nn

# The tensors that a module may have although the Keras layer has no such weight, and their values in this case.
CONSTANTS = {"weight": 1, "bias": 0, "num_batches_tracked": 0}


def constant_of(tensor: str) -> int | None:
    """Return what a tensor holds that no Keras weight fills; None if it cannot do without."""
    own = tensor.rpartition(".")[2]
    return 0 if own.startswith("bias_") or own.endswith("_bias") else CONSTANTS.get(own)


def rows_of(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> list[Pair] | None:
    """Return the rows with which a part fills a module, in the order of the module's tensors; None if it does not fit.

    Args:
        part: The part.
        module: The module.
        tensors: Its tensors, by their names within it.
    """
    if part.kind == LAYER and isinstance(module, next(iter(part.weights.values()))[1].modules):
        return _usual(part, tensors)
    found = {LAYER: _elsewhere, RECURRENT: _recurrent, ATTENTION: _attention, JOINED: _joined, OWN: _own}[part.kind]
    return _complete(part, list(found(part, module, tensors)), module, tensors)


def fills_of(part: Part, pairs: list[Pair], module: nn.Module, tensors: Mapping[str, Tensor]) -> list[Fill | Misfit]:
    """Return what the rows of a part fill, in their order.

    Args:
        part: The part.
        pairs: The rows.
        module: The module.
        tensors: Its tensors, by their names within it.
    """
    # Every module is called by its place in this one.
    modules = {f"m.{name}" if name else "m": inner for name, inner in module.named_modules()}
    how = AS_IT_IS if part.kind == OWN else ""
    rows = [Row("", path, f"m.{own}", how) for path, own in pairs if path]
    return list(fills(rows, part.held, {f"m.{own}": tensor for own, tensor in tensors.items()}, modules))


def _complete(part: Part, pairs: list[Pair], module: nn.Module, tensors: Mapping[str, Tensor]) -> list[Pair] | None:
    """Return rows with those of the constants, in the order of the tensors; None if they do not fill them all."""
    of_tensor = {own: [path for path, other in pairs if other == own] for own in tensors}
    moved = sum(map(len, of_tensor.values()))
    if not pairs or moved < len(pairs) or {path for path, _ in pairs} != set(part.held):
        return None
    if any(not paths and constant_of(own) is None for own, paths in of_tensor.items()):
        return None
    pairs = [(path, own) for own, paths in of_tensor.items() for path in paths or [""]]
    return pairs if all(_fits(fill) for fill in fills_of(part, pairs, module, tensors)) else None


def _fits(fill: Fill | Misfit) -> bool:
    if isinstance(fill, Misfit) or fill.wrong_name:
        return False
    like = torch.empty(tuple(fill.weight.variable.shape), device="meta")
    try:
        return fill.laid_out(like).shape == fill.tensor.shape
    except RuntimeError:
        return False


def _usual(part: Part, tensors: Mapping[str, Tensor]) -> list[Pair] | None:
    """Return the rows of a layer in a module of the kind that it becomes."""
    expected = {name: _shape(part, name) for name in part.weights}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != {name: shapes[name] for name in shapes if name in expected or name not in CONSTANTS}:
        return None
    return [(part.weights[own][0].path if own in part.weights else "", own) for own in tensors]


def _shape(part: Part, name: str) -> tuple[int, ...]:
    """Return the shape of a weight in PyTorch's layout."""
    variable, place = part.weights[name]
    return tuple(place.view(torch.empty(tuple(variable.shape), device="meta")).shape)


def _elsewhere(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Yield the rows of a layer in a module of another kind: one of the user's own, or with other axes of size 1."""
    own = is_own(module)
    free = dict(tensors)
    for variable, place in part.weights.values():
        if not own and not isinstance(module, place.modules + place.also):
            return
        like = torch.empty(tuple(variable.shape), device="meta")
        shapes = {tuple(one.view(like).shape) for one in place.all if own or isinstance(module, one.modules + one.also)}
        fitting = [name for name in free if any(same_but_for_ones(shape, tuple(free[name].shape)) for shape in shapes)]
        named = [name for name in fitting if any(one.is_named(name) for one in place.all)]
        equal = [name for name in fitting if f"_{name.rpartition('.')[2]}".endswith(f"_{variable.name}")]
        chosen = next((names for names in (named, equal) if len(names) == 1), fitting)
        if len(chosen) != 1 or (not own and not named):
            return
        yield variable.path, chosen[0]
        del free[chosen[0]]


def _recurrent(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Yield the rows of recurrent layers: level by level, direction by direction."""
    levels, ways = len(part.owners), len(part.owners[0])
    if isinstance(module, nn.RNNBase):
        if (module.num_layers, 1 + module.bidirectional) != (levels, ways):
            return
    elif (levels, ways) != (1, 1):
        return
    for level, cells in enumerate(part.owners):
        for cell, way in zip(cells, ("", "_reverse"), strict=False):
            slot = "" if isinstance(module, nn.RNNCellBase) else f"_l{level}{way}"
            after = getattr(cell, "reset_after", None)
            if after == getattr(module, "reset_after", True if isinstance(module, nn.GRU | nn.GRUCell) else None):
                yield from cell_pairs(cell, slot, module, tensors)


def _attention(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Yield the rows of an attention in ``nn.MultiheadAttention``."""
    if not isinstance(module, nn.MultiheadAttention):
        return
    yield from attention_pairs(part.owners[0], tensors)


def _joined(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Yield the rows of layers that are matrix products, side by side in one module."""
    for layer in part.owners[0]:
        layout = find_layout(layer) or {}
        for variable in layer.weights:
            place = layout.get(variable.name)
            if place is not None and isinstance(module, place.modules + place.also):
                yield variable.path, _kind(variable)


def _own(part: Part, module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """Yield the rows of a layer of the user's own in such a module, by the shapes of the weights."""
    # What a module with others in it takes is not what its own tensors are used for.
    if not is_own(module) or any(True for _ in module.children()):
        return
    for path, weight in part.held.items():
        alike = [name for name, tensor in tensors.items() if tuple(tensor.shape) == tuple(weight.variable.shape)]
        if len(alike) == 1:
            yield path, alike[0]


def _kind(variable: keras.Variable) -> str:
    return "bias" if variable.name == "bias" else "weight"
