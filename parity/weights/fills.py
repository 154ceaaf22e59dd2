"""What a mapping says goes where: for each row, the weight, its place, and the part of the tensor that it fills."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from parity.models.keras_layers import inner_layers
from parity.tensors import as_tensor
from parity.weights.layouts import PYTORCH_KINDS, Layout, find_layout
from parity.weights.mapping import AS_IT_IS, BY_HAND, Row
from parity.weights.places import Place, unchanged

import keras
import torch
from torch import Tensor, nn


class Weight(NamedTuple):
    """A Keras weight, and the innermost layer that has it."""

    layer: keras.Layer
    variable: keras.Variable

    @property
    def layout(self) -> Layout | None:
        """Return where the weights of the layer go; None if its kind is not covered."""
        return find_layout(self.layer)

    @property
    def value(self) -> Tensor:
        """Return its numbers in Keras's layout."""
        return as_tensor(self.variable)


class Fill(NamedTuple):
    """One row of a mapping that moves a weight.

    Attributes:
        row: The row.
        weight: The Keras weight.
        place: Where its kind goes.
        module: The module that has the tensor.
        tensor: The part of the tensor that it fills: all of it, or some of its rows.
        rows: Which rows of the weight, in PyTorch's layout, go there: the first, and how many; None for all.
        first: The first row of the whole tensor that it fills.
        wrong_name: What is wrong, if the tensor is another of the module's.
    """

    row: Row
    weight: Weight
    place: Place
    module: nn.Module
    tensor: Tensor
    rows: tuple[int, int] | None = None
    first: int = 0
    wrong_name: str = ""

    @property
    def value(self) -> Tensor:
        """Return what goes there, in PyTorch's layout: a view of the Keras weight where that is possible."""
        return self.laid_out(self.weight.value)

    def laid_out(self, weight: Tensor) -> Tensor:
        """Return what goes there of a tensor with the shape of the Keras weight, such as its gradient."""
        value = _shaped(self.place.view(weight), self.tensor)
        return value if self.rows is None else value.narrow(0, *self.rows)

    def part_of(self, tensor: Tensor) -> Tensor:
        """Return the part that is filled of a tensor with the shape of the twin's whole tensor."""
        return tensor.narrow(0, self.first, len(self.tensor)) if self.tensor.shape != tensor.shape else tensor


class Misfit(NamedTuple):
    """Why a row cannot move its weight."""

    row: Row
    why: str


def keras_weights(model: keras.Model) -> Iterator[Weight]:
    """Yield each weight of a Keras model once, with the innermost layer that has it."""
    owners = {id(variable): Weight(layer, variable) for layer in inner_layers(model) for variable in layer.weights}
    yield from owners.values()


def is_own(module: nn.Module) -> bool:
    """Tell whether a module is of a class of the user's own, which may name its tensors as it likes."""
    return not isinstance(module, (*PYTORCH_KINDS, torch.jit.ScriptModule))


def fills(
    rows: Iterable[Row], weights: Mapping[str, Weight], tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Iterator[Fill | Misfit]:
    """Yield what each row moves, or why it cannot.

    Several rows with one tensor fill it one behind the other along axis 0; several rows with one weight take it apart
    in the same way, unless each of the tensors takes a share of its own, as the two biases of ``nn.GRU`` do.

    Args:
        rows: Rows of a mapping with both fields; every name in them is known.
        weights: The Keras weights by path.
        tensors: The tensors of the twin by key.
        modules: The modules of the twin by name.
    """
    rows = list(rows)
    placed = [_placed(row, weights[row.keras], modules[row.module], tensors[row.torch]) for row in rows]
    of_tensor: dict[str, list[Fill]] = defaultdict(list)
    of_weight: dict[tuple[str, str], list[Fill]] = defaultdict(list)
    for fill in placed:
        if isinstance(fill, Fill):
            of_tensor[fill.row.torch].append(fill)
            of_weight[fill.row.keras, fill.place.tensor].append(fill)
    for fill in placed:
        if isinstance(fill, Misfit):
            yield fill
        elif len(of_tensor[fill.row.torch]) > 1:
            yield _joined(fill, of_tensor[fill.row.torch])
        elif len(of_weight[fill.row.keras, fill.place.tensor]) > 1:
            yield _taken_apart(fill, of_weight[fill.row.keras, fill.place.tensor])
        else:
            yield fill


def _placed(row: Row, weight: Weight, module: nn.Module, tensor: Tensor) -> Fill | Misfit:
    """Return what a row moves, or why it cannot; it fills the whole tensor."""
    layer, variable = weight
    if row.how == AS_IT_IS:
        return Fill(row, weight, Place(row.tensor, (), unchanged), module, tensor)
    kind, layout = type(layer).__name__, weight.layout
    if layout is None:
        how = f"say in the column how {AS_IT_IS!r} if it is to be copied in its shape, else {BY_HAND!r}"
        return Misfit(row, f"{row.keras}: the kind {kind} is not covered; {how}")
    if variable.name not in layout:
        one = f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
        return Misfit(row, f"{row.keras}: {one} has no weight {variable.name} that can be moved")
    main = layout[variable.name]
    own = is_own(module)
    holding = [place for place in main.all if own or isinstance(module, place.modules + place.also)]
    if not holding:
        where = f"goes to the {main.tensor} of a {main.needed}" if main.modules else "goes to a tensor of your own"
        return Misfit(row, f"{row.keras} {where}; {row.torch} is in a {type(module).__name__}")
    others = [place for name, other in layout.items() if name != variable.name for place in other.all]
    taken = any(place.is_named(row.tensor) for place in others if place.part == main.part and place.modules)
    named = [place for place in holding if place.is_named(row.tensor)]
    if not named and own and not taken:
        named = holding
    if not named:
        right = row.torch.removesuffix(row.tensor) + _name_like(holding[0], row.tensor)
        return Fill(row, weight, holding[0], module, tensor, wrong_name=f"belongs in {right}, not in {row.torch}")
    value, shape = weight.value, tuple(tensor.shape)
    fitting = (place for place in named if same_but_for_ones(tuple(place.view(value).shape), shape))
    return Fill(row, weight, next(fitting, named[0]), module, tensor)


def _name_like(place: Place, tensor: str) -> str:
    """Return the right name of a tensor; for a recurrent module with the number and direction of a wrong one."""
    _, _, slot = tensor.partition("_l")
    return f"{place.tensor}_l{slot}" if slot and place.names else place.tensor


def same_but_for_ones(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two shapes are the same, or differ in their number of axes of size 1."""
    return shape == other or (
        len(shape) != len(other) and [size for size in shape if size != 1] == [size for size in other if size != 1]
    )


def _shaped(value: Tensor, target: Tensor) -> Tensor:
    """Return a tensor with the axes of size 1 that its target has."""
    tail, target_tail = tuple(value.shape[1:]), tuple(target.shape[1:])
    if tail == target_tail or not same_but_for_ones(tail, target_tail):
        same = same_but_for_ones(tuple(value.shape), tuple(target.shape))
        return value.reshape(target.shape) if same and value.shape != target.shape else value
    return value.reshape(-1, *target_tail)


def _joined(fill: Fill, parts: list[Fill]) -> Fill | Misfit:
    """Return a fill with the rows of the tensor that it fills, of several that fill it one behind the other."""
    sizes = [_rows(part.place.view(part.weight.value)) for part in parts]
    tensor, row, before = fill.tensor, fill.row, parts[0].row
    if not tensor.ndim or sum(sizes) != len(tensor):
        if before is row:
            return fill
        twice = sum(part.weight.variable is fill.weight.variable for part in parts) > 1
        together = f"; together they have {sum(sizes)} rows, and it is {tuple(tensor.shape)}" if not twice else ""
        return Misfit(row, f"PyTorch tensor {row.torch} has a row already, {before.label}{together}")
    at = next(number for number, part in enumerate(parts) if part is fill)
    first = sum(sizes[:at])
    return fill._replace(tensor=tensor.narrow(0, first, sizes[at]), first=first)


def _taken_apart(fill: Fill, parts: list[Fill]) -> Fill | Misfit:
    """Return a fill with the rows of its weight that go to its tensor, of a weight that several tensors share."""
    sizes, value = [_rows(part.tensor) for part in parts], fill.place.view(fill.weight.value)
    row, before = fill.row, parts[0].row
    if not value.ndim or sum(sizes) != len(value):
        if before is row:
            return fill
        together = f"its tensors have {sum(sizes)} rows together, and it becomes {tuple(value.shape)}"
        return Misfit(row, f"Keras weight {row.keras} has a row already, {before.label}; {together}")
    at = next(number for number, part in enumerate(parts) if part is fill)
    return fill._replace(rows=(sum(sizes[:at]), sizes[at]))


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def twin_tensors(twin: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a mapping may name, by key: those of the state dict, shared ones under each name.

    A tensor with a parametrization, such as ``weight_norm``, stands in place of the tensors that it is computed from.
    """
    state = {key: value for key, value in twin.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    found = {key: value for key, value in state.items() if ".parametrizations." not in f".{key}"}
    for name, module in twin.named_modules(remove_duplicate=False):
        if torch.nn.utils.parametrize.is_parametrized(module):
            prefix = f"{name}." if name else ""
            with torch.no_grad():
                found |= {f"{prefix}{own}": getattr(module, own) for own in module.parametrizations}
    return found


def keras_weight_of(several: Sequence[Fill]) -> Tensor | None:
    """Return what a Keras weight would have to be for the twin to hold what it holds: the way back.

    Args:
        several: What the weight fills.

    Returns:
        The tensor in Keras's layout, or None if what was moved is not the weight's numbers in another order.
    """
    weight = several[0].weight.value
    found, numbers = weight.clone().flatten(), torch.arange(weight.numel()).reshape(weight.shape)
    for fill in several:
        try:
            at = fill.laid_out(numbers)
        except RuntimeError:
            return None
        if at.dtype != numbers.dtype or at.numel() != fill.tensor.numel():
            return None
        found[at.flatten()] = fill.tensor.detach().flatten().to(found.dtype)
    return found.reshape(weight.shape)
