"""Tensors in the place of those that a call of a PyTorch model takes or returns."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


class Taken:
    """The tensors that a call takes, those in whose place they are, and which of them it overwrites."""

    def __init__(self, tensors: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
        self.tensors, self.originals = list(tensors), originals
        self.versions = [_version(tensor) for tensor in tensors]

    def overwritten_ones(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each tensor that was given and that the call has overwritten, and the one in whose place it is."""
        for tensor, original, version in zip(self.tensors, self.originals, self.versions, strict=True):
            if tensor is not original and version not in (None, _version(tensor)) and tensor.shape == original.shape:
                yield tensor, original

    def overwritten(self, output: Tensor, given: Tensor) -> Tensor:
        """Return what is given in place of an output; if the call has overwritten it, with those numbers in it.

        A tensor that was returned as it came, as by ``nn.Identity``, is not overwritten: others may take it, too.

        Args:
            output: The output.
            given: What is given in its place.
        """
        if output is given or output.shape != given.shape:
            return given
        pairs = zip(self.tensors, self.versions, strict=True)
        if any(output is tensor and version not in (None, _version(tensor)) for tensor, version in pairs):
            return output.copy_(given)
        return given


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def with_others(given: Sequence[Tensor], tensors: Sequence[Tensor], tree: Any) -> Any:
    """Return nested lists, tuples and dictionaries with other tensors in the place of some.

    Args:
        given: The other tensors.
        tensors: The tensors in whose place they are.
        tree: The lists, tuples and dictionaries.
    """
    others = {id(tensor): other for tensor, other in zip(tensors, given, strict=True)}
    return tree_map(lambda leaf: others.get(id(leaf), leaf), tree)
