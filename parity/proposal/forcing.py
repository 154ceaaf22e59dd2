"""Go on behind a mistake: modules of the twin are given what Keras's layers take, or return what these return."""

from collections.abc import Collection, Mapping
from math import inf
from typing import NamedTuple

from parity.models.alignment import BORDERS, alignments, largest
from parity.proposal.outputs import Output
from parity.proposal.parts import Part, PartInput

import torch
from torch import Tensor, nn

# A call of a module, by its name and its number from 1 on, that is given something; or a part whose output is.
Forced = tuple[str, int] | str


class Parting(NamedTuple):
    """A module that returns something else than the part that it is filled with.

    Attributes:
        module: Its name.
        difference: The largest difference, infinite where the shapes do not fit.
        tolerance: The largest difference that rounding explains.
        shapes: The shapes of what the layer returns and of what the module returns.
    """

    module: str
    difference: float
    tolerance: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


class Forcing:
    """What the modules of a copy of the twin are given, and how they part from Keras's layers.

    Attributes:
        parts: The parts.
        fits: The modules that each part could have by kind and shapes.
        outputs: What each part returns in each of its calls.
        checked: The parts whose modules return what Keras's layer returns, if they would return something else.
        sizes: The parts whose modules may not return a border either.
        fed: For modules and the number of a call, from 1 on: the part's input that it is given.
        absent: The inputs of parts that have no module. A module that takes the same numbers, and that no other part
            takes for its own, stands for such a part: it returns what Keras's layer returns.
        exempt: What is forced no more, because the twin stops if it is.
        partings: The modules that part from their layers in the current round, by part.
        bordered: The parts whose modules return a border of padding more or less than their layers, in this round.
        standing: For modules that stand for a part, and the number of a call: the part, and what it returns.
        trail: What was forced in the current run, in its order.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        fits: Mapping[str, Collection[str]],
        outputs: Mapping[str, list[list[Output]]],
        checked: Collection[str],
    ) -> None:
        self.parts, self.fits, self.outputs = parts, fits, outputs
        self.checked = {*checked}
        self.sizes: set[str] = set()
        self.fed: dict[tuple[str, int], PartInput] = {}
        self.absent: dict[str, list[PartInput]] = {}
        self.exempt: set[Forced] = set()
        self.partings: dict[str, Parting] = {}
        self.bordered: set[str] = set()
        self.standing: dict[tuple[str, int], tuple[str, Output]] = {}
        self.trail: list[Forced] = []
        self.inputs: dict[str, Tensor] = {}  # what each module has taken last

    def begin_round(self) -> None:
        """Forget how modules part from their layers, which the next round tells anew."""
        self.partings, self.bordered, self.standing = {}, set(), {}

    def taken(self, module: nn.Module, name: str, call: int, tensor: Tensor) -> Tensor | None:
        """Return what a module is given in place of what it would take, None if that is left to the twin."""
        part_input, given = self.fed.get((name, call)), None
        if part_input is not None and (name, call) not in self.exempt:
            self.trail.append((name, call))
            given = laid_like(part_input.value, tensor, module, part_input.flattened)
        self.inputs[name] = (tensor if given is None else given).detach().clone()
        return given

    def stand(self, module: nn.Module, name: str, call: int, held: Collection[str]) -> None:
        """Note it if a module that is not filled takes what a part takes that has no module.

        Args:
            module: The module.
            name: Its name.
            call: The number of the call.
            held: The parts that have filled other modules.
        """
        tensor = self.inputs[name]
        self.standing.pop((name, call), None)
        rivals = [label for label, names in self.fits.items() if name in names and label not in {*held, *self.absent}]
        if any(_takes(part_input, tensor, module) for label in rivals for part_input in self.parts[label].inputs):
            return
        for label, inputs in self.absent.items():
            for of_call, part_input in zip(self.outputs.get(label, []), inputs, strict=False):
                if of_call and _takes(part_input, tensor, module):
                    self.standing[name, call] = label, of_call[0]

    def returned(self, module: nn.Module, call: tuple[str, int], label: str | None, tensor: Tensor) -> Tensor | None:
        """Return what a module returns in place of its output, None if that is left as it is.

        Args:
            module: The module.
            call: Its name, and the number of the call.
            label: The part that it is filled with, if any.
            tensor: Its output.
        """
        if label is None:
            due = [self.standing[call][1]] if call in self.standing else []
        else:
            due = self._parting(module, call, label, tensor)
        if not due or call in self.exempt or label in self.exempt:
            return None
        self.trail.append(call if label is None else label)
        return laid_like(due[0].value, tensor, module)

    def _parting(self, module: nn.Module, call: tuple[str, int], label: str, tensor: Tensor) -> list[Output]:
        """Return what a module should return if it takes what its part takes and returns something else, else nothing.

        Note it then in ``partings``, and in ``bordered`` if it only returns a border.
        """
        name, number = call
        calls = list(zip(self.outputs.get(label, []), self.parts[label].inputs, strict=False))
        due, part_input = calls[number - 1] if number <= len(calls) else ([], None)
        notes = {note for output in due for note in _notes(output, tensor, module)}
        if part_input is None or not due or notes - {*BORDERS}:
            return []
        self.bordered |= {label} if notes else set()
        if label not in (self.sizes if notes else self.checked) or not _takes(part_input, self.inputs[name], module):
            return []
        pairs = alignments(due[0].value, tensor, module)
        difference = min((largest(pair.value - pair.twin) for pair in pairs), default=inf)
        shapes = tuple(due[0].value.shape), tuple(tensor.shape)
        self.partings.setdefault(label, Parting(name, difference, due[0].tolerance, shapes))
        return due


def _takes(part_input: PartInput, tensor: Tensor, module: nn.Module) -> bool:
    """Tell whether a module takes the same numbers as a part."""
    pairs = alignments(part_input.value, tensor, module, part_input.flattened, window=True)
    return any(largest(pair.value - pair.twin) <= part_input.tolerance for pair in pairs)


def _notes(output: Output, tensor: Tensor, module: nn.Module) -> set[str]:
    """Return the notes on all alignments with which a module's output agrees with a part's."""
    pairs = alignments(output.value, tensor, module, window=True)
    return {pair.note for pair in pairs if largest(pair.value - pair.twin) <= output.tolerance}


def laid_like(
    value: Tensor, like: Tensor, module: nn.Module | None = None, flattened: tuple[int, ...] | None = None
) -> Tensor:
    """Return a Keras tensor with the axes of one of the twin's, and its dtype.

    Args:
        value: The Keras tensor (batch, *spatial, channels).
        like: The twin's tensor in its place. If it has another size, its axes are those that its channels tell.
        module: The module that takes or returns it.
        flattened: The shape (*spatial, channels) that the features of ``value`` were flattened from, if any.
    """
    # Where each of the twin's elements stands is found by aligning their numbers.
    places = torch.arange(like.numel(), dtype=torch.float64).view(like.shape)
    for pair in alignments(value, places, module, flattened):
        if pair.twin.numel() == like.numel() and pair.value.shape == pair.twin.shape:
            laid = torch.empty(like.numel(), dtype=value.dtype)
            laid[pair.twin.long().flatten()] = pair.value.flatten()
            return laid.view(like.shape).to(like.dtype)
    first = value.ndim > 2 and not isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding)
    if value.ndim == like.ndim > 2 and like.shape[1] != like.shape[-1]:
        first = like.shape[1] == value.shape[-1]
    return (value.movedim(-1, 1) if first else value).contiguous().to(like.dtype)
