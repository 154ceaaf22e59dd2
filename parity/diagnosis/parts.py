"""Causes in what a twin leaves out, or has between two modules that together are one layer of the Keras model."""

from collections.abc import Iterator

from parity.diagnosis.activations import activations
from parity.diagnosis.causes import Cause, known_cause
from parity.diagnosis.evidence import Evidence, run_modules
from parity.diagnosis.norms import NORMS
from parity.models.alignment import largest


def by_activation_between(evidence: Evidence) -> Iterator[Cause]:
    """Yield an activation between two modules that are one layer: the two convolutions of a SeparableConv."""
    modules = evidence.modules
    for number in range(1, len(modules)):
        middle = run_modules(modules[:number], evidence.twin_inputs)
        if middle is None:
            return
        for name, function in activations(middle):
            y = run_modules(modules[number:], [function(middle)])
            if y is not None and y.shape == evidence.twin.shape and largest(y - evidence.twin) <= evidence.tolerance:
                names = {id(call.module): call.name for call in evidence.run.calls}
                before, behind = (names.get(id(module), "") for module in modules[number - 1 : number + 1])
                found = f"{name} between {before} and {behind}, which the Keras model does not have"
                yield known_cause("another activation", found)
                return


def by_leaving_out(evidence: Evidence) -> Iterator[Cause]:
    """Yield that the twin does without a layer: what follows takes what the layer takes."""
    step, run = evidence.step, evidence.run
    if step is None or len(evidence.inputs) != 1 or evidence.inputs[0].shape != evidence.value.shape:
        return
    if evidence.explains(evidence.inputs[0]) and evidence.at_step not in run.pairing.twins:
        cause = "normalization missing" if isinstance(step.layer, NORMS) else "another skip"
        yield known_cause(cause, f"{step.name} is left out; what follows takes what it takes")
