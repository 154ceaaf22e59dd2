"""A copy of the twin that can be filled module by module, and that stores the inputs of its modules."""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import prod
from typing import Any

from parity.errors import ParityError
from parity.models.sequences import taken
from parity.models.torch_calls import HINT_OF_AXES, tensors_in
from parity.proposal.failures import module_name
from parity.proposal.forcing import Forcing
from parity.proposal.memory import OutputMemory
from parity.proposal.parts import Part
from parity.proposal.rows import constant_of, fills_of, rows_of
from parity.weights.fills import Fill, Weight
from parity.weights.flattened import channels_first_features, counts_features
from parity.weights.standard_rows import Pair

import torch
from keras import tree
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

# The module within an nn.MultiheadAttention, by the end of its name.
_OUTPUT = ".out_proj"
# How many random numbers are drawn for a tensor; a prime, so that no two rows are the same part of the sequence.
_DRAWN = 65521

# What a module holds: a part, and the shape of its features if the twin flattens them channels first.
Content = tuple[Part, tuple[int, ...] | None]
# Takes a module's name, the number of its call and its input; returns what to fill it with, if that is known.
Chooser = Callable[[str, int, Tensor], Content | None]


class TwinCopy:
    """A copy of the twin, in which every module holds either the weights of a part or random numbers.

    They are random because the initial statistics of 0 and 1, or scales of 0, would hide differences.

    Attributes:
        model: The copy, on the CPU, in evaluation mode, at least as precise as the Keras model.
        inputs: The inputs that it runs with.
        canonical: The first name of each module, by any of its names.
        tensors: The tensors of each module that has some of its own: by the module's name, then by their own.
    """

    def __init__(self, torch_model: nn.Module, dtype: torch.dtype) -> None:
        state = torch_model.state_dict(keep_vars=True)
        meta = [key for key, tensor in state.items() if isinstance(tensor, Tensor) and tensor.is_meta]
        if meta:
            raise ParityError("proposal", [f"{key} is on the meta device: the twin cannot run" for key in meta])
        scripted = [name or "the twin" for name, m in torch_model.named_modules() if isinstance(m, ScriptModule)]
        if scripted:
            fault = f"{scripted[0]} is compiled by TorchScript and cannot be watched: use what it was made from"
            raise ParityError("proposal", [fault])
        self.model = copy.deepcopy(torch_model).cpu().eval()
        own = [tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point()]
        self.dtype = torch.promote_types(own[0], dtype) if own else dtype
        self.model.to(self.dtype)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []  # what its last run returned
        first = {id(module): name for name, module in self.model.named_modules()}
        every = self.model.named_modules(remove_duplicate=False)
        self.canonical = {name: first[id(module)] for name, module in every}
        self.modules = dict(self.model.named_modules(remove_duplicate=False))
        self.tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in self.model.state_dict(keep_vars=True).items():
            name, _, own_name = key.rpartition(".")
            if name.endswith(_OUTPUT) and isinstance(self.modules[name.removesuffix(_OUTPUT)], nn.MultiheadAttention):
                # An attention uses the tensors of this module, and never calls it.
                name, own_name = name.removesuffix(_OUTPUT), f"{_OUTPUT[1:]}.{own_name}"
            if isinstance(tensor, Tensor) and self.canonical.get(name) == name:
                self.tensors[name][own_name] = tensor
        self.known_rows: dict[tuple[str, str], list[list[Pair] | None]] = {}
        # What each module holds: the label of a part and the shape of its features, or None for random numbers.
        self.contents: dict[str, tuple[str, tuple[int, ...] | None] | None] = {}
        self.module_inputs: dict[str, list[Tensor]] = {}
        # For parts without a module of their own: the tensors that they fill from the beginning.
        self.preset: dict[str, dict[str, Weight]] = {}
        self.steps = WeakTensorKeyDictionary()  # of inputs that were packed sequences: which steps they have
        self.watched: set[str] = set()
        self.choose: Chooser | None = None
        # How many times each module has run, and the modules that are filled.
        self.calls: Counter[str] = Counter()
        self.filled: set[str] = set()
        self.forcing: Forcing | None = None
        self.standing: set[str] = set()
        self.memory = OutputMemory()
        for name in self.tensors:
            module = self.module(name)
            module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            self.memory.attach(name, module, self.contents)

    def module(self, name: str) -> nn.Module:
        """Return a module by its name."""
        return self.modules[name]

    def describe(self, name: str) -> str:
        """Return a module's name and kind."""
        return f"{module_name(name)} ({type(self.module(name)).__name__})"

    def fitting(self, part: Part) -> list[str]:
        """Return the modules of a kind that a part may become, with tensors of the right shapes."""
        return [name for name in self.tensors if self.rows(part, name) is not None]

    def rows(self, part: Part, name: str) -> list[Pair] | None:
        """Return the rows with which a part fills a module, None if it does not fit."""
        known = self.known_rows.get((part.label, name))
        if known is None:
            known = [rows_of(part, self.module(name), self.tensors[name])]
            self.known_rows[part.label, name] = known
        return known[0]

    def inputs_of_modules(
        self, filled: Mapping[str, Content], choose: Chooser | None = None
    ) -> dict[str, list[Tensor]]:
        """Run the copy, and return the inputs of the modules that are not filled and of those of shared layers.

        Args:
            filled: For modules by name: the part whose weights the module gets, and the shape of its features if the
                twin flattens them channels first. All other modules get random numbers.
            choose: Called when a module is about to run that is not filled, with its name, the number of the call and
                its input. If it returns what ``filled`` has for a module, the module is filled so, and then runs.

        Returns:
            The input of each module in each of its calls.
        """
        for name in self.tensors:
            # A module that runs and is not filled yet gets random numbers when it runs, for it may be filled then.
            if name in filled or name not in self.calls:
                self._fill(name, filled.get(name))
        self.watched = {name for name in self.tensors if name not in filled or len(filled[name][0].inputs) > 1}
        self.filled, self.choose = {*filled}, choose
        self.module_inputs = defaultdict(list)
        self.calls.clear()
        self.memory.begin()
        if self.forcing is not None:
            self.forcing.trail.clear()
        try:
            self.outputs = tensors_in(self.model(*(tensor.clone() for tensor in self.inputs)))
        except Exception as error:
            raise ParityError("proposal", [f"the twin stops: {type(error).__name__}: {error}{HINT_OF_AXES}"]) from error
        return dict(self.module_inputs)

    def _fill(self, name: str, content: Content | None) -> None:
        """Give a module the weights of a part, or random numbers, if it does not hold these already."""
        part, flattened = content or (None, None)
        held = None if part is None else (part.label, flattened)
        if name in self.contents and self.contents[name] == held:
            return
        self.contents[name] = held
        tensors = self.tensors[name]
        if part is None:
            given = {key: weight for weights in self.preset.values() for key, weight in weights.items()}
            of_module = {own: given.get(f"{name}.{own}" if name else own) for own in tensors}
            _randomize({own: tensors[own] for own in tensors if not of_module[own]}, list(self.tensors).index(name))
            for own, weight in of_module.items():
                if weight is not None:
                    tensors[own].copy_(weight.value.reshape(tensors[own].shape))
            return
        rows = self.rows(part, name) or []
        for path, own_name in rows:
            if not path:
                tensors[own_name].fill_(constant_of(own_name) or 0)
        for fill in fills_of(part, rows, self.module(name), tensors):
            if isinstance(fill, Fill):
                value = fill.value
                if flattened and counts_features(fill.weight.layer, fill.weight.variable.name):
                    value = channels_first_features(value, flattened)
                fill.tensor.copy_(value)

    def force(self, forcing: Forcing, standing: Collection[str]) -> None:
        """Let modules take and return what a forcing says, from the next run on.

        Args:
            forcing: What they are given.
            standing: Names of modules that may stand for a part that has no module.
        """
        self.forcing, self.standing = forcing, {*standing}
        for name in self.standing - self.tensors.keys():
            self.module(name).register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
        for name in self.standing | self.tensors.keys():
            self.module(name).register_forward_hook(partial(self._leave, name))

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Store the first tensor that a module takes, and fill the module if it is known now; a hook of the module."""
        self.calls[name] += 1
        changed, tensors = None, tensors_in((args, kwargs))
        packed = isinstance(module, nn.RNNBase) and any(isinstance(one, PackedSequence) for one in args)
        seen = taken(None, module, tensors, 0) if packed else None
        tensors = tensors[:1] if seen is None else [seen.tensor]
        if self.forcing is not None and tensors and not packed:
            given = self.forcing.taken(module, name, self.calls[name], tensors[0])
            if given is not None:
                changed = tree.map_structure(lambda leaf: given if leaf is tensors[0] else leaf, (args, kwargs))
                tensors = [given]
        content = None
        if name in self.watched:
            self.module_inputs[name] += [tensor.detach().clone() for tensor in tensors]
            if seen is not None and seen.real is not None:
                self.steps[self.module_inputs[name][-1]] = seen.real
            if tensors and self.choose is not None and name not in self.filled:
                content = self.choose(name, self.calls[name], self.module_inputs[name][-1])
        if name in self.tensors and name not in self.filled:
            self._fill(name, content)
            self.filled |= {name} if content is not None else set()
        if self.forcing is not None and tensors and name in self.standing:
            held = {content[0] for content in self.contents.values() if content is not None}
            if self.contents.get(name) is None:
                self.forcing.stand(module, name, self.calls[name], held)
        return changed

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Return what a module returns, or what it is to return in its place; a hook of the module."""
        tensors = tensors_in(output)
        packed = isinstance(output, tuple) and any(isinstance(one, PackedSequence) for one in output)
        if self.forcing is None or not tensors or packed:
            return output
        content = self.contents.get(name)
        label = None if content is None else content[0]
        is_whole = tensors[0] is output
        given = self.forcing.returned(module, (name, self.calls[name]), label, tensors[0])
        if given is None or (not is_whole and given.shape != tensors[0].shape):
            return output
        return tree.map_structure(lambda leaf: given if leaf is tensors[0] else leaf, output)


def _randomize(tensors: Mapping[str, Tensor], seed: int) -> None:
    """Fill the tensors of a module with random numbers that neither magnify nor shrink the activations much."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            size = tensor.numel()
            # Each row of a large tensor is another part of one sequence, which is much faster than so many numbers.
            drawn = torch.randn(min(size, _DRAWN), generator=generator)
            values = drawn.repeat(-(-size // _DRAWN))[:size].view(tensor.shape)
            fan_in = max(prod(tensor.shape[1:]), 1)
            tensor.copy_(0.5 + values.abs() if name == "running_var" else values / fan_in**0.5)
