"""Outputs that the modules of a copy have returned, so that a module that takes the same again need not run again."""

from collections import Counter
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Where the code of a module is known to be a function of its weights and its input, and of nothing else.
_KNOWN = ("torch.nn.", "parity.padding")
# The most numbers that are stored in all.
_MOST = 2**27


class _Remembered(NamedTuple):
    """What a module held, took and returned in one of its calls."""

    content: Hashable
    taken: Tensor
    returned: Tensor


class OutputMemory:
    """Remembers outputs from the second run on: a search that needs one run only pays nothing for it."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], _Remembered] = {}
        self.calls: Counter[str] = Counter()
        self.runs = 0
        self.size = 0

    def attach(self, name: str, module: nn.Module, contents: Mapping[str, Hashable]) -> None:
        """Let a module return what it has returned before, if it holds and takes the same.

        Args:
            name: What to call the module.
            module: The module. Modules of the user's own, and those with modules in them, are left alone: they may
                compute with more than their input and their own weights.
            contents: What each module holds, by name; it changes when the module is filled anew.
        """
        own = "forward" in vars(module) or any(True for _ in module.children())
        if not own and type(module).forward.__module__.startswith(_KNOWN):
            module.forward = partial(self._run, name, module.forward, contents)

    def begin(self) -> None:
        """Begin a run."""
        self.calls.clear()
        self.runs += 1

    def _run(self, name: str, forward: Any, contents: Mapping[str, Hashable], *args: Any, **kwargs: Any) -> Any:
        self.calls[name] += 1
        if self.runs < 2 or kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return forward(*args, **kwargs)
        key, content = (name, self.calls[name]), contents[name]
        known = self.kept.get(key)
        if known is not None and known.content == content and _same(known.taken, args[0]):
            return known.returned.clone()
        taken = args[0].clone()  # the module may overwrite it
        output = forward(*args)
        if isinstance(output, Tensor):
            self._keep(key, _Remembered(content, taken, output.clone()))
        return output

    def _keep(self, key: tuple[str, int], new: _Remembered) -> None:
        for one in (self.kept.pop(key, None),):
            self.size -= 0 if one is None else one.taken.numel() + one.returned.numel()
        size = new.taken.numel() + new.returned.numel()
        if self.size + size <= _MOST:
            self.kept[key] = new
            self.size += size


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
