"""Correct ports that are drawn at random: networks of layers of all kinds, each with its twin."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import parity.padding as padding
from course.small_models import draw, fill_scaled, pair_up
from parity import transfer
from parity.padding import pad_same

import keras
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

PORTS = 200  # how many the tests draw


class Port(NamedTuple):
    """A random Keras model, inputs for it, and a correct twin.

    Attributes:
        keras_model: The model.
        x: An array for each of its inputs, channels last.
        twin: Its twin, filled by ``transfer``, in eval mode.
        mapping: Which Keras weight fills which PyTorch tensor.
        flatten: What ``transfer`` was told of a twin that flattens channels first.
        within: The largest difference that rounding explains, relative to the largest output if that exceeds 1.
    """

    keras_model: keras.Model
    x: list[np.ndarray]
    twin: nn.Module
    mapping: pd.DataFrame
    flatten: dict[str, tuple[int, ...]] | None
    within: float


class Step(NamedTuple):
    """One step of a random twin: a function of the twin and of values computed before."""

    run: Callable[..., Tensor]
    takes: tuple[int, ...]


class Steps(nn.Module):
    """A twin that runs a list of steps; its modules are registered in a random order."""

    def __init__(self, modules: dict[str, nn.Module], steps: list[Step], returns: tuple[int, ...]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps, self.returns = steps, returns

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the steps on the inputs; each step adds a value to those that later steps may take."""
        values = list(inputs)
        for step in self.steps:
            values.append(step.run(self, *(values[index] for index in step.takes)))
        outputs = tuple(values[index] for index in self.returns)
        return outputs if len(outputs) > 1 else outputs[0]


class Value(NamedTuple):
    """One value of a random port: the symbolic Keras tensor, and its place in the twin's list of values."""

    keras: keras.KerasTensor
    index: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the spatial sizes."""
        return self.keras.shape[1:-1]

    @property
    def channels(self) -> int:
        """Return the number of channels or features."""
        return self.keras.shape[-1]


_ACTIVATIONS = {
    "relu": (nn.ReLU, F.relu),
    "elu": (nn.ELU, F.elu),
    "tanh": (nn.Tanh, torch.tanh),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "silu": (nn.SiLU, F.silu),
    "gelu": (nn.GELU, F.gelu),
    "softplus": (nn.Softplus, F.softplus),
    "leaky_relu": (functools.partial(nn.LeakyReLU, 0.2), functools.partial(F.leaky_relu, negative_slope=0.2)),
    "softmax": (functools.partial(nn.Softmax, dim=1), functools.partial(F.softmax, dim=1)),
}
_MERGES = {"Add": lambda _, a, b: a + b, "Multiply": lambda _, a, b: a * b, "Subtract": lambda _, a, b: a - b}
_MERGES |= {"Maximum": lambda _, a, b: torch.maximum(a, b), "Average": lambda _, a, b: (a + b) / 2}
_MERGES_OF_THREE: list[tuple[str, Callable[..., Tensor]]] = [
    ("Add", lambda a, b, c: a + b + c),
    ("Add", lambda a, b, c: a + (b + c)),
    ("Add", lambda a, b, c: torch.stack([a, b, c]).sum(0)),
    ("Maximum", lambda a, b, c: torch.maximum(torch.maximum(a, b), c)),
    ("Average", lambda a, b, c: (a + b + c) / 3),
]


def _activations(channels: int) -> list[str]:
    return [name for name in _ACTIVATIONS if name != "softmax" or channels > 1]


class _Recipe:
    """Builds a Keras model and its twin side by side, one drawn layer after the other."""

    def __init__(self, draw_: Callable, dtype: str, rank: int, names: Iterable[int]) -> None:
        self.draw, self.dtype, self.rank = draw_, dtype, rank
        self.names = names  # an iterator, which recipes of nested models share
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.inputs: list[keras.KerasTensor] = []
        self.homes: dict[str, str] = {}  # the module of each Keras layer with weights
        self.flatten: dict[str, tuple[int, ...]] = {}
        self.folding = False  # whether a BatchNormalization may be folded into a convolution
        self.folded: dict[str, keras.layers.BatchNormalization] = {}  # by the name of the convolution's layer

    # What all layers need.

    def one_of(self, *choices: Any) -> Any:
        """Draw one of some choices."""
        return self.draw(st.sampled_from(choices))

    def each_axis(self, largest: int) -> tuple[int, ...]:
        """Draw a number from 1 on for each spatial axis."""
        return tuple(self.draw(st.integers(1, largest)) for _ in range(self.rank))

    def input(self, *shape: int | None) -> Value:
        """Begin with an input."""
        assert not self.steps
        self.inputs.append(keras.Input(shape, dtype=self.dtype, name=f"input_{next(self.names)}"))
        return Value(self.inputs[-1], len(self.inputs) - 1)

    def layer(self, kind: str, *args: Any, **kwargs: Any) -> keras.Layer:
        """Make a Keras layer with a name that no other has."""
        name = f"{kind.lower()}_{next(self.names)}"
        # Initial values come to nothing here, and Keras would draw seeds for them.
        if kind == "Dropout":
            kwargs["seed"] = 0
        elif kind.startswith(("Depthwise", "Separable")):
            kwargs["depthwise_initializer"] = "zeros"
        if kind.startswith("Separable"):
            kwargs["pointwise_initializer"] = "zeros"
        elif kind.startswith(("Conv", "Dense")):
            kwargs["kernel_initializer"] = "zeros"
        return getattr(keras.layers, kind)(*args, dtype=self.dtype, name=name, **kwargs)

    def step(self, run: Callable, *takes: Value | int) -> int:
        """Add a step to the twin and return the index of its value."""
        self.steps.append(Step(run, tuple(v.index if isinstance(v, Value) else v for v in takes)))
        return len(self.inputs) + len(self.steps) - 1

    def module(self, module: nn.Module, layer: keras.Layer | None = None) -> Callable[..., Tensor]:
        """Register a module, the twin of a layer if that has weights, and return what runs it."""
        name = self.draw(st.sampled_from("abcxyz")) + str(next(self.names))
        self.modules[name] = module
        if layer is not None:
            self.homes[layer.name] = name
        return lambda twin, *x: getattr(twin, name)(*x)

    def torch(self, name: str) -> Any:
        """Return the class of ``torch.nn`` or ``parity.padding`` for this number of dimensions."""
        name = name.replace("?", str(self.rank))
        return getattr(padding if name.endswith("Same") else nn, name)

    # Layers.

    def activate(self, name: str, index: int) -> int:
        """Add an activation to the twin, by a module or by a function."""
        module, function = _ACTIVATIONS[name]
        run = self.module(module()) if self.draw(st.booleans()) else lambda _, x: function(x)
        return self.step(run, index)

    def activation(self, x: Value) -> Value:
        """Add an activation layer."""
        name = self.one_of(*_activations(x.channels))
        return Value(self.layer("Activation", name)(x.keras), self.activate(name, x.index))

    def leaky(self, x: Value) -> Value:
        """Add a LeakyReLU layer."""
        slope = self.one_of(0.3, 0.125)
        by_module = self.draw(st.booleans())
        run = self.module(nn.LeakyReLU(slope)) if by_module else lambda _, x: F.leaky_relu(x, slope)
        return Value(self.layer("LeakyReLU", slope)(x.keras), self.step(run, x))

    def convolved(self, layer: keras.Layer, x: Value, index: int, fused: str | None) -> Value:
        """Close a convolution or Dense layer: run the Keras layer, and add its own activation to the twin."""
        if fused is not None and self.draw(st.integers(0, 3)) == 0:
            self.do_more(self.homes[layer.name], fused)
        elif fused == "relu" and self.draw(st.booleans()):
            index = self.step(self.module(nn.ReLU(inplace=True)), index)  # nobody else reads the convolution's output
        elif fused is not None:
            index = self.activate(fused, index)
        return Value(layer(x.keras), index)

    def do_more(self, home: str, name: str) -> None:
        """Let a module also do an activation that follows its layer."""
        module, (_, function) = self.modules[home], _ACTIVATIONS[name]
        kind = type(module)
        more = {"forward": lambda self, x: function(kind.forward(self, x))}
        module.__class__ = type(f"{kind.__name__}And{name.title()}", (kind,), more)

    def fused(self, channels: int) -> str | None:
        """Draw the activation of a layer that may have one of its own."""
        return self.one_of(None, None, *_activations(channels))

    def convolution(self, x: Value, keep: bool = False, bare: bool = False) -> Value:
        """Add a convolution of any kind, or one that keeps the shape, or one that is bare of an activation."""
        groups = self.one_of(*(g for g in (1, 1, 2, 3) if x.channels % g == 0))
        filters = x.channels if keep else groups * self.draw(st.integers(1, 6 // groups))
        kernel, stride, dilation = self.each_axis(5), (1,) * self.rank, (1,) * self.rank
        if not keep and self.draw(st.booleans()):
            stride = self.each_axis(3)
        elif self.draw(st.booleans()):
            dilation = self.each_axis(2)
        fits = all(n > (k - 1) * d for n, k, d in zip(x.sizes, kernel, dilation, strict=True))
        ways = ["same", "same", *(["causal"] * (self.rank == 1)), *(["valid"] * (fits and not keep))]
        way, bias = self.one_of(*ways), self.draw(st.booleans())
        fused = None if bare else self.fused(filters)
        layer = self.layer(
            f"Conv{self.rank}D",
            filters,
            kernel,
            strides=stride,
            dilation_rate=dilation,
            padding=way,
            groups=groups,
            use_bias=bias,
            activation=fused,
        )
        settings = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
        index, kind = x.index, "Conv?d"
        if way == "causal":
            before = (kernel[0] - 1) * dilation[0]
            index = self.step(lambda _, x: F.pad(x, (before, 0)), index)
        elif way == "same":
            odd = all(k % 2 for k in kernel)
            style = self.one_of("class", "function", *(["torch"] if odd and max(stride) == 1 else []))
            if style == "class":
                kind = "Conv?dSame"
            elif style == "torch":
                settings["padding"] = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
            else:
                index = self.step(lambda _, x: pad_same(x, kernel, stride, dilation), index)
        module = self.torch(kind)(x.channels, filters, kernel, **settings)
        return self.convolved(layer, x, self.step(self.module(module, layer), index), fused)

    def depthwise(self, x: Value) -> Value:
        """Add a depthwise convolution."""
        kernel, stride, multiplier = (
            self.each_axis(4),
            (self.draw(st.integers(1, 2)),) * self.rank,
            self.one_of(1, 2, 3),
        )
        fused = self.fused(x.channels * multiplier)
        layer = self.layer(
            f"DepthwiseConv{self.rank}D",
            kernel,
            strides=stride,
            depth_multiplier=multiplier,
            padding="same",
            activation=fused,
        )
        module = self.torch("Conv?dSame")(x.channels, x.channels * multiplier, kernel, stride=stride, groups=x.channels)
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def separable(self, x: Value) -> Value:
        """Add a separable convolution."""
        kernel, multiplier, filters = self.each_axis(3), self.one_of(1, 2), self.draw(st.integers(1, 5))
        fused = self.fused(filters)
        layer = self.layer(
            f"SeparableConv{self.rank}D",
            filters,
            kernel,
            depth_multiplier=multiplier,
            padding="same",
            activation=fused,
        )
        inner = x.channels * multiplier
        module = nn.Sequential()
        module.add_module(
            "depthwise", self.torch("Conv?dSame")(x.channels, inner, kernel, groups=x.channels, bias=False)
        )
        module.add_module("pointwise", self.torch("Conv?d")(inner, filters, 1))
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def transposed(self, x: Value) -> Value:
        """Add a transposed convolution."""
        kernel, stride, filters = self.each_axis(4), self.each_axis(2), self.draw(st.integers(1, 5))
        fused = self.fused(filters)
        way = self.one_of("same", *(["valid"] if all(k >= s for k, s in zip(kernel, stride, strict=True)) else []))
        layer = self.layer(f"Conv{self.rank}DTranspose", filters, kernel, strides=stride, padding=way, activation=fused)
        kind = "ConvTranspose?dSame" if way == "same" else "ConvTranspose?d"
        module = self.torch(kind)(x.channels, filters, kernel, stride=stride)
        return self.convolved(layer, x, self.step(self.module(module, layer), x), fused)

    def pooling(self, x: Value) -> Value:
        """Add max or average pooling, by a module or by a function."""
        window = self.each_axis(3)
        stride = self.one_of(window, self.each_axis(3))
        fits = all(n >= k for n, k in zip(x.sizes, window, strict=True))
        kind, way = self.one_of("Max", "Average"), self.one_of("same", *(["valid"] if fits else []))
        layer = self.layer(f"{kind}Pooling{self.rank}D", window, strides=stride, padding=way)
        short = {"Max": "Max", "Average": "Avg"}[kind]
        if way == "same":
            run = self.module(self.torch(f"{short}Pool?dSame")(window, stride))
        elif self.draw(st.booleans()):
            run = self.module(self.torch(f"{short}Pool?d")(window, stride))
        else:
            function = getattr(F, f"{short.lower()}_pool{self.rank}d")
            run = lambda _, x: function(x, window, stride)  # noqa: E731
        return Value(layer(x.keras), self.step(run, x))

    def normalization(self, x: Value) -> Value:
        """Add a normalization."""
        epsilon, channels = self.one_of(1e-3, 1e-2, 1e-5), x.channels
        kind = self.one_of("Batch", "Batch", *(["Layer", "Group"] if channels > 1 else []))
        if kind == "Batch":
            momentum = self.one_of(0.99, 0.9)
            scale, center = self.draw(st.booleans()), self.draw(st.booleans())
            layer = self.layer("BatchNormalization", epsilon=epsilon, momentum=momentum, scale=scale, center=center)
            rank = self.rank if len(x.sizes) else 1
            module = getattr(nn, f"BatchNorm{rank}d")(channels, epsilon, 1 - momentum)
            y = Value(layer(x.keras), self.step(self.module(module, layer), x))
            if self.draw(st.integers(0, 2)) == 0:
                return self.done_inside(self.homes[layer.name], y)
            return y
        epsilon = max(epsilon, 1e-3)
        if kind == "Group":
            groups = self.one_of(*(g for g in (1, 2) if channels % (2 * g) == 0 or g == 1))
            layer = self.layer("GroupNormalization", groups, epsilon=epsilon)
            return Value(layer(x.keras), self.step(self.module(nn.GroupNorm(groups, channels, epsilon), layer), x))
        layer = self.layer("LayerNormalization", epsilon=epsilon)
        run = self.module(nn.LayerNorm(channels, epsilon), layer)
        return Value(layer(x.keras), self.step(lambda twin, x: run(twin, x.movedim(1, -1)).movedim(-1, 1), x))

    def done_inside(self, home: str, x: Value) -> Value:
        """Add an activation layer that a module, the twin of the layer before it, also does."""
        name = self.one_of(*_activations(x.channels))
        self.do_more(home, name)
        return Value(self.layer("Activation", name)(x.keras), x.index)

    def folds(self, x: Value) -> Value:
        """Add a convolution and a BatchNormalization, which is folded into the twin's convolution."""
        x = self.convolution(x, bare=True)
        name = next(reversed(self.homes))
        module = self.modules[self.homes[name]]
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros(x.channels))
        layer = self.folded[name] = self.layer("BatchNormalization", epsilon=self.one_of(1e-3, 1e-2))
        x, home = Value(layer(x.keras), x.index), self.homes[name]
        return self.done_inside(home, x) if self.draw(st.booleans()) else x

    def slopes(self, x: Value) -> Value:
        """Add a PReLU with a slope for each channel."""
        layer = self.layer("PReLU", shared_axes=list(range(1, self.rank + 1)) if x.sizes else None)
        return Value(layer(x.keras), self.step(self.module(nn.PReLU(x.channels), layer), x))

    def dropout(self, x: Value) -> Value:
        """Add dropout, by a module or by a function."""
        run = self.module(nn.Dropout(0.4)) if self.draw(st.booleans()) else lambda t, x: F.dropout(x, 0.4, t.training)
        return Value(self.layer("Dropout", 0.4)(x.keras), self.step(run, x))

    def zero_padding(self, x: Value) -> Value:
        """Add zeros on each side, by a module or by a function."""
        amounts = [(self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))) for _ in range(self.rank)]
        layer = self.layer(f"ZeroPadding{self.rank}D", tuple(amounts) if self.rank > 1 else amounts[0])
        flat = tuple(itertools.chain.from_iterable(reversed(amounts)))
        run = self.module(self.torch("ZeroPad?d")(flat)) if self.draw(st.booleans()) else lambda _, x: F.pad(x, flat)
        return Value(layer(x.keras), self.step(run, x))

    # Pieces of several layers.

    def keeping(self, x: Value) -> Value:
        """Add a layer that keeps the shape."""
        make = self.one_of(
            functools.partial(self.convolution, keep=True),
            functools.partial(self.convolution, keep=True),
            self.normalization,
            self.activation,
            self.leaky,
            self.slopes,
            self.dropout,
        )
        return make(x)

    def rectified(self, x: Value) -> Value:
        """Add a convolution and a ReLU that overwrites its output, which nobody else reads."""
        x = self.convolution(x, bare=True)
        layer = self.one_of(self.layer("ReLU"), self.layer("Activation", "relu"))
        if self.draw(st.integers(0, 2)) == 0:
            self.do_more(self.homes[next(reversed(self.homes))], "relu")
            return Value(layer(x.keras), x.index)
        run = self.module(nn.ReLU(inplace=True)) if self.draw(st.booleans()) else lambda _, x: F.relu(x, inplace=True)
        return Value(layer(x.keras), self.step(run, x))

    def residual(self, x: Value) -> Value:
        """Add one or two layers beside a shortcut, or two branches beside one."""
        y = self.keeping(x)
        y = self.keeping(y) if self.draw(st.booleans()) else y
        if self.draw(st.integers(0, 3)) == 0:
            kind, way = self.one_of(*_MERGES_OF_THREE)
            several = self.draw(st.permutations([x, y, self.keeping(self.one_of(x, y))]))
            return Value(self.layer(kind)([v.keras for v in several]), self.step(lambda _, *v: way(*v), *several))
        kind = self.one_of(*_MERGES)
        a, b = (x, y) if self.draw(st.booleans()) else (y, x)
        return Value(self.layer(kind)([a.keras, b.keras]), self.step(_MERGES[kind], a, b))

    def branches(self, x: Value) -> Value:
        """Add two branches whose channels are joined."""
        a, b = self.convolution(x, keep=True), self.one_of(self.keeping, lambda x: x)(x)
        a, b = (a, b) if self.draw(st.booleans()) else (b, a)
        return Value(
            self.layer("Concatenate")([a.keras, b.keras]), self.step(lambda _, a, b: torch.cat([a, b], 1), a, b)
        )

    def shared(self, x: Value) -> Value:
        """Add a convolution that is called twice."""
        kernel = self.each_axis(3)
        layer = self.layer(f"Conv{self.rank}D", x.channels, kernel, padding="same")
        run = self.module(self.torch("Conv?dSame")(x.channels, x.channels, kernel), layer)
        x = Value(layer(x.keras), self.step(run, x))
        x = self.keeping(x)
        return Value(layer(x.keras), self.step(run, x))

    def nested(self, x: Value) -> Value:
        """Add a model of one to three layers."""
        inner = _Recipe(self.draw, self.dtype, self.rank, self.names)
        y = inner.input(*x.keras.shape[1:])
        for _ in range(self.draw(st.integers(1, 3))):
            y = inner.one_of(inner.keeping, inner.convolution, inner.residual)(y)
        model, twin = inner.close(f"model_{next(self.names)}", [y])
        run = self.module(twin)
        name = next(reversed(self.modules))
        self.homes |= {layer: f"{name}.{home}" for layer, home in inner.homes.items()}
        return Value(model(x.keras), self.step(run, x))

    def to_features(self, x: Value) -> Value:
        """Flatten in either way, or pool over all pixels."""
        way = self.one_of("average", "largest", "permuted", "channels first", "channels first")
        axes = tuple(range(2, 2 + self.rank))
        if way in ("average", "largest"):
            kind = f"Global{'Average' if way == 'average' else 'Max'}Pooling{self.rank}D"
            run = (lambda _, x: x.mean(axes)) if way == "average" else (lambda _, x: x.amax(axes))
            return Value(self.layer(kind)(x.keras), self.step(run, x))
        index = self.step(lambda _, x: x.movedim(1, -1), x) if way == "permuted" else x.index
        run = self.module(nn.Flatten()) if self.draw(st.booleans()) else lambda _, x: x.flatten(1)
        y = Value(self.layer("Flatten")(x.keras), self.step(run, index))
        if way == "channels first":
            shape = (*x.sizes, x.channels)
            start = len(self.homes)
            if self.draw(st.booleans()):
                y = self.one_of(self.activation_of_features, self.normalization_of_features, self.dropout)(y)
            y = self.dense(y)
            self.flatten |= dict.fromkeys(list(self.homes)[start:], shape)
        return y

    def activation_of_features(self, x: Value) -> Value:
        """Add an activation for which the order of features is of no account."""
        return Value(self.layer("Activation", "relu")(x.keras), self.activate("relu", x.index))

    def normalization_of_features(self, x: Value) -> Value:
        """Add a normalization with vectors that have a number for each feature."""
        layer = self.layer("BatchNormalization")
        return Value(layer(x.keras), self.step(self.module(nn.BatchNorm1d(x.channels, 1e-3, 0.01), layer), x))

    def dense(self, x: Value, units: int | None = None) -> Value:
        """Add a Dense layer, often a square one."""
        units = units or (x.channels if x.channels < 9 and self.draw(st.booleans()) else self.draw(st.integers(1, 8)))
        fused, bias = self.fused(units), self.draw(st.booleans())
        layer = self.layer("Dense", units, activation=fused, use_bias=bias)
        run = self.module(nn.Linear(x.channels, units, bias=bias), layer)
        return self.convolved(layer, x, self.step(run, x), fused)

    def trunk(self, x: Value) -> list[Callable[[Value], Value]]:
        """Return what may be added before the features: no more transposed convolutions where the image is large."""
        return [
            self.convolution,
            self.rectified,
            self.pooling,
            self.normalization,
            *([self.transposed] if math.prod(x.sizes) < 200 else []),
            self.depthwise,
            self.separable,
            *([self.folds] if self.folding else []),
            self.activation,
            self.keeping,
            self.zero_padding,
            self.residual,
            self.branches,
            self.shared,
            self.nested,
        ]

    def heads(self, x: Value, vector: Value | None) -> list[Value]:
        """Add one or two Dense heads, at times after a hidden layer, and another input."""
        if self.draw(st.booleans()):
            x = self.dense(x)
            x = self.one_of(lambda x: x, self.slopes, self.normalization, self.dropout)(x)
        if vector is not None:
            join = self.step(lambda _, a, b: torch.cat([a, b], 1), x, vector)
            x = Value(self.layer("Concatenate")([x.keras, vector.keras]), join)
        units = self.draw(st.integers(1, 4))
        return [self.dense(x, units) for _ in range(self.draw(st.integers(1, 2)))]

    def close(self, name: str, outputs: list[Value]) -> tuple[keras.Model, Steps]:
        """Return the Keras model and its twin, not yet filled."""
        inputs = self.inputs if len(self.inputs) > 1 else self.inputs[0]
        results = [y.keras for y in outputs]
        model = keras.Model(inputs, results if len(results) > 1 else results[0], name=name)
        order = self.draw(st.permutations(list(self.modules)))
        modules = {name: self.modules[name] for name in order}
        return model, Steps(modules, self.steps, tuple(y.index for y in outputs))


def _fold(twin: nn.Module, recipe: _Recipe) -> None:
    """Give the twin's convolutions the weights of theirs with the BatchNormalization behind it folded in."""
    for name, norm in recipe.folded.items():
        module = twin.get_submodule(recipe.homes[name])
        gamma, beta, mean, variance = (torch.from_numpy(weight.numpy()) for weight in norm.weights)
        scale = gamma / (variance + norm.epsilon).sqrt()
        with torch.no_grad():
            module.weight.mul_(scale.reshape(-1, *[1] * (module.weight.ndim - 1)))
            module.bias.copy_((module.bias - mean) * scale + beta)


def _mapping(model: keras.Model, twin: nn.Module, recipe: _Recipe) -> pd.DataFrame:
    """Return the mapping; the weights of a BatchNormalization that is folded into another layer are moved by hand."""
    by_hand = {weight.path for norm in recipe.folded.values() for weight in norm.weights}
    rest = SimpleNamespace(weights=[weight for weight in model.weights if weight.path not in by_hand])
    mapping = pair_up(rest, twin, recipe.homes)
    if by_hand:
        more = pd.DataFrame({"keras": sorted(by_hand), "torch": "", "how": "by hand"})
        mapping = pd.concat([mapping.assign(how=""), more], ignore_index=True)
    return mapping


@st.composite
def right_ports(draw_: Callable, folding: bool = False) -> Port:
    """Draw correct ports: random networks in one or two dimensions, of random sizes, each with its twin.

    Args:
        draw_: What hypothesis draws with.
        folding: Whether a BatchNormalization may be folded into a convolution: then the twin is right in prediction.
    """
    rank, dtype = draw_(st.integers(1, 2)), draw_(st.sampled_from(["float32", "float64"]))
    recipe = _Recipe(draw_, dtype, rank, itertools.count())
    recipe.folding = folding
    with_heads = draw_(st.integers(0, 3)) > 0
    x = recipe.input(*(draw_(st.integers(3, 12)) for _ in range(rank)), draw_(st.integers(1, 5)))
    vector = recipe.input(draw_(st.integers(1, 5))) if with_heads and draw_(st.integers(0, 3)) == 0 else None
    for _ in range(draw_(st.integers(2, 7))):
        x = draw_(st.sampled_from(recipe.trunk(x)))(x)
    if with_heads:
        outputs = recipe.heads(recipe.to_features(x), vector)
    else:
        outputs = [x if recipe.homes else recipe.convolution(x)]  # a model without weights has nothing to move
    model, twin = recipe.close("drawn", outputs)
    seed = draw_(st.integers(0, 2**16))
    fill_scaled(model, seed)
    twin = twin.to(getattr(torch, dtype)).eval()
    mapping, flatten = _mapping(model, twin, recipe), recipe.flatten or None
    transfer(model, twin, mapping, flatten)
    _fold(twin, recipe)
    batch = draw_(st.integers(1, 3))
    inputs = [draw(batch, *start.shape[1:], seed=(seed, k)).astype(dtype) for k, start in enumerate(model.inputs)]
    return Port(model, inputs, twin, mapping, flatten, 1e-6 if dtype == "float64" else 1e-4)
