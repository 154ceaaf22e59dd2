"""What does it cost to propose a mapping? ``python benchmarks/propose.py``.

Proposes the mapping of ResNet50 (He et al., 2015, https://arxiv.org/abs/1512.03385), as ``keras.applications`` builds
it, with random weights, on 2 images of 96 x 96. Then once more for a twin with a mistake in the middle, which is also
traced and diagnosed. Prints the times of one thread, as multiples of one forward pass of both models, and how often the
twin ran. It takes about two minutes and 2 GB.
"""

import os
from collections.abc import Callable

os.environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import course  # noqa: F401, I001  settles the Keras backend before Keras is imported
from parity.axes import torch_input
from parity import diagnose, propose_mapping, trace

import numpy as np
import torch
from measure import best_times
from resnet50 import ResNet50, resnet50

SIZE = 96


class Counted(ResNet50):
    """The twin, which counts how often it and its copies run."""

    runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run, and count it."""
        Counted.runs += 1
        return super().forward(x)


def main() -> None:
    """Measure and print."""
    keras_model, torch_model, mapping = resnet50(SIZE)
    torch_model.__class__ = Counted
    x = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3), dtype=np.float32)
    tensor = torch_input(x)

    def torch_forward() -> None:
        with torch.no_grad():
            torch_model(tensor)

    def count(action: Callable[[], object]) -> int:
        Counted.runs = 0
        action()
        return Counted.runs

    actions = {
        "propose_mapping": lambda: propose_mapping(keras_model, torch_model, x),
        "trace": lambda: trace(keras_model, torch_model, x, mapping),
        "diagnose": lambda: diagnose(keras_model, torch_model, x, mapping),
    }
    proposal = propose_mapping(keras_model, torch_model, x)
    assert len(proposal.mapping) == len(mapping)
    assert (proposal.undecided, proposal.parts_at) == ({}, {})
    forward = {"Keras": lambda: keras_model(x), "PyTorch": torch_forward}
    for twin, epsilon in (("a right twin", None), ("a twin with another epsilon in the middle", 1e-3)):
        if epsilon is not None:
            torch_model.blocks["conv3_block4"].bns["2"].eps = epsilon
            assert list(propose_mapping(keras_model, torch_model, x).parts_at) == ["conv3_block4_2_bn"]
        runs = {name: count(action) for name, action in actions.items()}
        times = best_times(forward | actions)
        both = times["Keras"] + times["PyTorch"]
        print(f"{twin}: one forward pass in Keras {times['Keras']:.3f} s, in PyTorch {times['PyTorch']:.3f} s")
        for name in actions:
            passes = f"{times[name] / both:.1f} forward passes of both models"
            print(f"  {name:15} {times[name]:.2f} s: {passes}; the twin ran {runs[name]} times")


if __name__ == "__main__":
    main()
