"""Which call of the PyTorch twin plays the part of which Keras layer.

Layers with weights are paired by the mapping. Layers without are paired by their place in the graph: the call from
whose result a paired neighbour takes its input, or that takes a paired neighbour's output, if it is of a fitting kind.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from parity.calls import Call
from parity.graph import Graph, Step, StepIndex, TensorId

import keras
from torch import nn


class Spot(NamedTuple):
    """A tensor as the twin hands it over: an input ("in") or output ("out") of one of its calls, by position.

    The call after the last stands for the twin's return: its inputs are the twin's outputs.
    """

    call: int
    when: str
    position: int


class Pairing(NamedTuple):
    """The twin of each Keras layer, and where each Keras tensor can be seen in the twin.

    Attributes:
        twins: For a step: its first and last call in the twin.
        inputs: For a step and the position of one of its inputs: that input as the twin's call takes it. The step after
            the last is the model's return: its inputs are the model's outputs.
        outputs: For a Keras tensor: the same tensor as the twin's call returns it.
        observed: For a Keras tensor that no call is known for certain to return: where its consumers take it.
        guessed: Keras tensors whose call may be another. It was found by what it takes only, and may be the
            first of several that do together what the layer does, as in ``(a + b) / 2``. Or it was found by what takes
            its result, a module of the reader's own that may do what several layers do. Or it is arithmetic, which may
            be done in another order.
    """

    twins: dict[StepIndex, tuple[int, int]]
    inputs: dict[tuple[StepIndex, int], Spot]
    outputs: dict[TensorId, Spot]
    observed: dict[TensorId, list[Spot]]
    guessed: set[TensorId]


# Functions and modules that hand on the same numbers, in another order or with a border.
_SAME_NUMBERS = (
    "permute transpose movedim moveaxis swapaxes swapdims contiguous clone detach to float double cpu type squeeze "
    "unsqueeze view view_as reshape flatten unflatten expand t requires_grad requires_grad_ identity dropout "
    "pad zeropad constantpad"
)
_ACTIVATIONS = (
    "relu relu6 leakyrelu leaky_relu elu selu celu gelu silu swish mish sigmoid logsigmoid tanh softmax logsoftmax "
    "log_softmax softplus softsign hardtanh hardsigmoid hardswish hard_sigmoid hard_silu prelu rrelu clamp clamp_min "
    "clip threshold tanhshrink softshrink hardshrink exponential exp glu where maximum"
)
_POOLS = (
    "maxpool avgpool adaptivemaxpool adaptiveavgpool max_pool avg_pool adaptive_max_pool adaptive_avg_pool "
    "maxpooling averagepooling globalmaxpooling globalaveragepooling mean amax max sum lppool div truediv"
)
# By what a layer does: names of Keras layers and of PyTorch's modules and functions, less "1d", "2D", "Same".
_FAMILIES = {
    family: frozenset(names.split())
    for family, names in {
        "activation": "activation " + _ACTIVATIONS,
        "pooling": _POOLS,
        "merge": "add iadd radd cat concat concatenate stack hstack mul multiply imul sub subtract rsub average "
        "minimum maximum matmul",
        "order": "flatten reshape permute view transpose movedim unflatten repeatvector expand moveaxis",
        "border": "zeropadding zeropad pad constantpad cropping getitem narrow reflectionpad",
        "dropout": "dropout spatialdropout alphadropout gaussiandropout gaussiannoise feature_dropout alpha_dropout",
        "upsampling": "upsampling upsample interpolate repeat_interleave",
        "scale": "rescaling normalization mul multiply div truediv sub add imul itruediv normalize",
    }.items()
}
# What the same kind of pooling is called.
_KINDS = tuple(
    frozenset(names.split())
    for names in (
        "averagepooling globalaveragepooling avgpool avg_pool adaptiveavgpool adaptive_avg_pool mean",
        "maxpooling globalmaxpooling maxpool max_pool adaptivemaxpool adaptive_max_pool amax max",
    )
)
_ARITHMETIC = frozenset({*_FAMILIES["merge"], *_FAMILIES["scale"], "where", "maximum", "minimum", "clamp", "clip"})
_HANDING_ON = frozenset(_SAME_NUMBERS.split())
# In evaluation, these return what they take.
_IDENTITIES = frozenset({*_FAMILIES["dropout"], "identity", "activityregularization", "masking"})
_SCALES = frozenset({"rescaling", "normalization"})
# One of these functions by itself does what the Keras layer of that name does; others may be a part of it.
_WHOLE_FAMILIES = ("activation", "merge", "order", "border", "dropout")


def pair(
    graph: Graph,
    calls: Sequence[Call],
    returned: Sequence[int],
    modules: dict[int, list[nn.Module]],
) -> Pairing:
    """Pair the steps of a Keras model with the calls of its twin.

    Args:
        graph: The Keras model.
        calls: What the twin called.
        returned: Numbers of the twin's outputs.
        modules: By the identity of a Keras layer: the modules that hold its weights, the first to be called first.
    """
    return _Pairer(graph, calls, returned, modules).pair()


class _Pairer:
    """The two graphs while they are being paired."""

    def __init__(
        self, graph: Graph, calls: Sequence[Call], returned: Sequence[int], modules: dict[int, list[nn.Module]]
    ) -> None:
        self.steps = graph.steps
        self.calls = [*calls, Call("return", None, tuple(returned), (), ())]
        self.modules = modules
        self.producer = {number: index for index, step in enumerate(graph.steps) for number in step.outputs}
        self.takers: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, step in enumerate(graph.steps):
            for slot, number in enumerate(step.inputs):
                self.takers[number].append((index, slot))
        for slot, number in enumerate(graph.outputs):
            self.takers[number].append((len(graph.steps), slot))
        self.source = {n: (index, at) for index, call in enumerate(self.calls) for at, n in enumerate(call.outputs)}
        held = {id(module) for several in modules.values() for module in several}
        self.held = {index for index, call in enumerate(self.calls) if id(call.module) in held}
        self.used = self.held | {len(calls)}
        # What these take need not be what the layer takes whose result they return.
        self.unclear = {index for index, call in enumerate(calls) if index not in self.held and _may_be_anything(call)}
        self.result = Pairing({}, {}, {}, {}, set())
        # By number of a tensor: the calls of modules with weights that it comes from directly, -1, -2, ... for the
        # inputs; None if a layer that a Keras tensor comes from has no such call.
        self.ours: dict[int, frozenset[int] | None] = {n: frozenset({-1 - at}) for at, n in enumerate(graph.inputs)}
        self.theirs: dict[int, frozenset[int]] = {-1: frozenset()}
        for index, call in enumerate(self.calls):
            behind = frozenset({index}) if index in self.held else self.held_behind(*call.inputs)
            self.theirs.update(dict.fromkeys(call.outputs, behind))
        for slot in range(min(len(graph.outputs), len(returned))):
            self.result.inputs[len(graph.steps), slot] = Spot(len(calls), "in", slot)

    def pair(self) -> Pairing:
        self.pair_by_modules()
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_takers(index, clear=True)
        for index in range(len(self.steps)):
            if self.is_open(index):
                self.pair_with_producers(index)
        for index in reversed(range(len(self.steps))):
            if self.is_open(index):
                self.pair_with_takers(index, clear=False)
        return self.result

    def is_open(self, index: int) -> bool:
        """Tell whether a step has no twin yet, and no place where its result can be seen."""
        return index not in self.result.twins and self.steps[index].outputs[0] not in self.result.observed

    def pair_by_modules(self) -> None:
        """Pair each layer with weights with the module or modules that hold them, call by call.

        The twin may call a shared module in another order: a call that takes what comes from the right modules is the
        layer's, else the first that is left.
        """
        calls_of: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(self.calls):
            calls_of[id(call.module)].append(index)
        free = {
            layer: list(zip(calls_of[id(several[0])], calls_of[id(several[-1])], strict=False))
            for layer, several in self.modules.items()
        }
        for index, step in enumerate(self.steps):
            each = [self.ours[number] for number in step.inputs]
            behind = None if None in each else frozenset().union(*each)
            if not step.is_activation and id(step.layer) in self.modules:
                calls = free[id(step.layer)]
                same = [both for both in calls if self.held_behind(*self.calls[both[0]].inputs) == behind]
                behind = None
                for both in (same or calls)[:1]:
                    calls.remove(both)
                    self.match(index, *both)
                    behind = frozenset({both[1]})
            self.ours.update(dict.fromkeys(step.outputs, behind))

    def match(self, step: int, first: int, last: int) -> None:
        self.result.twins[step] = (first, last)
        self.used |= {first, last}
        for slot, position in self.slots(step, first):
            self.result.inputs[step, slot] = Spot(first, "in", position)
        for position, number in enumerate(self.steps[step].outputs[: len(self.calls[last].outputs)]):
            self.result.outputs[number] = Spot(last, "out", position)

    def slots(self, step: int, call: int) -> Iterator[tuple[int, int]]:
        """Yield (number of an input of the step, position of the same input of the call)."""
        inputs, numbers = self.steps[step].inputs, self.calls[call].inputs
        if self.calls[call].module is not None and len(inputs) == 1:
            if numbers:
                yield 0, 0
            return
        free = [position for position, number in enumerate(numbers) if number >= 0]
        if 1 < len(set(inputs)) > len(free):
            # A module that does more than the step, or the last of several calls: which of the inputs it takes, and
            # whether it takes any, cannot be told.
            return
        left = []
        for slot, number in enumerate(inputs):
            same = [at for at in free if self.held_behind(numbers[at]) == self.ours[number]]
            same.sort(key=lambda at, number=number: not self.is_of_the_kind(numbers[at], number))
            if same:
                free.remove(same[0])
                yield slot, same[0]
            else:
                left.append(slot)
        if len(left) == len(free) and (len(inputs) > 1 or (left and self.may_come_from(numbers[free[0]], inputs[0]))):
            yield from zip(left, free, strict=True)

    def is_of_the_kind(self, number: int, keras_number: int) -> bool:
        """Tell whether a tensor of the twin comes from a call of just the kind of the step of a Keras tensor."""
        step, source = self.producer.get(keras_number), self.source.get(number)
        if step is None or source is None:
            return False
        names = _names(self.steps[step]) - {"activation"} | {self.steps[step].kind.split(" ")[-1]}
        return any(names & kinds and _call_names(self.calls[source[0]]) & kinds for kinds in (*_KINDS, names))

    def may_come_from(self, number: int, keras_number: int) -> bool:
        """Tell whether a tensor of the twin may be a Keras tensor, although they come from different modules."""
        if self.ours[keras_number] is None:
            return True
        step = self.producer.get(keras_number)
        return step is not None and step not in self.result.twins and self.origin(number, self.steps[step]) is not None

    def held_behind(self, *numbers: int) -> frozenset[int]:
        """Return the calls of modules with weights, or the inputs, that tensors of the twin come from directly."""
        return frozenset().union(*(self.theirs.get(number, frozenset({-1 - number})) for number in numbers))

    def comes_from(self, number: int, call: int) -> bool:
        """Tell whether a tensor is the result of a call, perhaps in another order."""
        while number in self.source:
            index = self.source[number][0]
            if index == call:
                return True
            if not _hands_on(self.calls[index]):
                return False
            number = self.calls[index].inputs[0]
        return False

    def pair_with_takers(self, index: int, clear: bool) -> None:
        """Pair a step with the call from which those take that take the step's result.

        Args:
            index: Number of the step.
            clear: Whether to leave out takers of which it is not clear that they take that result.
        """
        step = self.steps[index]
        spots = [spot for taker in self.takers[step.outputs[0]] if (spot := self.result.inputs.get(taker))]
        spots = [spot for spot in spots if not clear or spot.call not in self.unclear]
        for spot in spots:
            call = self.origin(self.calls[spot.call].inputs[spot.position], step)
            if call is not None:
                better = self.of_the_same_modules(step)
                call = call if better is None else better
                self.match(index, self.first_of_several(step, call), call)
                if spot.call in self.unclear:
                    self.unclear.add(call)
                if call in self.unclear or _call_names(self.calls[call]) & _ARITHMETIC:
                    self.result.guessed.update(step.outputs)
                return
        # A model may return its outputs in another order: a call that takes what the step takes is the better sign.
        at_the_end = all(spot.call == len(self.calls) - 1 for spot in spots)
        if spots:
            self.result.observed[step.outputs[0]] = spots
            sources = [self.source.get(self.calls[spot.call].inputs[spot.position]) for spot in spots]
            others = all(source is not None and source[0] in self.used for source in sources)  # another step's, then
            call = self.of_the_same_modules(step) if others else None
            if call is not None:
                self.match(index, call, call)
                self.result.guessed.update(step.outputs)
            elif not (at_the_end and self.pair_with_producers(index)) and _names(step) & _IDENTITIES:
                self.result.inputs[index, 0] = spots[0]

    def first_of_several(self, step: Step, call: int) -> int:
        """Return the first of the functions in a row that scale as one step does; one by itself is the last, too."""
        before = self.producer.get(step.inputs[0]) if step.inputs else None
        if not _names(step) & _SCALES or (before is not None and _names(self.steps[before]) & _SCALES):
            return call
        while (source := self.source.get(self.calls[call].inputs[0])) is not None:
            other = self.calls[source[0]]
            if source[0] in self.used or other.module is not None or not _call_names(other) & _FAMILIES["scale"]:
                break
            call = source[0]
        return call

    def of_the_same_modules(self, step: Step) -> int | None:
        """Return the one free call of a fitting kind that takes what comes from the same modules as a step's inputs."""
        each = [self.ours[number] for number in step.inputs]
        if None in each:
            return None
        behind = frozenset().union(*each)
        free = [(at, call) for at, call in enumerate(self.calls) if at not in self.used]
        same = [at for at, call in free if self.held_behind(*call.inputs) == behind and _fit(step, call)]
        return same[0] if len(same) == 1 else None

    def origin(self, number: int, step: Step) -> int | None:
        """Return the free call of a fitting kind that a tensor comes from, perhaps in another order.

        Of several borders in a row the last may be the padding of the layer that takes the tensor: they are counted
        from the first.
        """
        fitting = []
        while number in self.source:
            index = self.source[number][0]
            call = self.calls[index]
            if index not in self.used and _fit(step, call):
                fitting.append(index)
                if not _names(step) & _FAMILIES["border"]:
                    break
            if not _hands_on(call):
                break
            number = call.inputs[0]
        before = self.borders_before(step) if _names(step) & _FAMILIES["border"] else 0
        return fitting[-1 - before] if len(fitting) > before else None

    def borders_before(self, step: Step) -> int:
        """Return how many layers that add a border precede one directly."""
        count = 0
        while step.inputs and step.inputs[0] in self.producer:
            step = self.steps[self.producer[step.inputs[0]]]
            if not _names(step) & _FAMILIES["border"]:
                break
            count += 1
        return count

    def pair_with_producers(self, index: int) -> bool:
        """Pair a step with the first free call of its kind that takes what it takes; tell whether there is one."""
        step = self.steps[index]
        inputs = set(step.inputs)
        made = [self.result.outputs.get(number) for number in inputs]
        if None in made or not any(_names(step) & _FAMILIES[family] for family in _WHOLE_FAMILIES):
            return False
        for at, call in enumerate(self.calls):
            if at in self.used or not _fit(step, call) or sum(number >= 0 for number in call.inputs) < len(inputs):
                continue
            if all(any(self.comes_from(number, spot.call) for number in call.inputs) for spot in made):
                self.match(index, at, at)
                self.result.guessed.update(step.outputs)
                return True
        return False


def _hands_on(call: Call) -> bool:
    return bool(call.inputs) and call.inputs[0] >= 0 and bool(_call_names(call) & _HANDING_ON)


def _fit(step: Step, call: Call) -> bool:
    """Tell whether a call may be the twin of a step without weights."""
    names, others = _names(step), _call_names(call)
    if names & others or any(names & members and others & members for members in _FAMILIES.values()):
        return True
    return _may_be_anything(call) and not names & (_FAMILIES["dropout"] | _FAMILIES["order"])


def _may_be_anything(call: Call) -> bool:
    """Tell whether a call is of a module of the reader's own whose name does not say what it does."""
    own = call.module is not None and not type(call.module).__module__.startswith("torch.nn")
    return own and not any(_call_names(call) & members for members in _FAMILIES.values())


def _names(step: Step) -> frozenset[str]:
    """Return what a step may be called: its kind, "activation" for every activation."""
    kind = "activation" if step.is_activation or isinstance(step.layer, keras.layers.Activation) else ""
    return frozenset({_plain(kind or type(step.layer).__name__)})


def _call_names(call: Call) -> frozenset[str]:
    name = call.name if call.module is None else type(call.module).__name__
    bases: Sequence[Any] = () if call.module is None else type(call.module).__mro__
    known = {_plain(b.__name__) for b in bases if b not in (nn.Module, object)}
    return frozenset({_plain(name), *known, *(["dropout"] if call.rate is not None else [])})


@cache
def _plain(name: str) -> str:
    """Return a name without what tells dimensions, padding and work in place apart: MaxPool2dSame is maxpool."""
    return re.sub(r"(\d[dD])|same$|_$", "", name.lower().strip("_"))
