"""A copy of the twin that can be filled module by module, and tells what its modules take."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

from parity.errors import ParityError
from parity.models.torch_calls import tensors_in
from parity.proposal.failures import module_name
from parity.proposal.layers import Part

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

# Tensors that may be there although the Keras layer has no such weight, and what they hold then.
CONSTANTS = {"weight": 1, "bias": 0, "num_batches_tracked": 0}


class TwinCopy:
    """A copy of the twin: every module holds random numbers or the weights of a part, and tells what it takes.

    Random numbers, because fresh statistics of 0 and 1 or scales of 0 would hide differences.

    Attributes:
        model: The copy, on the CPU, in evaluation mode, at least as precise as the Keras model.
        inputs: What it is run with.
        canonical: The first name of a module, by any of its names.
        tensors: By the name of each module with tensors of its own: these, by name.
    """

    def __init__(self, torch_model: nn.Module, dtype: torch.dtype) -> None:
        state = torch_model.state_dict(keep_vars=True)
        if meta := [key for key, tensor in state.items() if isinstance(tensor, Tensor) and tensor.is_meta]:
            raise ParityError("proposal", [f"{key} is on the meta device: the twin cannot run" for key in meta])
        scripted = [name or "the twin" for name, part in torch_model.named_modules() if isinstance(part, ScriptModule)]
        if scripted:
            fault = f"{scripted[0]} is compiled by TorchScript and cannot be watched: use what it was made from"
            raise ParityError("proposal", [fault])
        self.model = copy.deepcopy(torch_model).cpu().eval()
        own = [tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point()]
        self.dtype = torch.promote_types(own[0], dtype) if own else dtype
        self.model.to(self.dtype)
        self.inputs: list[Tensor] = []
        first = {id(module): name for name, module in self.model.named_modules()}
        every = self.model.named_modules(remove_duplicate=False)
        self.canonical = {name: first[id(module)] for name, module in every}
        self.tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in self.model.state_dict(keep_vars=True).items():
            name, _, own_name = key.rpartition(".")
            if isinstance(tensor, Tensor) and self.canonical.get(name) == name:
                self.tensors[name][own_name] = tensor
        self.holds: dict[str, tuple[str, tuple[int, ...] | None] | None] = {}
        self.caught: dict[str, list[Tensor]] = {}
        self.watched: set[str] = set()
        for name in self.tensors:
            self.model.get_submodule(name).register_forward_pre_hook(self._catch(name), with_kwargs=True)

    def module(self, name: str) -> nn.Module:
        """Return a module by its name."""
        return self.model.get_submodule(name)

    def describe(self, name: str) -> str:
        """Return a module's name and kind."""
        return f"{module_name(name)} ({type(self.module(name)).__name__})"

    def fitting(self, part: Part) -> list[str]:
        """Return the modules of the kind that a part becomes, with tensors of the right shapes."""
        kinds = next(iter(part.weights.values()))[1].modules
        due = {name: part.value(name).shape for name in part.weights}

        def fits(tensors: Mapping[str, Tensor]) -> bool:
            more = {name: tensor.shape for name, tensor in tensors.items() if name in due or name not in CONSTANTS}
            return more == due

        return [name for name, own in self.tensors.items() if isinstance(self.module(name), kinds) and fits(own)]

    def takes(self, filled: Mapping[str, tuple[Part, tuple[int, ...] | None]]) -> dict[str, list[Tensor]]:
        """Run the copy and return what modules take, call by call: those not filled, and those of shared layers.

        Args:
            filled: By the name of a module: the part whose weights it gets, and the shape of its features if the twin
                flattens them channels first. All others get random numbers.
        """
        for seed, (name, tensors) in enumerate(self.tensors.items()):
            part, flattened = filled.get(name, (None, None))
            due = None if part is None else (part.label, flattened)
            if name in self.holds and self.holds[name] == due:
                continue
            self.holds[name] = due
            if part is None:
                _randomize(tensors, seed)
                continue
            for own_name, tensor in tensors.items():
                if own_name in part.weights:
                    tensor.copy_(part.value(own_name, flattened))
                else:
                    tensor.fill_(CONSTANTS[own_name])
        self.watched = {name for name in self.tensors if name not in filled or len(filled[name][0].taken) > 1}
        self.caught = defaultdict(list)
        self.model(*(tensor.clone() for tensor in self.inputs))
        return dict(self.caught)

    def _catch(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in self.watched:
                return
            tensors = tensors_in((args, kwargs))
            self.caught[name] += [tensor.detach().clone() for tensor in tensors[:1]]

        return hook


def _randomize(tensors: Mapping[str, Tensor], seed: int) -> None:
    """Give the tensors of a module random numbers that keep the activations at their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            fan_in = max(prod(tensor.shape[1:]), 1)
            tensor.copy_(0.5 + values.abs() if name == "running_var" else values / fan_in**0.5)
