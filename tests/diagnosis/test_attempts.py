"""Each attempt by itself: what it explains, and what it must stay silent about. The evidence is made by hand."""

import copy
import inspect
from types import SimpleNamespace

from parity.diagnosis import (
    activations,
    attention,
    geometry,
    inputs,
    inside,
    merging,
    norms,
    order,
    parts,
    pooling,
    recurrence,
    settings,
    weights,
)
from parity.diagnosis.diagnose import ELSEWHERE, WRONG_INPUT, WRONG_OUTPUT, diagnose, explained_by
from parity.diagnosis.evidence import Behind, Evidence
from parity.models.keras_graph import keras_graph, run_step
from parity.models.keras_values import walk
from parity.models.torch_calls import Call
from parity.tensors import as_tensor
from parity.tracing.pairing import Spot
from parity.weights.fills import Fill, Weight
from parity.weights.layouts import find_layout
from parity.weights.mapping import Row
from tests.helpers.models import Twin, float64_model, model_of, ported, snapshot, x_of

import keras
import pytest
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn

IMAGE = (6, 5, 4)


def first(x):
    """Return a tensor (batch, ..., channels) with the channels first."""
    return x.movedim(-1, 1)


def evidence_of(shape, layers, twin=None, module=None, takes=False, examples=3, **more):
    """Return the evidence of the last layer of a small model.

    Args:
        shape: The shape of the model's input, or several.
        layers: Takes the input, or several, and returns the output.
        twin: Takes the evidence so far and returns what the twin has, channels first; by default what the modules make
            of what the twin takes.
        module: Takes the right weights, by name of the tensor, and returns the module that plays the layer's part.
        takes: Whether it is the input that differs.
        examples: How many there are.
        more: What else the evidence has.
    """
    if isinstance(shape, list):
        starts = [keras.Input(one, dtype="float64") for one in shape]
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float64")
        model = keras.Model(starts, layers(*starts))
        keras.config.set_dtype_policy(policy)
    else:
        model, shape = float64_model(shape, layers), [shape]
    arrays = [x_of(examples, *one, seed=number).astype("float64") for number, one in enumerate(shape)]
    graph, values = keras_graph(model), {}
    for step, _, outputs in walk(graph, arrays, perturb=None):
        numbers = graph.inputs if step is None else step.outputs
        values.update(zip(numbers, (as_tensor(value.exact).clone() for value in outputs), strict=True))
    step = graph.steps[-1]
    layout = find_layout(step.layer) or {}
    due = {w.path: layout[w.name].view(torch.from_numpy(w.numpy().copy())) for w in step.weights if w.name in layout}
    made = None
    if module is not None:
        made = module().double().eval()
        with torch.no_grad():
            for weight in step.weights:
                getattr(made, layout[weight.name].tensor).copy_(due[weight.path])
    taken = [values[number] for number in step.inputs]
    base = Evidence(
        run=SimpleNamespace(graph=graph, training=False),
        at_step=len(graph.steps) - 1,
        step=step,
        modules=[] if made is None else [made],
        inputs=taken,
        twin_inputs=[first(x) if x.ndim > 2 else x for x in taken],
        value=taken[0] if takes else values[step.outputs[0]],
        twin=torch.zeros(1, dtype=torch.float64),
        tolerance=1e-9,
        flattened=None,
        channels_first=False,
        weights=due,
        places={w.path: (made, layout[w.name].tensor) for w in step.weights if made is not None},
        others={},
        fills={} if made is None else {w.path: _fill(step.layer, w, made, layout[w.name]) for w in step.weights},
    )._replace(**more)
    return base if twin is None else base._replace(twin=twin(base))


def _fill(layer, weight, module, place):
    row = Row("row 0", weight.path, place.tensor)
    return Fill(row, Weight(layer, weight), place, module, getattr(module, place.tensor))


def plain(e):
    """Return the right tensor as a twin has it."""
    return first(e.value) if e.value.ndim > 2 else e.value


def planted(shape, layers, module, plant, **more):
    """Return the evidence of a layer whose module was changed, and returns what it then makes."""
    evidence = evidence_of(shape, layers, module=module, **more)
    with torch.no_grad():
        plant(evidence.modules[0])
        return evidence._replace(twin=copy.deepcopy(evidence.modules[0])(evidence.twin_inputs[0]))


def conv(**more):
    return lambda x: L.Conv2D(6, 3, name="conv", **({"padding": "same"} | more))(x)


def conv_module(**more):
    return lambda: nn.Conv2d(4, 6, 3, **({"padding": 1} | more))


def doing_more(twin, behind=None, module=True):
    """Return what makes the evidence of a convolution, whose module may do the layer behind it as well.

    Args:
        twin: Takes the evidence so far and returns what the twin has, channels last.
        behind: The layer; none if not given.
        module: Whether there is a module.
    """

    def make():
        evidence = evidence_of(IMAGE, conv(), module=conv_module())
        pairing, call = SimpleNamespace(twins={evidence.at_step: (0, 0)}), Call("both", evidence.modules[0], (), ())
        run = SimpleNamespace(graph=evidence.run.graph, pairing=pairing, calls=[call])
        evidence = evidence._replace(run=run, modules=evidence.modules if module else [])
        if behind is not None:
            graph = keras_graph(float64_model(tuple(evidence.value.shape[1:]), behind()))
            returned = as_tensor(run_step(graph.steps[-1], [evidence.value.numpy()])[0])
            evidence = evidence._replace(behind=(Behind(graph.steps[-1], evidence.value, returned, 1e-9),))
        return evidence._replace(twin=first(twin(evidence)))

    return make


def normalizing():
    return L.BatchNormalization(name="norm", dtype="float64")


def folded(evidence, **changed):
    """Return what the BatchNormalization behind a layer makes of its output, with other values of its own."""
    layer = evidence.behind[0].step.layer
    values = {w.name: torch.from_numpy(w.numpy()) for w in layer.weights} | {"epsilon": layer.epsilon} | changed
    scale = values["gamma"] / (values["moving_variance"] + values["epsilon"]) ** values.get("power", 0.5)
    return (values.get("x", evidence.value) - values["moving_mean"]) * scale + values["beta"]


def bias_of(evidence):
    return torch.from_numpy(evidence.step.layer.bias.numpy())


def dense(units=3, **more):
    return lambda x: L.Dense(units, name="dense", **more)(x)


def batch_norm(x):
    return L.BatchNormalization(name="norm")(x)


def norm_module():
    return nn.BatchNorm2d(4, 1e-3, 0.01)


def spoiled(conv):
    """Give a module weights that nothing explains."""
    conv.weight.mul_(torch.linspace(0.5, 2, conv.weight.numel(), dtype=torch.float64).reshape(conv.weight.shape))


def filled(module, name, function):
    """Return a change of one tensor of a module."""
    tensor = getattr(module, name)
    tensor.copy_(function(tensor.detach().clone()))


def weights_of(layers, module, plant, shape=IMAGE, **more):
    return lambda: planted(shape, layers, module, plant, **more)


def trained(plant=lambda m: None):
    def change(module):
        module.train()
        plant(module)

    return change


def halved(e):
    """Return what dropout makes of a tensor: each second element 0, the others twice as large."""
    y = plain(e)
    mask = torch.arange(y.numel()).reshape(y.shape) % 2
    return 2 * y * mask


def with_twin(shape, layers, twin, **more):
    return lambda: evidence_of(shape, layers, twin, **more)


def convolution(pads, mode="constant", **more):
    """Return what a convolution with another padding returns."""

    def twin(e):
        weight, bias = (next(v for p, v in e.weights.items() if p.endswith(name)) for name in ("kernel", "bias"))
        return F.conv2d(F.pad(first(e.inputs[0]), pads, mode=mode), weight, bias, **more)

    return twin


def pooled(layer, function, module=None, **more):
    """Return the evidence of a pooling layer of which the twin makes something else of its input."""

    def made():
        e = evidence_of(IMAGE, lambda x: layer(x), lambda e: function(first(e.inputs[0])), **more)
        return e if module is None else e._replace(modules=[module])

    return made


MAX, AVERAGE = L.MaxPooling2D(3, 2, "same"), L.AveragePooling2D(3, 2, "same")
# With 6 x 5 pixels, Keras pads (0, 1) rows and (1, 1) columns.
SAME, OTHER = (1, 1, 0, 1), (1, 1, 1, 0)
INF = float("inf")


def averaged(x, counted=False):
    y = F.avg_pool2d(F.pad(x, SAME), 3, 2)
    return y if counted else y / F.avg_pool2d(F.pad(torch.ones_like(x), SAME), 3, 2)


def activated(layer, function, shape=(7,), **more):
    return with_twin(shape, lambda x: layer(x), lambda e: function(e.inputs[0]), **more)


def normalized(axes, axis):
    """Return what a layer that normalizes along other axes returns: along ``axes``, scaled along ``axis``."""

    def twin(e):
        x = e.inputs[0]
        gamma, beta = e.weights.values()
        mean, var = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
        shape = [-1 if a == axis else 1 for a in range(x.ndim)]
        return (x - mean) / (var + e.step.layer.epsilon).sqrt() * gamma.reshape(shape) + beta.reshape(shape)

    return twin


def layer_norm(twin):
    def made():
        e = evidence_of((4, 4), lambda x: L.LayerNormalization(name="norm")(x), module=lambda: nn.LayerNorm(4))
        return e._replace(twin=twin(e))

    return made


def merged(layer, function, shapes=((5,), (5,)), **others):
    return lambda: evidence_of(list(shapes), lambda *x: layer(list(x)), lambda e: function(*e.inputs), others=others)


OTHER_ROW = torch.from_numpy(x_of(3, 5, seed=7).astype("float64"))
OTHER_IMAGE = torch.from_numpy(x_of(3, *IMAGE, seed=7).astype("float64"))


def strange(e):
    """Return numbers that nothing explains."""
    return plain(e) ** 3 + torch.arange(plain(e).numel(), dtype=torch.float64).reshape(plain(e).shape)


def joined_before(function):
    """Return the evidence of a layer that takes what a Concatenate returns, and of which the twin takes another."""

    def made():
        e = evidence_of(
            [(5,), (5,)], lambda a, b: L.Dense(3, name="dense")(L.Concatenate(name="both")([a, b])), takes=True
        )
        taken = [torch.from_numpy(x_of(3, 5, seed=number).astype("float64")) for number in range(2)]
        before = e.run.graph.steps[0]
        return e._replace(before=before, inputs_before=taken, axes_before=[-1, -1], twin=function(*taken))

    return made


def with_functions(layers, module, plant, shape=IMAGE):
    """Return the evidence of a layer whose weights functions use, without a module for it."""
    return lambda: planted(shape, layers, module, plant)._replace(modules=[])


def takes(twin, shape=IMAGE, layers=None, **more):
    return with_twin(shape, layers or conv(), twin, takes=True, **more)


def overwritten(*calls, due=True, agrees=False):
    """Return the evidence of a layer that takes what the last of some calls returns.

    Args:
        calls: The calls.
        due: Whether they are the twins of layers.
        agrees: Whether what the layer takes agrees after all.
    """
    twins = {-1 - index: (index, index) for index in range(len(calls) * due)}
    calls = [*calls, Call("layer", None, (len(calls),), (len(calls) + 1,))]
    pairing = SimpleNamespace(inputs={(0, 0): Spot(len(calls) - 1, "in", 0)}, twins=twins)
    run = SimpleNamespace(calls=calls, pairing=pairing, inputs={(0, 0): SimpleNamespace(agrees=agrees)})
    return lambda: evidence_of(IMAGE, conv(), strange, takes=True, run=run)


def call(name, number, overwrites, module=None):
    return Call(name, module, (number - 1,), (number,), overwrites=overwrites)


def in_parts(between):
    """Return the evidence of a SeparableConv whose twin is two convolutions, with a function between them."""

    def evidence():
        several = [nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 6, 1)]
        e = evidence_of(IMAGE, lambda x: L.SeparableConv2D(6, 3, padding="same", name="sep")(x))
        depthwise, pointwise = (module.double() for module in several)
        run = SimpleNamespace(calls=[Call("dw", depthwise, (0,), (1,)), Call("pw", pointwise, (1,), (2,))])
        with torch.no_grad():
            twin = pointwise(between(depthwise(e.twin_inputs[0])))
        return e._replace(modules=[depthwise, pointwise], run=run, twin=twin)

    return evidence


def left_out(twin, layers=lambda x: L.AveragePooling2D(3, 1, "same", name="pool")(x), found=False):
    """Return the evidence of a layer that is not found in the twin, or is."""
    run = SimpleNamespace(pairing=SimpleNamespace(twins={0: (0, 0)} if found else {}))
    return lambda: evidence_of(IMAGE, layers, twin, run=run)


GROUPED = lambda x: L.Conv2D(6, 3, groups=2, padding="same", name="conv")(x)  # noqa: E731
DEPTHWISE = lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="conv")(x)  # noqa: E731

# By attempt: the evidence, the cause, and the beginning of what is found.
EXPLAINED = {
    settings.by_mode: [
        (weights_of(batch_norm, norm_module, trained()), "train mode", "it agrees after eval()"),
        (
            lambda: (e := planted(IMAGE, batch_norm, norm_module, trained()))._replace(
                value=e.twin.movedim(1, -1).detach(), modules=[e.modules[0].eval()]
            ),
            "train mode",
            "it agrees after train()",
        ),
        (with_twin(IMAGE, conv(), halved), "train mode", "some elements are 0"),
    ],
    weights.by_weights: [
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.flip(2, 3))),
            "kernel flipped",
            "along its axes (2, 3), in 6 of its 6 channels",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.flip(3))),
            "kernel flipped",
            "along its axes (3,)",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.mT)),
            "height and width exchanged",
            "",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.flip(1))),
            "channels reversed",
            "kernel takes the last",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: m.bias[:2].zero_()),
            "bias missing",
            "bias is 0 in 2 of its 6 channels",
        ),
        (weights_of(conv(), conv_module(), spoiled), "weights hold other numbers", "kernel, in 6 of its 6 channels"),
        (
            weights_of(conv(), conv_module(), lambda m: m.weight[1].mul_(2)),
            "weights hold other numbers",
            "kernel, in 1 of its 6 channels",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.flip(0))),
            "weights in another order",
            "kernel, in 6 of its 6 channels",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "bias", lambda b: b[[0, 1, 2, 3, 5, 4]])),
            "weights in another order",
            "bias, in 2 of its 6 channels",
        ),
        (
            weights_of(conv(use_bias=False), conv_module(), lambda m: m.bias.fill_(1)),
            "weights hold other numbers",
            "bias, which the Keras layer has not, is not 0",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.half().double())),
            "precision",
            "kernel rounded to float16",
        ),
        (
            weights_of(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.bfloat16().double())),
            "precision",
            "kernel rounded to bfloat16",
        ),
        (
            weights_of(
                conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.permute(0, 2, 3, 1).reshape(w.shape))
            ),
            "kernel axes permuted",
            "",
        ),
        (
            weights_of(batch_norm, norm_module, lambda m: [m.running_mean.zero_(), m.running_var.fill_(1)]),
            "statistics left at 0 and 1",
            "moving_mean is 0",
        ),
        (
            weights_of(batch_norm, norm_module, lambda m: m.running_var.fill_(1)),
            "statistics left at 0 and 1",
            "moving_variance is 1",
        ),
        (
            weights_of(
                batch_norm,
                norm_module,
                lambda m: [filled(m, "weight", lambda w: m.bias.clone()), filled(m, "bias", lambda b: m.running_mean)],
            ),
            "BatchNormalization vectors exchanged",
            "gamma holds beta",
        ),
        (
            weights_of(dense(7), lambda: nn.Linear(7, 7), lambda m: filled(m, "weight", lambda w: w.T), (7,)),
            "kernel not transposed",
            "(7, 7) either way",
        ),
        (
            weights_of(
                DEPTHWISE,
                lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
                lambda m: filled(m, "weight", lambda w: w.unflatten(0, (4, 2)).transpose(0, 1).flatten(0, 1)),
            ),
            "depthwise order",
            "",
        ),
        (
            weights_of(
                GROUPED,
                conv_module(groups=2),
                lambda m: filled(m, "weight", lambda w: w.unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1)),
            ),
            "groups",
            "the outputs of the groups are interleaved",
        ),
        (
            lambda: planted(
                (24,),
                dense(),
                lambda: nn.Linear(24, 3),
                lambda m: filled(m, "weight", lambda w: w.reshape(3, 3, 2, 4).permute(0, 3, 1, 2).flatten(1)),
                flattened=(3, 2, 4),
            ),
            "flatten order",
            "kernel has its features in the order (2, 0, 1), the twin in (0, 1, 2)",
        ),
        (
            lambda: (e := evidence_of(IMAGE, conv(), module=conv_module()))._replace(
                weights=e.weights | {"other/kernel": (other := e.weights["conv/kernel"] + 1)},
                modules=[m := _with(e.modules[0], "weight", other)],
                places={path: (m, name) for path, (_, name) in e.places.items()},
            ),
            "weights of another layer",
            "kernel is other/kernel",
        ),
    ],
    settings.by_settings: [
        (  # with another stride, other padding is due
            weights_of(conv(strides=2), conv_module(stride=2), lambda m: setattr(m, "stride", (1, 1))),
            "stride or dilation",
            "stride is (1, 1), not (2, 2)",
        ),
        (weights_of(batch_norm, norm_module, lambda m: setattr(m, "eps", 1.0)), "epsilon", "eps is 1.0, not 0.001"),
        (
            weights_of(
                conv(strides=2, padding="valid"),
                conv_module(padding=0, stride=2),
                lambda m: setattr(m, "stride", (1, 1)),
            ),
            "stride or dilation",
            "stride is (1, 1), not (2, 2)",
        ),
        (
            weights_of(conv(padding="valid"), conv_module(padding=0), lambda m: setattr(m, "dilation", (2, 2))),
            "stride or dilation",
            "dilation is (2, 2), not (1, 1)",
        ),
        (
            weights_of(
                lambda x: L.GroupNormalization(2, name="norm")(x),
                lambda: nn.GroupNorm(2, 4, 1e-3),
                lambda m: setattr(m, "num_groups", 4),
            ),
            "groups",
            "num_groups is 4, not 2",
        ),
    ],
    geometry.by_padding: [
        (
            with_twin(IMAGE, conv(strides=2), convolution((1, 1, 1, 0), stride=2), module=conv_module(stride=2)),
            "padding",
            "padding is [(1, 1), (1, 1)], not [(0, 1), (1, 1)]",
        ),
        (
            with_twin(IMAGE, conv(padding="valid"), convolution((1, 1, 1, 1)), module=conv_module()),
            "padding",
            "padding is [(1, 1), (1, 1)], not [(0, 0), (0, 0)]",
        ),
        (
            with_twin(IMAGE, conv(), convolution((1, 1, 1, 1), "reflect"), module=conv_module()),
            "padding value",
            "it is reflect, not 0",
        ),
        (
            with_twin(IMAGE, conv(), convolution((1, 1, 1, 1), "circular"), module=conv_module()),
            "padding value",
            "it is circular, not 0",
        ),
        (
            lambda: planted(
                IMAGE,
                lambda x: L.Conv2DTranspose(6, 3, strides=2, padding="same", name="up")(x),
                lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
                lambda m: None,
            ),
            "padding",
            "(1, 1) elements are cropped before the result, not (0, 0)",
        ),
    ],
    pooling.by_pooling: [
        (
            pooled(MAX, lambda x: F.max_pool2d(x, 2, 2), nn.MaxPool2d(2, 2)),
            "stride or dilation",
            "kernel_size is (2, 2), not (3, 3)",
        ),
        (
            pooled(MAX, lambda x: F.max_pool2d(F.pad(x, SAME, value=-INF), 3, 1), nn.MaxPool2d(3, 1)),
            "stride or dilation",
            "stride is (1, 1), not (2, 2)",
        ),
        (pooled(MAX, averaged), "another pooling", "average, not max"),
        (
            pooled(AVERAGE, lambda x: F.max_pool2d(F.pad(x, SAME, value=-INF), 3, 2)),
            "another pooling",
            "max, not average",
        ),
        (pooled(MAX, lambda x: F.max_pool2d(F.pad(x - 5, SAME, value=0), 3, 2)), None, None),
        (
            pooled(MAX, lambda x: F.max_pool2d(F.pad(x, SAME), 3, 2)),
            "padding value",
            "it is 0, not minus infinity",
        ),
        (
            pooled(AVERAGE, lambda x: averaged(x, counted=True)),
            "padding counted",
            "the average counts elements of padding",
        ),
        (
            pooled(MAX, lambda x: F.max_pool2d(F.pad(x, OTHER, value=-INF), 3, 2)),
            "padding",
            "padding is [(1, 1), (1, 1)], not [(0, 1), (1, 1)]; max",
        ),
        (
            pooled(
                L.MaxPooling2D(3, 2),
                lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
                nn.MaxPool2d(3, 2, ceil_mode=True),
            ),
            "padding",
            "",
        ),
        # Fewer windows than Keras has, so there is no ceil_mode.
        (
            pooled(AVERAGE, lambda x: averaged(x)[..., :-1, :-1], nn.AvgPool2d(3, 2)),
            "padding",
            "the right windows, but the last ones are missing",
        ),
        (
            pooled(L.MaxPooling2D(3, 2), lambda x: F.max_pool2d(x, 2, 3)),
            "stride or dilation",
            "windows of 2 in steps of 3, not of (3, 3) in steps of (2, 2)",
        ),
    ],
    pooling.by_global_pooling: [
        (
            pooled(L.GlobalAveragePooling2D(), lambda x: x.amax((2, 3))),
            "another pooling",
            "maximum of all pixels, not average",
        ),
        (
            pooled(L.GlobalAveragePooling2D(), lambda x: x.sum((2, 3))),
            "another pooling",
            "sum of all pixels, not average",
        ),
        (
            pooled(L.GlobalMaxPooling2D(keepdims=True), lambda x: x.mean((2, 3), keepdim=True)),
            "another pooling",
            "average of all pixels, not maximum",
        ),
        (
            pooled(L.GlobalMaxPooling2D(), lambda x: x[:, :, -1, -1]),
            "another pooling",
            "the last of all pixels, not maximum",
        ),
    ],
    weights.by_weights_of_functions: [
        (
            with_functions(conv(), conv_module(), lambda m: filled(m, "weight", lambda w: w.flip(2))),
            "kernel flipped",
            "along its axes (2,)",
        ),
        (
            with_functions(
                dense(), lambda: nn.Linear(7, 3), lambda m: filled(m, "weight", lambda w: w.roll(1, 0)), (7,)
            ),
            "weights in another order",
            "kernel, in 3 of its 3 units",
        ),
        (
            with_functions(dense(), lambda: nn.Linear(7, 3), lambda m: m.bias.zero_(), (7,)),
            "bias missing",
            "bias is 0 in 3 of its 3 units",
        ),
    ],
    weights.by_bias: [
        (
            with_twin(IMAGE, conv(), lambda e: first(e.value - e.weights["conv/bias"]), module=conv_module()),
            "bias missing",
            "it is not added",
        ),
        (
            with_twin(IMAGE, conv(), lambda e: first(e.value + e.weights["conv/bias"]), module=conv_module()),
            "bias added twice",
            "",
        ),
    ],
    inside.by_folding: [
        (
            doing_more(lambda e: folded(e, epsilon=1e-5), normalizing),
            "epsilon",
            "norm is in the weights of both, with",
        ),
        (
            doing_more(lambda e: folded(e, beta=0.0), normalizing),
            "bias missing",
            "norm is in the weights of both, without its beta",
        ),
        (
            doing_more(lambda e: folded(e, x=e.value - bias_of(e)), normalizing),
            "bias missing",
            "norm is in the weights of both, without the bias of conv",
        ),
        (
            doing_more(lambda e: folded(e, x=e.value - bias_of(e)) + bias_of(e), normalizing),
            "weights hold other numbers",
            "norm is in the weights of both, and the bias of conv is not scaled",
        ),
        *(
            (doing_more(lambda e, c=changed: folded(e, **c), normalizing), "weights hold other numbers", detail)
            for changed, detail in (
                ({"moving_mean": 0.0}, "norm is in the weights of both, without its mean"),
                ({"gamma": 1.0}, "norm is in the weights of both, without its gamma"),
                ({"power": 1.0}, "norm is in the weights of both, divided by the variance"),
            )
        ),
    ],
    inside.by_function_inside: [
        (doing_more(lambda e: e.value.relu()), "another activation", "both also applies relu"),
        (doing_more(lambda e: e.value.tanh(), L.ReLU), "another activation", "tanh, not relu; in both"),
        (
            doing_more(lambda e: F.leaky_relu(e.value, 0.07), lambda: L.LeakyReLU(0.3)),
            "another slope",
            "slope is 0.07, not 0.3; in both",
        ),
    ],
    activations.by_function: [
        (activated(L.ReLU(), lambda x: x), "activation missing", "relu"),
        (with_twin((7,), dense(activation="tanh"), lambda e: e.inputs[0]), "activation missing", "tanh"),
        (
            with_twin((7,), dense(activation="tanh"), lambda e: e.inputs[0].sigmoid()),
            "another activation",
            "sigmoid, not tanh",
        ),
        (activated(L.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.07)), "another slope", "slope is 0.07, not 0.3"),
        (activated(L.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.01)), "another slope", "slope is 0.01, not 0.3"),
        (activated(L.ELU(0.5), lambda x: F.elu(x, 0.25)), "another slope", "alpha is 0.25, not 0.5"),
        (activated(L.ReLU(), lambda x: F.leaky_relu(x, 0.07)), "another slope", "slope is 0.07, not 0"),
        (
            with_twin((7,), dense(activation="leaky_relu"), lambda e: F.leaky_relu(e.inputs[0], 0.3)),
            "another slope",
            "slope is 0.3, not 0.2",
        ),
        (
            activated(L.PReLU(alpha_initializer="uniform"), lambda x: F.leaky_relu(x, 0.07)),
            "another slope",
            "slope is 0.07, not the layer's alpha",
        ),
        (activated(L.Activation("elu"), lambda x: F.elu(x, 0.25)), "another slope", "alpha is 0.25, not 1"),
        (
            activated(L.Activation("tanh"), lambda x: F.leaky_relu(x, 0.07)),
            "another activation",
            "leaky_relu with slope 0.07, not tanh",
        ),
        (activated(L.ReLU(max_value=0.5), torch.relu), "another activation", "relu, not relu with max_value 0.5"),
        (activated(L.Softmax(), lambda x: first(x).softmax(2), (4, 5)), "axis", "softmax along axis 1, not 2"),
        (
            activated(L.Activation("softmax"), lambda x: first(x).softmax(2), (4, 5)),
            "axis",
            "softmax along axis 1, not 2",
        ),
        (activated(L.Softmax(), lambda x: x.softmax(0)), "axis", "softmax along axis 0, not 1"),
        (
            activated(L.Activation("gelu"), lambda x: F.gelu(x, approximate="tanh")),
            "another activation",
            "gelu by tanh, not gelu",
        ),
    ],
    activations.by_axis: [
        (layer_norm(normalized((1,), 2)), "axis", "it normalizes along (1,), not (2,)"),
        (layer_norm(normalized((1, 2), 2)), "axis", "it normalizes along (1, 2), not (2,)"),
        (layer_norm(normalized((2,), 1)), "axis", "gamma and beta are along (1,), not (2,)"),
    ],
    activations.by_scaled_activation: [
        (
            activated(L.ReLU(dtype="float64"), lambda x: (x / 7).relu()),
            "input scaled",
            "it takes 0.1429 times its input",
        ),
        (
            with_twin(
                (7,),
                lambda x: L.Activation("tanh")(L.Add()([x, x, x])),
                lambda e: torch.tanh(e.inputs[0] / 3),
            ),
            "input scaled",
            "it takes 0.3333 times its input",
        ),
    ],
    merging.by_merging: [
        (merged(L.Subtract(dtype="float64"), lambda a, b: b - a), "another skip", "its inputs are in the order (2, 1)"),
        (
            merged(L.Concatenate(dtype="float64"), lambda a, b: torch.cat([b, a], 1)),
            "another skip",
            "its inputs are in the order (2, 1)",
        ),
        (merged(L.Add(dtype="float64"), lambda a, b: b), "another skip", "only its input 2 is used"),
        (
            merged(L.Concatenate(dtype="float64"), lambda a, b: torch.cat([a, OTHER_ROW], 1), far=OTHER_ROW),
            "another skip",
            "its input 2 is the output of far",
        ),
        (
            merged(L.Add(dtype="float64"), lambda a, b: a + OTHER_ROW, far=OTHER_ROW),
            "another skip",
            "its input 2 is the output of far",
        ),
        (
            merged(L.Add(dtype="float64"), lambda a, b: OTHER_ROW + b, far=OTHER_ROW),
            "another skip",
            "its input 1 is the output of far",
        ),
        (
            merged(L.Concatenate(1, dtype="float64"), lambda a, b: first(torch.cat([a, b], 2)), ((4, 3), (4, 3))),
            "axis",
            "joined along axis 2, not 1",
        ),
        (
            merged(
                L.Concatenate(2, dtype="float64"),
                lambda a, b: first(torch.cat([a, b], 1).reshape(3, 2, 4)),
                ((2, 2), (2, 2)),
            ),
            None,
            None,
        ),
    ],
    merging.by_merging_before: [
        (
            joined_before(lambda a, b: torch.cat([b, a], 1)),
            "another skip",
            "of both: its inputs are in the order (2, 1)",
        )
    ],
    order.by_order: [
        (
            with_twin((3, 2, 4), lambda x: L.Flatten()(x), lambda e: first(e.inputs[0]).flatten(1)),
            "flatten order",
            "axes (2, 0, 1) in place of (0, 1, 2)",
        ),
        (
            with_twin(
                (3, 2, 4),
                lambda x: L.Reshape((6, 4))(x),
                lambda e: first(e.inputs[0].permute(0, 2, 1, 3).reshape(3, 6, 4)),
            ),
            "flatten order",
            "axes (1, 0, 2)",
        ),
    ],
    geometry.by_crop: [
        (
            with_twin((6, 4), lambda x: L.Cropping1D((2, 1))(x), lambda e: first(e.inputs[0][:, 1:-2])),
            "padding",
            "it crops [(1, 2)], not [(2, 1)]",
        ),
        (
            pooled(L.Cropping2D(((1, 0), (2, 1))), lambda x: x[:, :, :-1, 1:-2]),
            "padding",
            "it crops [(0, 1), (1, 2)], not [(1, 0), (2, 1)]",
        ),
        (
            with_twin((20, 4), lambda x: L.Cropping1D((9, 0))(x), lambda e: first(e.inputs[0][:, :-9])),
            "padding",
            "it crops [(0, 9)], not [(9, 0)]",
        ),
    ],
    geometry.by_border: [
        (
            pooled(L.ZeroPadding2D(1), lambda x: F.pad(x, (1, 1, 1, 1), value=-1.5)),
            "padding value",
            "it is -1.5, not 0",
        ),
        (
            pooled(L.ZeroPadding2D(1), lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
            "padding value",
            "it is reflect, not 0",
        ),
        (
            pooled(L.ZeroPadding2D(((0, 2), (1, 1))), lambda x: F.pad(x, (1, 1, 1, 1))),
            "padding",
            "padding is [(1, 1), (1, 1)], not [(0, 2), (1, 1)]",
        ),
        (
            pooled(L.ZeroPadding2D(1), lambda x: F.pad(x, (2, 1, 0, 0))),
            "padding",
            "padding is [(0, 0), (2, 1)], not [(1, 1), (1, 1)]",
        ),
    ],
    order.by_channels: [
        (
            lambda: (e := evidence_of(IMAGE, conv(), strange, module=conv_module()))._replace(
                twin_inputs=[e.twin_inputs[0].flip(1)]
            ),
            "channels reversed",
            "the last channel first",
        ),
        (
            lambda: (e := evidence_of(IMAGE, GROUPED, strange, module=conv_module(groups=2)))._replace(
                twin_inputs=[e.twin_inputs[0].unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)]
            ),
            "groups",
            "it takes its channels in another order",
        ),
    ],
    inputs.by_other_input: [
        (
            lambda: evidence_of(
                IMAGE,
                lambda x: L.ReLU()(x),
                lambda e: first(OTHER_IMAGE.relu()),
                twin_inputs=[],
                others={"far": OTHER_IMAGE},
            ),
            "another skip",
            "it takes the output of far",
        ),
    ],
    inputs.by_numbers: [
        (with_twin(IMAGE, lambda x: L.Rescaling(0.5)(x), lambda e: first(4 * e.value)), "input scaled", "4 times it"),
        (
            with_twin(IMAGE, lambda x: L.Rescaling(0.5)(x), lambda e: first(4 * e.value - 3)),
            "input scaled",
            "4 times it plus -3",
        ),
        (
            with_twin(IMAGE, lambda x: L.Rescaling(0.5)(x), lambda e: first(e.value * torch.tensor([1.0, 2, 3, 4]))),
            "input scaled",
            "each channel by a factor",
        ),
        (
            with_twin(IMAGE, lambda x: L.Rescaling(0.5)(x), lambda e: first(e.value.flip(-1))),
            "channels reversed",
            "the last channel first",
        ),
    ],
    parts.by_activation_between: [
        (in_parts(torch.relu), "another activation", "relu between dw and pw, which the Keras model does not have"),
        (in_parts(torch.tanh), "another activation", "tanh between dw and pw"),
    ],
    parts.by_leaving_out: [
        (left_out(lambda e: first(e.inputs[0])), "another skip", "pool is left out; what follows takes what it takes"),
    ],
    inputs.by_dropping: [(takes(halved), "train mode", "some elements are 0, the others larger")],
    inputs.by_overwriting: [
        (overwritten(call("relu_", 1, True)), "overwritten in place", "by relu_"),
        (overwritten(call("relu_", 1, True), call("drop", 2, True, nn.Dropout())), "overwritten in place", "by relu_"),
        (
            overwritten(Call("read before", None, (1,), (9,)), call("relu_", 2, True), due=False),
            "overwritten in place",
            "by relu_",
        ),
    ],
    inputs.by_another_tensor: [
        (
            takes(lambda e: first(OTHER_IMAGE), others={"far": OTHER_IMAGE}),
            "another skip",
            "it takes the output of far",
        ),
        (
            takes(lambda e: first(OTHER_IMAGE), others={"far": OTHER_IMAGE, "near": OTHER_IMAGE}),
            "another skip",
            "it takes the output of far or near",
        ),
    ],
    inputs.by_activation_before: [
        (takes(lambda e: first(e.value.relu())), "another activation", "relu, which the Keras model does not have"),
        (takes(lambda e: first(e.value.tanh())), "another activation", "tanh, which the Keras model does not have"),
    ],
    order.by_exchanged_axes: [
        (takes(lambda e: e.value.permute(0, 3, 2, 1), (5, 5, 4)), "input axes exchanged", "in the order (2, 1)"),
        (
            takes(lambda e: e.value.permute(0, 3, 2, 1), (5, 5, 4), lambda x: L.Flatten()(x)),
            "flatten order",
            "its axes are in the order (2, 1)",
        ),
    ],
    order.by_reshaped_axes: [
        (
            takes(lambda e: e.value.reshape(3, 4, 6, 5)),
            "input axes exchanged",
            "reshaped, where its axes should be permuted",
        )
    ],
    order.by_order_of_channels: [
        (takes(lambda e: first(e.value.flip(-1))), "channels reversed", "the last channel first"),
        (takes(lambda e: first(e.value[..., [1, 0, 2, 3]])), "channels reversed", "in the order (1, 0, 2, 3)"),
        (takes(lambda e: first(e.value[..., [0, 2, 1, 3]])), "groups", "its channels are taken in turn from 2 groups"),
    ],
    order.by_order_of_features: [
        (
            takes(lambda e: first(e.value.unflatten(1, (3, 2, 4))).flatten(1), (24,), dense(), flattened=(3, 2, 4)),
            "flatten order",
            "axes (2, 0, 1) in place of (0, 1, 2)",
        ),
    ],
    inputs.by_precision: [
        (takes(lambda e: first(e.value).float()), "precision", "the twin computes in float32"),
        (takes(lambda e: first(e.value).half()), "precision", "the twin computes in float16"),
    ],
    inputs.by_scaled_input: [
        (takes(lambda e: first(e.value / 255)), "input scaled", "0.003922 times it"),
        (takes(lambda e: first(e.value * 2 - 1)), "input scaled", "2 times it plus -1"),
        (takes(lambda e: first(e.value * torch.tensor([1.0, 2, 3, 4]))), "input scaled", "each channel by a factor"),
    ],
}


def _with(module, name, value):
    module = copy.deepcopy(module)
    with torch.no_grad():
        getattr(module, name).copy_(value)
    return module


def two_faults(module):
    spoiled(module)
    module.dilation = (2, 2)
    module.padding = (2, 2)


# By attempt: evidence that it must stay silent about, with what is the matter.
SILENT = {
    settings.by_mode: {
        "in evaluation mode": weights_of(batch_norm, norm_module, lambda m: m.weight.mul_(2)),
        "another fault, too": weights_of(batch_norm, norm_module, trained(lambda m: m.weight.mul_(2))),
        "a module that does the same in both": lambda: planted(IMAGE, conv(), conv_module(), trained()),
        "half of them 0 and not scaled": with_twin(IMAGE, conv(), lambda e: halved(e) / 2),
        "no activation": with_twin(IMAGE, conv(), strange),
    },
    weights.by_weights: {
        "right weights": weights_of(conv(), conv_module(), lambda m: setattr(m, "padding", (0, 0))),
        "another fault, too": weights_of(conv(), conv_module(), two_faults),
        "no module": with_twin(IMAGE, conv(), strange),
        "neutral": weights_of(conv(use_bias=False), conv_module(), lambda m: m.bias.zero_()),
    },
    settings.by_settings: {
        "right settings": weights_of(conv(), conv_module(), spoiled),
        "another fault, too": weights_of(batch_norm, norm_module, lambda m: [setattr(m, "eps", 1.0), m.weight.mul_(2)]),
        "momentum": weights_of(batch_norm, norm_module, lambda m: [setattr(m, "momentum", 0.5), m.weight.mul_(2)]),
        "not the layer's own step": lambda: (
            planted(IMAGE, batch_norm, norm_module, lambda m: setattr(m, "eps", 1.0))
        )._replace(step=None),
    },
    geometry.by_padding: {
        "right": with_twin(IMAGE, conv(), convolution((1, 1, 1, 1)), module=conv_module()),
        "strange": with_twin(IMAGE, conv(), strange, module=conv_module()),
        "no convolution": with_twin((7,), dense(), strange, module=lambda: nn.Linear(7, 3)),
        "the activation": with_twin(IMAGE, conv(activation="relu"), lambda e: first(e.inputs[0])),
    },
    pooling.by_pooling: {
        "strange": pooled(MAX, lambda x: F.max_pool2d(F.pad(x, SAME), 3, 2) ** 3 + 7, nn.MaxPool2d(3, 2)),
        "no pooling": with_twin(IMAGE, conv(), strange),
    },
    pooling.by_global_pooling: {
        "strange": pooled(L.GlobalAveragePooling2D(), lambda x: x.median(3)[0].median(2)[0]),
        "no pooling": with_twin(IMAGE, conv(), lambda e: e.inputs[0].mean((1, 2))),
    },
    weights.by_weights_of_functions: {
        "right weights": with_functions(conv(), conv_module(), lambda m: None),
        "strange": lambda: with_functions(conv(), conv_module(), spoiled)()._replace(
            twin=torch.ones(3, 6, 6, 5, dtype=torch.float64)
        ),
        "a module": weights_of(conv(), conv_module(), spoiled),
        "no weights": with_twin(IMAGE, conv(), strange),
    },
    weights.by_bias: {
        "twice off": with_twin(
            IMAGE, conv(), lambda e: first(e.value - 2 * e.weights["conv/bias"]), module=conv_module()
        ),
        "no bias": with_twin(IMAGE, conv(use_bias=False), strange, module=conv_module(bias=False)),
        "a bias of 0": lambda: (e := evidence_of(IMAGE, conv(), plain, module=conv_module()))._replace(
            weights={path: 0 * value for path, value in e.weights.items()}
        ),
    },
    inside.by_folding: {
        "nothing behind": doing_more(lambda e: e.value + 1),
        "an activation behind": doing_more(lambda e: e.value + 1, L.ReLU),
        "no module": doing_more(lambda e: folded(e, beta=0.0), normalizing, module=False),
        "strange": doing_more(lambda e: folded(e, moving_mean=7.0), normalizing),
    },
    inside.by_function_inside: {
        "strange": doing_more(lambda e: e.value**3 + 7),
        "strange, before an activation": doing_more(lambda e: e.value**3 + 7, L.ReLU),
        "no module": doing_more(lambda e: e.value.relu(), module=False),
    },
    activations.by_function: {
        "strange": activated(L.ReLU(), lambda x: x**3 + 7),
        "no activation": with_twin((7,), dense(7), lambda e: e.inputs[0]),
        "two slopes": activated(L.LeakyReLU(0.3), lambda x: torch.where(x < -0.5, 0.7 * x, 0.1 * x).where(x < 0, x)),
        "a layer with an activation before it": with_twin(
            (7,), dense(7, activation="tanh"), lambda e: e.inputs[0] ** 3 + 7
        ),
    },
    activations.by_axis: {
        "strange": layer_norm(strange),
        "no normalization": with_twin((4, 4), dense(4), lambda e: e.inputs[0] - e.inputs[0].mean(1, keepdim=True)),
    },
    activations.by_scaled_activation: {
        "right": activated(L.ReLU(), torch.relu),
        "strange": activated(L.ReLU(), lambda x: x**3 + 7),
        "the other sign": activated(L.ReLU(), lambda x: (-x).relu()),
        "no activation": with_twin((7,), dense(7), lambda e: e.value / 2),
    },
    merging.by_merging: {
        "right": merged(L.Subtract(dtype="float64"), lambda a, b: a - b, far=OTHER_ROW),
        "strange": merged(L.Add(dtype="float64"), lambda a, b: a * b + 7, far=OTHER_ROW),
        "one input": with_twin(IMAGE, conv(), lambda e: first(e.inputs[0])),
        "of another shape": merged(L.Add(dtype="float64"), lambda a, b: a * b, far=OTHER_ROW[:, :1]),
    },
    merging.by_merging_before: {
        "strange": joined_before(lambda a, b: torch.cat([a * b + 7, b], 1)),
        "no layer before": takes(strange),
    },
    order.by_order: {
        "an activation of axes in another order": with_twin(
            (4, 4, 4), lambda x: L.ReLU()(x), lambda e: first(e.inputs[0].permute(0, 2, 1, 3))
        ),
        "strange": with_twin((3, 2, 4), lambda x: L.Flatten()(x), lambda e: e.value**3 + 7),
        "no reordering": with_twin((3, 2, 4), lambda x: L.ReLU()(x), lambda e: first(e.inputs[0]).flip(2)),
        "right": with_twin((3, 2, 4), lambda x: L.Flatten()(x), plain),
    },
    geometry.by_crop: {
        "strange": pooled(L.Cropping2D(1), lambda x: x[:, :, 2:, 2:] ** 3 + 7),
        "right": pooled(L.Cropping2D(1), lambda x: x[:, :, 1:-1, 1:-1]),
        "no crop": with_twin(IMAGE, lambda x: L.ReLU()(x), lambda e: first(e.inputs[0][:, 1:, 1:])),
    },
    geometry.by_border: {
        "strange": pooled(L.ZeroPadding2D(1), lambda x: F.pad(x**3 + 7, (1, 1, 1, 1))),
        "smaller": pooled(L.ZeroPadding2D(1), lambda x: x[:, :, 1:]),
        "no border": with_twin(IMAGE, conv(), lambda e: F.pad(first(e.inputs[0]), (1, 1, 1, 1))),
    },
    order.by_channels: {
        "right": with_twin(IMAGE, conv(), plain, module=lambda: nn.Conv2d(4, 6, 3, padding=2)),
        "strange": lambda: (e := evidence_of(IMAGE, conv(), strange, module=conv_module()))._replace(
            twin_inputs=[e.twin_inputs[0] + 1]
        ),
        "no channels": with_twin((7,), dense(7), strange, module=lambda: nn.Linear(7, 7)),
        "no module": with_twin(IMAGE, conv(), strange),
    },
    inputs.by_other_input: {
        "its input is seen": lambda: evidence_of(
            IMAGE, lambda x: L.ReLU()(x), lambda e: first(OTHER_IMAGE.relu()), others={"far": OTHER_IMAGE}
        ),
        "none of them": lambda: evidence_of(
            IMAGE, lambda x: L.ReLU()(x), strange, twin_inputs=[], others={"far": OTHER_IMAGE}
        ),
        "of another shape": lambda: evidence_of(
            IMAGE,
            lambda x: L.ReLU()(x),
            lambda e: first(OTHER_IMAGE[:, 1:].relu()),
            twin_inputs=[],
            others={"far": OTHER_IMAGE[:, 1:]},
        ),
    },
    inputs.by_numbers: {
        "strange": with_twin(IMAGE, lambda x: L.Rescaling(0.5)(x), strange),
        "no scaling layer": with_twin(IMAGE, lambda x: L.ReLU()(x), lambda e: first(4 * e.value)),
    },
    parts.by_activation_between: {
        "nothing between": in_parts(lambda x: x + 1),
        "one module": with_twin(IMAGE, conv(), lambda e: plain(e).relu(), module=conv_module()),
    },
    parts.by_leaving_out: {
        "strange": left_out(strange),
        "it is found": left_out(lambda e: first(e.inputs[0]), found=True),
        "of another shape": left_out(lambda e: first(e.inputs[0]), lambda x: L.AveragePooling2D(2, name="pool")(x)),
    },
    inputs.by_dropping: {
        "all of them scaled": takes(lambda e: 2 * plain(e)),
        "half of them 0 and not scaled": takes(lambda e: halved(e) / 2),
        "strange": takes(strange),
    },
    inputs.by_overwriting: {
        "a copy": overwritten(call("relu", 1, False)),
        "what no layer does": overwritten(call("relu_", 1, True), due=False),
        "another input": overwritten(call("relu_", 1, True), agrees=True),
        "dropout": overwritten(call("drop", 1, True, nn.Dropout())),
        "identity": overwritten(call("same", 1, True, nn.Identity())),
        "overwritten before a copy was made": overwritten(call("relu_", 1, True), call("mul", 2, False)),
    },
    inputs.by_another_tensor: {
        "none of them": takes(strange, others={"far": OTHER_IMAGE}),
        "none": takes(lambda e: first(OTHER_IMAGE)),
    },
    inputs.by_activation_before: {"strange": takes(strange)},
    order.by_exchanged_axes: {
        "right": takes(plain, (5, 5, 4)),
        "strange": takes(strange, (5, 5, 4)),
        "channels, too": takes(lambda e: e.value.permute(0, 3, 1, 2).flip(1), (5, 5, 4)),
    },
    order.by_reshaped_axes: {
        "strange": takes(strange),
        "of the same shape": takes(lambda e: first(e.value).flip(2)),
        "features": takes(lambda e: e.value, (24,), dense()),
    },
    order.by_order_of_channels: {"right": takes(strange), "rows": takes(lambda e: e.value.flip(-1), (7,), dense())},
    order.by_order_of_features: {
        "not flattened": takes(lambda e: first(e.value.unflatten(1, (3, 2, 4))).flatten(1), (24,), dense()),
        "strange": takes(strange, (24,), dense(), flattened=(3, 2, 4)),
        "right": takes(plain, (24,), dense(), flattened=(3, 2, 4)),
    },
    inputs.by_precision: {
        "the same dtype": takes(lambda e: first(e.value.float().double() + 1)),
        "strange": takes(lambda e: strange(e).float()),
    },
    inputs.by_scaled_input: {
        "strange": takes(strange),
        "the same": takes(plain),
        "not the model's input": takes(
            lambda e: first(e.value * torch.tensor([1.0, 2, 3, 4])), layers=lambda x: conv()(L.ReLU()(x))
        ),
    },
}
ATTEMPTS = (*WRONG_OUTPUT, *WRONG_INPUT)


def cases(attempts):
    return [
        pytest.param(attempt, case, id=f"{attempt.__name__}-{name}")
        for attempt, several in attempts.items()
        for name, case in (several.items() if isinstance(several, dict) else enumerate(several))
    ]


ON_WHOLE_PORTS = {attempt for attempt in ATTEMPTS if inspect.getmodule(attempt) in (attention, norms, recurrence)}
ON_WHOLE_PORTS |= {inside.by_unseen_activation, inside.by_activation_left_out}
"""Attempts that need more than one layer: ``test_sequences.py``, ``test_covers.py`` and the mutants try them."""


def test_every_attempt_is_here():
    from tests.diagnosis import test_functions

    tried = {*ATTEMPTS, *ELSEWHERE} - ON_WHOLE_PORTS
    assert {*EXPLAINED, *test_functions.EXPLAINED} == {*SILENT, *test_functions.SILENT} == tried
    assert not EXPLAINED.keys() & test_functions.EXPLAINED.keys()
    assert len(ATTEMPTS) == len(set(ATTEMPTS))


@pytest.mark.parametrize(("attempt", "case"), cases(EXPLAINED))
def test_what_an_attempt_explains(attempt, case):
    made, cause, detail = case
    found = [(one.cause, one.detail) for one in attempt(made())]
    if cause is None:
        assert found == []
    else:
        assert [one for one, _ in found] == [cause]
        assert found[0][1].startswith(detail)


@pytest.mark.parametrize(("attempt", "case"), cases(SILENT))
def test_what_an_attempt_is_silent_about(attempt, case):
    assert list(attempt(case())) == []


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
def test_of_the_models_return_only_what_it_takes_can_be_explained(attempt):
    evidence = evidence_of(IMAGE, conv(), strange, takes=True)
    run = SimpleNamespace(graph=evidence.run.graph, calls=[], pairing=SimpleNamespace(inputs={}))
    nothing = evidence._replace(run=run, step=None, inputs=[], twin_inputs=[], modules=[], weights={}, places={})
    assert list(attempt(nothing)) == []


def test_two_faults_of_a_layer_are_both_named():
    def plant(module):
        filled(module, "weight", lambda w: w.flip(2))
        module.bias.zero_()

    found = list(weights.by_weights(planted(IMAGE, conv(), conv_module(), plant)))
    assert [one.cause for one in found] == ["kernel flipped", "bias missing"]


UNCHANGED = [
    pytest.param(attempt, id=attempt.__name__)
    for attempt in ATTEMPTS
    if attempt is not inputs.by_overwriting and attempt not in ON_WHOLE_PORTS
]


@pytest.mark.parametrize("attempt", UNCHANGED)
def test_an_attempt_changes_nothing(attempt):
    evidence = planted(IMAGE, batch_norm, norm_module, trained(lambda m: setattr(m, "eps", 1.0)))
    module = evidence.modules[0]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    list(attempt(evidence))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert (module.training, module.eps) == (True, 1.0)


def test_a_diagnosis_leaves_the_statistics_of_a_twin_in_training_mode():
    model = model_of(IMAGE, lambda x: L.BatchNormalization(name="norm")(L.Conv2D(4, 1, name="conv")(x)))
    twin = Twin(lambda t, x: t.norm(t.conv(x)), conv=nn.Conv2d(4, 4, 1), norm=norm_module())
    twin, mapping = ported(model, twin, "conv", "norm")
    strange = {"forward": lambda self, x: nn.BatchNorm2d.forward(self, x) ** 3 + 7}
    twin.norm.__class__ = type("BatchNorm2d", (nn.BatchNorm2d,), strange)
    twin.train()
    before = snapshot(twin)
    found = diagnose(model, twin, x_of(3, *IMAGE), mapping, training=True)
    assert (found.divergence.layer, found.causes) == ("norm", [])
    assert snapshot(twin) == before


def test_the_first_attempt_that_finds_anything_counts():
    evidence = planted(IMAGE, batch_norm, norm_module, lambda m: setattr(m, "eps", 1.0))
    assert [one.cause for one in explained_by(WRONG_OUTPUT, evidence)[0]] == ["epsilon"]
    silent = [attempt for attempt in WRONG_OUTPUT if attempt is not settings.by_settings]
    assert explained_by(silent, evidence) == ([], ())
    asked = []

    def other(evidence):
        asked.append(evidence)
        yield from ()

    assert len(explained_by([other, settings.by_settings, other], evidence)[0]) == 1
    assert len(asked) == 1


def test_an_offset_is_said_only_if_there_is_one():
    found = list(inputs.by_scaled_input(takes(lambda e: first(e.value * 2))()))
    assert [one.detail for one in found] == ["2 times it"]


def test_the_padding_that_is_due():
    def pads(shape, layer):
        return geometry.right_pads(geometry.geometry_of(layer), shape[:-1])

    assert pads((9, 2), L.Conv1D(2, 3, padding="causal", dilation_rate=2)) == [(4, 0)]
    assert pads((6, 5, 2), L.Conv2D(2, 3, strides=2, padding="same")) == [(0, 1), (1, 1)]
    assert pads((6, 5, 2), L.MaxPooling2D(3)) == [(0, 0), (0, 0)]
