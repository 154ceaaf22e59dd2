"""The one exception that this package raises for bad input."""

from collections.abc import Iterable


class ParityError(ValueError):
    """Bad input: a file, a mapping or two models that do not fit. It lists every fault that was found.

    Args:
        source: What the faults are in, such as the name of a file.
        faults: One sentence for each fault.

    Attributes:
        faults: The same sentences, as a list.
    """

    def __init__(self, source: str, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in self.faults)]))
