"""The known causes of a difference at one layer: each is tried, and those that explain all of it are named.

A cause explains a difference if undoing it makes the layer agree, or if doing the same to Keras's numbers gives the
twin's. Nothing is changed: modules are copied before anything is tried on them.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, combinations, permutations, product
from typing import Any, NamedTuple

from parity.alongside import Run, as_tensor, largest, views
from parity.graph import Step, activation_name, run_step
from parity.layouts import Place, find_layout
from parity.padding import same_padding

import keras
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CAUSES = {
    "kernel axes permuted": "01",
    "kernel flipped": "01",
    "height and width exchanged": "01",
    "depthwise order": "01",
    "groups": "01",
    "input axes exchanged": "01",
    "kernel not transposed": "02",
    "epsilon": "03",
    "BatchNormalization vectors exchanged": "03",
    "statistics left at 0 and 1": "03",
    "train mode": "03",
    "momentum": "03",
    "padding": "04",
    "padding value": "04",
    "padding counted": "04",
    "stride or dilation": "04",
    "another pooling": "04",
    "overwritten in place": "05",
    "activation missing": "05",
    "another activation": "05",
    "another slope": "05",
    "axis": "05",
    "flatten order": "06",
    "weights of another layer": "07",
    "heads exchanged": "07",
    "weights not moved": "07",
    "bias missing": "07",
    "another skip": "07",
    "input scaled": "08",
    "channels reversed": "08",
    "precision": "08",
    "dropout rate": "12",
    "gradient stopped": "12",
    "layer frozen": "12",
}
"""Each known cause, and the number of the notebook that explains it."""


_HUGE = 1e30


class Cause(NamedTuple):
    """What explains a difference.

    Attributes:
        cause: One of ``CAUSES``.
        detail: What was found, in a few words.
        notebook: Number of the notebook that explains it.
    """

    cause: str
    detail: str
    notebook: str


class Case(NamedTuple):
    """All that is known of a layer that diverges.

    Attributes:
        run: Both models as they ran.
        index: Number of the step; that after the last is the model's return.
        step: The step, None for the model's return.
        modules: Copies of the twin's modules that hold its weights, or of the one that plays its part; may be empty.
        inputs: What the Keras layer takes.
        twin_inputs: What its twin takes, with the axes as the twin has them; may be empty.
        value: What the Keras layer returns; for another input, what it takes.
        twin: What its twin has instead.
        within: The largest difference that rounding explains.
        flattened: The shape that the features it takes were flattened from, None if they were not.
        channels_first: Whether the twin has those features channels first.
        weights: Every Keras weight that can be moved: its path, and the values in PyTorch's layout.
        actual: By the path of each of the layer's weights: the module, and the name of the tensor in it.
        others: Other tensors of the Keras model, of the shape of what it takes.
    """

    run: Run
    index: int
    step: Step | None
    modules: list[nn.Module]
    inputs: list[Tensor]
    twin_inputs: list[Tensor]
    value: Tensor
    twin: Tensor
    within: float
    flattened: tuple[int, ...] | None
    channels_first: bool
    weights: dict[str, Tensor]
    actual: dict[str, tuple[nn.Module, str]]
    others: dict[str, Tensor]

    def agrees(self, twin: Tensor | None) -> bool:
        """Tell whether a tensor in the twin's order of axes is what the Keras layer returns."""
        return twin is not None and _same(self.value, twin, self.within, self.flattened)

    def explains(self, value: Tensor | None) -> bool:
        """Tell whether a tensor in Keras's order of axes is what the twin has."""
        return value is not None and _same(value, self.twin, self.within, window=True)


def _cause(cause: str, detail: str = "") -> Cause:
    return Cause(cause, detail, CAUSES[cause])


def causes_here(case: Case) -> Iterator[Cause]:
    """Yield what explains that a layer takes what it should and returns something else."""
    found = False
    for several in _ATTEMPTS:
        for cause in several(case):
            found = True
            yield cause
        if found:
            return


def causes_before(case: Case) -> Iterator[Cause]:
    """Yield what explains that a layer's twin takes something else than what the layers before return."""
    value, rank = case.value, case.value.ndim
    if _dropped(case):
        yield _cause("train mode", "some elements are 0, the others larger, as dropout makes them")
        return
    if _overwritten(case):
        yield _cause("overwritten in place", f"by {_overwritten(case)}")
        return
    names = [name for name, other in case.others.items() if case.explains(other)]
    if names:
        yield _cause("another skip", f"it takes the output of {' or '.join(names)}")
        return
    for name, function in _activations(value):
        if case.explains(function(value)):
            yield _cause("another activation", f"{name}, which Keras has not")
            return
    for order in permutations(range(1, rank - 1)):
        if list(order) != list(range(1, rank - 1)) and case.explains(value.permute(0, *order, rank - 1)):
            if case.step is not None and isinstance(case.step.layer, keras.layers.Flatten | keras.layers.Reshape):
                yield _cause("flatten order", f"its axes are in the order {order} before they are flattened")
                return
            yield _cause("input axes exchanged", f"in the order {order}")
            return
    if rank > 2 and case.explains(value.flip(-1)):
        yield _cause("channels reversed", "the last channel first")
        return
    if case.flattened:
        for order, other in _other_orders(value.unflatten(1, case.flattened)):
            if case.explains(other):
                yield _cause("flatten order", f"axes {order} in place of {tuple(range(len(order)))}")
                return
    if case.twin.dtype != value.dtype and case.explains(value.to(case.twin.dtype)):
        yield _cause("precision", f"the twin computes in {str(case.twin.dtype).removeprefix('torch.')}")
        return
    scaled = _scale(case)
    if scaled:
        yield _cause("input scaled", scaled)


# --- Weights --------------------------------------------------------------------------------------------------------


def _by_weights(case: Case) -> Iterator[Cause]:
    """Yield what was done to the weights, if the layer agrees with the right ones."""
    if not case.actual or not case.modules:
        return
    different: list[tuple[str, Tensor, Tensor]] = []
    repaired = copy.deepcopy(case.modules)
    filled = set()
    for path, (module, name) in case.actual.items():
        # A shared layer whose second call is another module has its weights in the first.
        at = next((i for i, other in enumerate(case.modules) if other is module), 0)
        due = _due(case, path)
        filled.add((at, name))
        tensor = dict(repaired[at].named_parameters()) | dict(repaired[at].named_buffers())
        if name not in tensor or tensor[name].shape != due.shape:
            continue
        actual = tensor[name].detach().clone()
        if not torch.equal(actual, due.to(actual.dtype)):
            different.append((path, actual, due.to(actual.dtype)))
            with torch.no_grad():
                tensor[name].copy_(due)
    extra: dict[str, Tensor] = {}
    for at, module in enumerate(repaired):
        for name, parameter in module.named_parameters():
            neutral = 1.0 if name == "weight" else 0.0
            if (at, name) not in filled and not bool((parameter == neutral).all()):
                extra[name] = parameter.detach().clone()
                with torch.no_grad():
                    parameter.fill_(neutral)
    if not (different or extra) or not case.agrees(_forward(repaired, case.twin_inputs)):
        return
    values = [actual for _, actual, _ in different] + list(extra.values())
    misplaced = [one for one in different if any(_equal(one[1], due) for _, _, due in different)]
    if misplaced and all(any(_equal(value, due) for value in values) for _, _, due in different):
        # All the right values are there, at other places; what is at the place left over is no second mistake.
        different, extra = misplaced, {}
    seen = set()
    for path, actual, due in different:
        cause = _name_of(case, path, actual, due)
        if cause.cause not in seen:
            seen.add(cause.cause)
            yield cause
    if extra:
        yield _cause("weights not moved", f"{', '.join(extra)}: Keras has none, and the twin's are not neutral")


def _due(case: Case, path: str) -> Tensor:
    """Return what a weight should be in the twin, given the order of the features that the twin takes."""
    due = case.weights[path]
    if case.flattened and case.channels_first and due.shape[-1] == _count(case.flattened):
        return _channels_first_features(due, case.flattened)
    return due


def _channels_first_features(weight: Tensor, flattened: tuple[int, ...]) -> Tensor:
    *spatial, channels = range(len(flattened))
    features = weight.reshape(-1, *flattened)
    return features.permute(0, channels + 1, *(axis + 1 for axis in spatial)).reshape(weight.shape)


def _name_of(case: Case, path: str, actual: Tensor, due: Tensor) -> Cause:
    """Return what was done to a weight that the twin has otherwise than it should."""
    short = path.rpartition("/")[2]
    own = {other: _due(case, other) for other in case.actual if other != path}
    if short in ("moving_mean", "moving_variance") and bool((actual == (short == "moving_variance")).all()):
        return _cause("statistics left at 0 and 1", f"{short} is {int(short == 'moving_variance')} throughout")
    for other, value in own.items():
        if torch.equal(actual, value.to(actual.dtype)) and short not in ("kernel", "bias"):
            return _cause("BatchNormalization vectors exchanged", f"{short} holds {other.rpartition('/')[2]}")
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(actual, due.to(dtype).to(actual.dtype)):
            return _cause("precision", f"{short} rounded to {str(dtype).removeprefix('torch.')}")
    wrong = (actual != due).nonzero()[:, 0].unique()
    if short in ("bias", "beta") and bool((actual[actual != due] == 0).all()):
        return _cause("bias missing", f"{short} is 0 in {_some(wrong, due)}")
    for other, value in case.weights.items():
        if other not in case.actual and value.shape == actual.shape and torch.equal(actual, value.to(actual.dtype)):
            return _cause("weights of another layer", f"{short} is {other}")
    if due.ndim > 1 and _equal(actual[wrong], due[wrong].flip(1)):
        return _cause("channels reversed", f"{short} takes the last channel first")
    rank = due.ndim
    for axes in chain.from_iterable(combinations(range(2, rank), n) for n in range(1, rank - 1)):
        if torch.equal(actual[wrong], due[wrong].flip(axes)):
            return _cause("kernel flipped", f"along its axes {axes}, in {_some(wrong, due)}")
    for order in permutations(range(2, rank)):
        if list(order) != list(range(2, rank)) and _equal(actual, due.permute(0, 1, *order)):
            return _cause("height and width exchanged", "in the kernel")
    return _name_of_order(case, short, actual, due)


def _name_of_order(case: Case, short: str, actual: Tensor, due: Tensor) -> Cause:
    """Return in what other order a weight has the right numbers."""
    if case.flattened and due.shape[-1] == _count(case.flattened):
        path = next(path for path in case.actual if path.endswith(f"/{short}"))
        plain = case.weights[path].reshape(-1, *case.flattened)
        for order, other in _other_orders(plain, all_orders=True):
            if _equal(actual, other.reshape(due.shape)):
                count = range(len(order))
                due = (count[-1], *count[:-1]) if case.channels_first else tuple(count)
                return _cause("flatten order", f"{short} has its features in the order {order}, the twin in {due}")
    if due.ndim == 2 and _equal(actual, due.T):
        return _cause("kernel not transposed", f"{tuple(due.shape)} either way")
    layer = case.step.layer if case.step else None
    if due.ndim > 2 and due.shape[1] == 1 and "epthwise" in type(layer).__name__ + short:
        inputs = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None)).shape[-2]
        if _equal(actual, due.unflatten(0, (inputs, -1)).transpose(0, 1).flatten(0, 1)):
            return _cause("depthwise order", "channels and multiplier are in the other order")
    groups = getattr(layer, "groups", 1)
    if groups > 1 and due.shape[0] % groups == 0:
        for parts in ((groups, -1), (due.shape[0] // groups, -1)):
            if _equal(actual, due.unflatten(0, parts).transpose(0, 1).flatten(0, 1)):
                return _cause("groups", "the outputs of the groups are interleaved")
    for order in permutations(range(due.ndim)):
        if _equal(actual, due.permute(order).reshape(due.shape)):
            return _cause("kernel axes permuted", "its axes are in another order, or reshaped instead of permuted")
    wrong = (actual != due).nonzero()[:, 0].unique()
    return _cause("weights not moved", f"{short} holds other numbers in {_some(wrong, due)}")


def _some(wrong: Tensor, due: Tensor) -> str:
    return f"{len(wrong)} of {due.shape[0]}"


# --- Settings, padding, pooling -------------------------------------------------------------------------------------

_SETTINGS = {
    "eps": "epsilon",
    "momentum": "momentum",
    "stride": "stride or dilation",
    "dilation": "stride or dilation",
    "groups": "groups",
    "num_groups": "groups",
}


def _by_mode(case: Case) -> Iterator[Cause]:
    """Yield that the twin is in training mode, if it agrees in evaluation mode."""
    if any(module.training for module in case.modules) and case.twin_inputs:
        modules = [module.eval() for module in copy.deepcopy(case.modules)]
        if case.agrees(_forward(modules, case.twin_inputs)):
            yield _cause("train mode", "it agrees after eval()")
            return
    if _dropped(case):
        yield _cause("train mode", "some elements are 0, the others larger, as dropout makes them")


def other_settings(case: Case) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the twin differs: what the Keras layer needs, and what the twin has."""
    found = {}
    layout = find_layout(case.step.layer) if case.step and not case.step.is_activation else None
    for variable in getattr(case.step.layer, "weights", []) if layout else []:
        place = layout.get(variable.name)
        module = case.actual.get(variable.path, (None,))[0]
        if not isinstance(place, Place) or not isinstance(module, place.modules):
            continue
        for name, due, actual in place.settings(case.step.layer, module):
            numbers = isinstance(due, float) and isinstance(actual, float)
            if abs(due - actual) > 1e-6 * abs(due) if numbers else due != actual:
                found[name.split(" ")[0]] = (due, actual)
    return found


def _by_settings(case: Case) -> Iterator[Cause]:
    """Yield each setting with which the layer agrees."""
    for name, (due, actual) in other_settings(case).items():
        if name not in _SETTINGS:
            continue
        detail = f"{name} is {actual}, not {due}"
        modules = copy.deepcopy(case.modules)
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, due)
        moves = name in ("stride", "dilation")  # and with them the padding that is due
        if case.agrees(_convolved(case, _pads_due(case)) if moves else _forward(modules, case.twin_inputs)):
            yield _cause(_SETTINGS[name], detail)


def _spatial(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Return kernel size, stride and dilation of a convolution or pooling layer."""
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None:
        return None
    rank = len(kernel)
    dilation = getattr(layer, "dilation_rate", 1)
    dilation = (dilation,) * rank if isinstance(dilation, int) else tuple(dilation)
    return tuple(kernel), tuple(layer.strides), dilation


def _pads_due(case: Case) -> list[tuple[int, int]]:
    """Return how many elements Keras adds (before, after) along each axis."""
    kernel, stride, dilation = _spatial(case.step.layer)
    sizes = case.inputs[0].shape[1:-1]
    if case.step.layer.padding == "same":
        return [same_padding(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
    if case.step.layer.padding == "causal":
        return [((k - 1) * d, 0) for k, d in zip(kernel, dilation, strict=True)]
    return [(0, 0)] * len(kernel)


def _other_pads(case: Case) -> Iterator[list[tuple[int, int]]]:
    """Yield every other padding with which the output has the shape of the twin's."""
    kernel, stride, dilation = _spatial(case.step.layer)
    sizes = case.inputs[0].shape[1:-1]
    outputs = case.twin.shape[2:]
    due = _pads_due(case)
    each = []
    for n, k, s, d, o in zip(sizes, kernel, stride, dilation, outputs, strict=True):
        reach = (k - 1) * d + 1
        pairs = [(b, a) for b in range(reach + 1) for a in range(reach + 1) if (n + b + a - reach) // s + 1 == o]
        each.append(pairs)
    if max(map(len, each), default=0) > 40:
        each = [[pair for pair in pairs if abs(pair[0] - pair[1]) <= 2] for pairs in each]
    for pads in product(*each):
        if list(pads) != due:
            yield list(pads)


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Tensor:
    flat = [amount for pair in reversed(pads) for amount in pair]
    return F.pad(x, flat, mode=mode, value=value) if mode == "constant" else F.pad(x, flat, mode=mode)


def _channels_first_input(case: Case) -> Tensor:
    dtype = case.twin.dtype
    return case.inputs[0].movedim(-1, 1).to(dtype)


def _kernels(case: Case) -> tuple[Tensor, Tensor | None, int] | None:
    """Return weight, bias and groups of a convolution, right for PyTorch."""
    if len({id(module) for module, _ in case.actual.values()}) != 1:
        return None
    by_name = {path.rpartition("/")[2]: weight for path, weight in case.weights.items() if path in case.actual}
    weight = next((value for name, value in by_name.items() if "kernel" in name), None)
    if weight is None or weight.ndim != case.value.ndim:
        return None
    groups = case.inputs[0].shape[-1] // weight.shape[1]
    return weight.to(case.twin.dtype), by_name.get("bias"), groups


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _convolved(case: Case, pads: list[tuple[int, int]], mode: str = "constant") -> Tensor | None:
    """Return what the Keras layer's convolution makes of its input with another padding, channels first."""
    kernels = _kernels(case)
    if kernels is None or "Transpose" in type(case.step.layer).__name__:
        return None
    weight, bias, groups = kernels
    _, stride, dilation = _spatial(case.step.layer)
    x = _padded(_channels_first_input(case), pads, mode)
    return _CONVOLUTIONS[len(stride)](x, weight, bias, stride, 0, dilation, groups)


def _by_padding(case: Case) -> Iterator[Cause]:
    """Yield the padding with which a convolution gives what the twin has."""
    if case.step is None or case.step.is_activation or not case.inputs or _spatial(case.step.layer) is None:
        return
    if _kernels(case) is None or case.twin.ndim != case.value.ndim:
        return
    if "Transpose" in type(case.step.layer).__name__:
        yield from _by_cropping(case)
        return
    due = _pads_due(case)
    for pads in _other_pads(case):
        if case.explains(_channels_last(_convolved(case, pads))):
            yield _cause("padding", f"{pads} is added, not {due}")
            return
    for mode in ("reflect", "replicate", "circular"):
        sizes = case.inputs[0].shape[1:-1]
        if any(max(pair) >= size for pair, size in zip(due, sizes, strict=True)):
            continue
        if case.explains(_channels_last(_convolved(case, due, mode))):
            yield _cause("padding value", f"the padding is no zeros, it is {mode}")
            return


def _by_cropping(case: Case) -> Iterator[Cause]:
    """Yield the crop with which a transposed convolution gives what the twin has."""
    weight, bias, _ = _kernels(case)
    kernel, stride, dilation = _spatial(case.step.layer)
    whole = _TRANSPOSED[len(stride)](_channels_first_input(case), weight, bias, stride, 0, 0, 1, dilation)
    # Beyond the result there is only the bias.
    room = max((k - 1) * d + s for k, s, d in zip(kernel, stride, dilation, strict=True))
    rest = torch.zeros(whole.shape[1], dtype=whole.dtype) if bias is None else bias.to(whole.dtype)
    rest = rest.reshape(1, -1, *[1] * len(stride))
    whole = _padded(whole - rest, [(0, room)] * len(stride)) + rest
    sizes = case.twin.shape[2:]
    ranges = [range(min(room, have - want) + 1) for have, want in zip(whole.shape[2:], sizes, strict=True)]
    for starts in product(*ranges):
        part = whole
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
            part = part.narrow(axis, start, size)
        if case.explains(_channels_last(part)):
            yield _cause("padding", f"{starts} elements are cropped before the result")
            return


def _by_pooling(case: Case) -> Iterator[Cause]:
    """Yield the pooling that gives what the twin has."""
    layer = case.step.layer if case.step else None
    if not hasattr(layer, "pool_size") or case.twin.ndim != case.value.ndim or not case.inputs:
        return
    kernel, stride, _ = _spatial(layer)
    due, is_max = _pads_due(case), "Max" in type(layer).__name__
    for module in case.modules:
        for name, wanted in (("kernel_size", kernel), ("stride", stride), ("dilation", (1,) * len(kernel))):
            actual = getattr(module, name, wanted)
            actual = (actual,) * len(kernel) if isinstance(actual, int) else tuple(actual)
            if actual != wanted:
                yield _cause("stride or dilation", f"{name} is {actual}, not {wanted}")
                return
    for pads in [due, *_other_pads(case)]:
        for name, y in _pooled(case, kernel, stride, pads):
            if not case.explains(_channels_last(y)):
                continue
            if case.twin.shape[2:] != y.shape[2:]:
                yield _cause("padding", "the right windows, and more at the end, as with ceil_mode")
            elif ("max" in name) != is_max:
                yield _cause("another pooling", name)
            elif pads == due and name == "max, zeros":
                yield _cause("padding value", "zeros, where minus infinity is due")
            elif pads == due and name == "average, padding counted":
                yield _cause("padding counted", "the average counts elements of padding")
            else:
                yield _cause("padding", f"{pads} is added, not {due}; {name}")
            return
    if getattr(case.modules[0], "ceil_mode", False) if case.modules else False:
        yield _cause("padding", "ceil_mode adds a window at the end")


def _pooled(case: Case, kernel: Any, stride: Any, pads: list[tuple[int, int]]) -> Iterator[tuple[str, Tensor]]:
    rank = len(kernel)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    x = _channels_first_input(case)
    yield "max", maximum(_padded(x, pads, value=float("-inf")), kernel, stride)
    yield "max, zeros", maximum(_padded(x, pads), kernel, stride)
    counted = average(_padded(x, pads), kernel, stride)
    yield "average", counted / average(_padded(torch.ones_like(x), pads), kernel, stride)
    yield "average, padding counted", counted


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.movedim(1, -1)


# --- Functions, merges, orders --------------------------------------------------------------------------------------


def _activations(value: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield known activations that change a tensor (batch, ..., channels), by name."""
    names = "relu relu6 elu selu celu silu mish sigmoid hard_sigmoid tanh softplus softsign hard_silu exponential"
    functions = {name: keras.activations.get(name) for name in names.split()}
    for name, function in functions.items():
        yield name, lambda x, f=function: as_tensor(f(x.numpy()))
    yield "gelu", F.gelu
    yield "gelu by tanh", lambda x: F.gelu(x, approximate="tanh")
    for slope in (0.01, 0.1, 0.2, 0.3):
        yield f"leaky_relu with slope {slope}", lambda x, s=slope: F.leaky_relu(x, s)
    for axis in range(value.ndim):
        yield f"softmax along axis {axis}", lambda x, a=axis: x.softmax(a)


def _by_function(case: Case) -> Iterator[Cause]:
    """Yield the function with which the layer's input, or what precedes its activation, gives what the twin has."""
    if case.step is None or len(case.inputs) != 1:
        return
    layer, x = case.step.layer, case.inputs[0]
    is_activation = case.step.is_activation or isinstance(layer, keras.layers.Activation)
    own = activation_name(layer) if is_activation else type(layer).__name__.lower()
    known = is_activation or isinstance(
        layer,
        (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU, keras.layers.Softmax),
    )
    if known and x.shape == case.value.shape:
        if case.explains(x):
            yield _cause("activation missing", own)
            return
        slope = _slope(case)
        for name, function in _activations(x):
            if not case.explains(function(x)):
                continue
            if "softmax" in own and "softmax" in name:
                yield _cause("axis", name)
            elif slope and "leaky" in name and own in ("leakyrelu", "leaky_relu", "prelu", "relu"):
                yield _cause("another slope", f"{slope:g}")
            else:
                yield _cause("another activation", f"{name}, not {own}")
            return
        if slope is not None:
            yield _cause("another slope", f"{slope:g}")
        return
    if isinstance(layer, keras.layers.LayerNormalization | keras.layers.GroupNormalization):
        yield from _by_axis(case)


def _by_channels(case: Case) -> Iterator[Cause]:
    """Yield the order of the channels in which a layer's twin has to be fed to agree."""
    if len(case.twin_inputs) != 1 or case.twin_inputs[0].ndim < 3:
        return
    x = case.twin_inputs[0]
    if case.agrees(_forward(case.modules, [x.flip(1)])):
        yield _cause("channels reversed", "the last channel first")
    groups = getattr(case.step.layer, "groups", 1) if case.step else 1
    for parts in ((groups, -1), (-1, groups)) if groups > 1 else ():
        if case.agrees(_forward(case.modules, [x.unflatten(1, parts).transpose(1, 2).flatten(1, 2)])):
            yield _cause("groups", "it takes its channels in another order")
            return


def _by_other_input(case: Case) -> Iterator[Cause]:
    """Yield another tensor with which the layer gives what the twin has, where the twin's input was not seen."""
    if case.step is None or case.twin_inputs or len(case.inputs) != 1:
        return
    for name, other in case.others.items():
        if other.shape != case.inputs[0].shape:
            continue
        value = run_step(case.step, [keras.ops.convert_to_tensor(other.numpy())])[0]
        if case.explains(as_tensor(value)):
            yield _cause("another skip", f"it takes the output of {name}")
            return


def _slope(case: Case) -> float | None:
    """Return the slope for negative numbers, if the twin is the identity for others and has one slope."""
    for view, twin, _ in views(case.inputs[0], case.twin, None, None):
        negative = view < 0
        if not bool(negative.any()) or largest((view - twin)[~negative]) > case.within:
            continue
        ratios = twin[negative] / view[negative]
        slope = float(ratios.median())
        if largest(twin[negative] - slope * view[negative]) <= case.within:
            return slope
    return None


def _by_axis(case: Case) -> Iterator[Cause]:
    """Yield the axes along which a normalization gives what the twin has."""
    layer, x = case.step.layer, case.inputs[0]
    by_name = {path.rpartition("/")[2]: weight for path, weight in case.weights.items() if path in case.actual}
    gamma, beta = by_name.get("gamma", torch.ones(())), by_name.get("beta", torch.zeros(()))
    axes = range(1, x.ndim)
    for several in chain.from_iterable(combinations(axes, n) for n in range(1, x.ndim)):
        mean, variance = x.mean(several, keepdim=True), x.var(several, correction=0, keepdim=True)
        normal = (x - mean) / (variance + layer.epsilon).sqrt()
        for axis in axes:
            if gamma.ndim and gamma.numel() != x.shape[axis]:
                continue
            shape = [-1 if other == axis else 1 for other in range(x.ndim)]
            scale, offset = (v.reshape(shape) if v.ndim else v for v in (gamma, beta))
            if case.explains(normal * scale + offset):
                yield _cause("axis", f"it normalizes along {several}")
                return


def _by_merging(case: Case) -> Iterator[Cause]:
    """Yield other inputs, or another order of them, with which a merging layer gives what the twin has."""
    if case.step is None or len(case.inputs) < 2:
        return
    merge = _merge(case)
    for order in permutations(range(len(case.inputs))):
        if list(order) != sorted(order) and case.explains(merge([case.inputs[i] for i in order])):
            yield _cause("another skip", f"its inputs are in the order {tuple(i + 1 for i in order)}")
            return
    for number, x in enumerate(case.inputs):
        if case.explains(x):
            yield _cause("another skip", f"only its input {number + 1} is used")
            return
        for name, other in case.others.items():
            changed = [*case.inputs[:number], other, *case.inputs[number + 1 :]]
            if other.shape == x.shape and case.explains(merge(changed)):
                yield _cause("another skip", f"its input {number + 1} is the output of {name}")
                return
    for axis in range(1, case.value.ndim):
        if all(x.shape == case.inputs[0].shape for x in case.inputs):
            y = torch.cat(case.inputs, axis)
            if y.shape == case.value.shape and case.explains(y):
                yield _cause("axis", f"joined along axis {axis}")
                return


def _merge(case: Case) -> Any:
    def merge(values: list[Tensor]) -> Tensor | None:
        try:
            node = case.step.node
            tensors = [keras.ops.convert_to_tensor(value.numpy()) for value in values]
            ids = [id(tensor) for tensor in node.input_tensors]
            args, kwargs = node.arguments.fill_in(dict(zip(ids, tensors, strict=True)))
            return as_tensor(case.step.layer(*args, **kwargs))
        except (ValueError, TypeError):
            return None

    return merge


def _by_order(case: Case) -> Iterator[Cause]:
    """Yield the order of axes in which a layer that only reorders gives what the twin has."""
    if case.step is None or case.step.is_activation or len(case.inputs) != 1:
        return
    layer, x = case.step.layer, case.inputs[0]
    if isinstance(layer, keras.layers.Flatten | keras.layers.Reshape):
        for order, other in _other_orders(x):
            if case.explains(other.reshape(case.value.shape)):
                yield _cause("flatten order", f"axes {order} in place of {tuple(range(len(order)))}")
                return
    if type(layer).__name__.startswith("ZeroPadding") and case.twin.ndim == case.value.ndim:
        sizes = x.shape[1:-1]
        more = [total - size for total, size in zip(case.twin.shape[2:], sizes, strict=True)]
        for starts in product(*(range(m + 1) for m in more if m >= 0)):
            if len(starts) != len(more):
                return
            pads = [(start, m - start) for start, m in zip(starts, more, strict=True)]
            for value in (0.0, float("-inf")):
                y = _padded(x.movedim(-1, 1), pads, value=value).movedim(1, -1)
                if _same(y, case.twin, case.within):
                    due = [tuple(pair) for pair in layer.padding]
                    same = pads == due
                    yield _cause("padding value", f"{value}") if same else _cause("padding", f"{pads}, not {due}")
                    return


def _other_orders(x: Tensor, all_orders: bool = False) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield a tensor (batch, ...) flattened with its axes in each other order, and that order."""
    axes = range(1, x.ndim)
    for order in permutations(axes):
        if all_orders or list(order) != list(axes):
            yield tuple(axis - 1 for axis in order), x.permute(0, *order).flatten(1)


# --- What the twin takes --------------------------------------------------------------------------------------------


def _overwritten(case: Case) -> str:
    """Return the name of the call that has overwritten what the twin takes, or nothing."""
    spot = case.run.pairing.taken.get((case.index, 0)) if case.step is None or len(case.step.inputs) == 1 else None
    spots = [spot] if spot else [s for (i, _), s in case.run.pairing.taken.items() if i == case.index]
    source = {number: call for call in case.run.calls for number in call.outputs}
    for one in spots:
        if one.call >= len(case.run.calls):
            continue
        number = case.run.calls[one.call].inputs[one.position]
        while number in source and source[number].overwrites:
            call = source[number]
            names = type(call.module).__name__.lower() if call.module is not None else call.name
            if "dropout" not in names and "identity" not in names:
                return call.name
            number = call.inputs[0]
    return ""


def _dropped(case: Case) -> bool:
    """Tell whether some elements of the twin are 0 and all others larger by one factor, as dropout makes them."""
    for view, twin, _ in views(case.value, case.twin, None, None):
        zero = (twin == 0) & (view != 0)
        kept = (twin != 0) & (view != 0)
        if not bool(zero.any()) or not bool(kept.any()):
            continue
        factor = float((twin[kept] / view[kept]).median())
        if factor > 1.01 and largest(twin[kept] - factor * view[kept]) <= 4 * case.within + 1e-6 * largest(twin):
            return True
    return False


def _scale(case: Case) -> str:
    """Return with what factor and offset the twin takes the tensor, or nothing."""
    for view, twin, _ in views(case.value, case.twin, None, None):
        x, y = view.double().flatten(), twin.double().flatten()
        spread = (x - x.mean()).square().sum()
        if not bool(spread > 0) or not bool(y.isfinite().all()):
            continue
        factor = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
        offset = float(y.mean() - factor * x.mean())
        bound = max(case.within, 1e-6 * largest(y))
        if factor and largest(factor * x + offset - y) <= bound:
            return f"{factor:.4g} times it" + (f" plus {offset:.4g}" if abs(offset) > bound else "")
    return ""


_ATTEMPTS = (
    _by_mode,
    _by_weights,
    _by_settings,
    _by_padding,
    _by_pooling,
    _by_function,
    _by_merging,
    _by_order,
    _by_channels,
    _by_other_input,
)

# --- Tools ----------------------------------------------------------------------------------------------------------


def _forward(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what modules, one after the other, make of what the twin took; None if they cannot."""
    if not modules or not inputs:
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = modules[0](*(tensor.clone() for tensor in inputs))
            for module in modules[1:]:
                x = module(x)
            return x if isinstance(x, Tensor) else None
    except (RuntimeError, ValueError, IndexError):
        return None


def _same(
    value: Tensor, twin: Tensor, within: float, flattened: tuple[int, ...] | None = None, window: bool = False
) -> bool:
    # Infinities cannot be subtracted; where both tensors have one, they agree.
    value, twin = (torch.nan_to_num(tensor, nan=torch.nan, posinf=_HUGE, neginf=-_HUGE) for tensor in (value, twin))
    ways = views(value, twin, None, flattened, window)
    return any(largest(view - other) <= within for view, other, _ in ways)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
